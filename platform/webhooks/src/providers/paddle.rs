//! Paddle.

use super::{
    super::scheme::{Scheme, SignatureScheme, ValueLocation},
    EMPTY, body, id, one, pointer, ty,
};
use nerve_core::manifest::TimestampUnit;

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme {
        signed: "{timestamp}:{body}",
        timestamp: Some((ValueLocation::HeaderParameter("paddle-signature", "ts"), TimestampUnit::Seconds)),
        ..body("paddle-signature", "h1=")
    }),
    id: id(pointer("/event_id")),
    ty: ty(pointer("/event_type")),
    subject: pointer("/data/id"),
    ..EMPTY
};

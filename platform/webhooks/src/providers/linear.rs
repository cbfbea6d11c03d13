//! Linear.

use super::{
    super::scheme::{Scheme, SignatureScheme, ValueLocation},
    EMPTY, body, header, id, one, pointer,
};
use nerve_core::manifest::TimestampUnit;

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme {
        timestamp: Some((ValueLocation::Pointer("/webhookTimestamp"), TimestampUnit::Milliseconds)),
        ..body("linear-signature", "")
    }),
    id: id(header("linear-delivery")),
    ty: [[header("linear-event"), pointer("/action")], [None, None]],
    subject: pointer("/data/id"),
    ..EMPTY
};

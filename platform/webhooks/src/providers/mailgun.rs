//! Mailgun.

use super::{
    super::scheme::{Scheme, SignatureScheme, ValueLocation},
    EMPTY, HMAC, id, one, pointer, ty,
};
use nerve_core::manifest::TimestampUnit;

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme {
        signature: ValueLocation::Pointer("/signature/signature"),
        signed: "{timestamp}{id}",
        timestamp: Some((ValueLocation::Pointer("/signature/timestamp"), TimestampUnit::Seconds)),
        ..HMAC
    }),
    id: id(pointer("/signature/token")),
    ty: ty(pointer("/event-data/event")),
    subject: pointer("/event-data/recipient"),
    ..EMPTY
};

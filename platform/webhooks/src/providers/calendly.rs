//! Calendly.

use super::{
    super::scheme::{Scheme, SignatureScheme, ValueLocation},
    EMPTY, body, one, pointer, ty,
};
use nerve_core::manifest::TimestampUnit;

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme {
        signed: "{timestamp}.{body}",
        timestamp: Some((ValueLocation::HeaderParameter("calendly-webhook-signature", "t"), TimestampUnit::Seconds)),
        ..body("calendly-webhook-signature", "v1=")
    }),
    ty: ty(pointer("/event")),
    subject: pointer("/payload/uri"),
    ..EMPTY
};

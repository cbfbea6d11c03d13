//! Stripe.

use super::{
    super::scheme::{Scheme, SignatureScheme, ValueLocation},
    EMPTY, body, id, one, pointer, ty,
};
use nerve_core::manifest::TimestampUnit;

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme {
        signed: "{timestamp}.{body}",
        timestamp: Some((ValueLocation::HeaderParameter("stripe-signature", "t"), TimestampUnit::Seconds)),
        ..body("stripe-signature", "v1=")
    }),
    id: id(pointer("/id")),
    ty: ty(pointer("/type")),
    subject: pointer("/data/object/id"),
    ..EMPTY
};

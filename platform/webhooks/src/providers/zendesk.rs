//! Zendesk.

use super::{
    super::scheme::{Scheme, SignatureScheme, ValueLocation},
    EMPTY, body, header, id, one, pointer, ty,
};
use nerve_core::manifest::{Encoding, TimestampUnit};

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme {
        encoding: Encoding::Base64,
        signed: "{timestamp}{body}",
        timestamp: Some((ValueLocation::Header("x-zendesk-webhook-signature-timestamp"), TimestampUnit::Rfc3339)),
        ..body("x-zendesk-webhook-signature", "")
    }),
    id: id(header("x-zendesk-webhook-invocation-id")),
    ty: ty(pointer("/type")),
    subject: pointer("/subject"),
    ..EMPTY
};

//! DocuSign.

use super::{
    super::scheme::{Scheme, SignatureScheme, ValueLocation},
    EMPTY, HMAC, one, pointer, ty,
};
use nerve_core::manifest::Encoding;

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme {
        signature: ValueLocation::NumberedHeaders("x-docusign-signature-"),
        encoding: Encoding::Base64,
        ..HMAC
    }),
    ty: ty(pointer("/event")),
    subject: pointer("/data/envelopeId"),
    ..EMPTY
};

//! Typeform.

use super::{
    super::scheme::{Scheme, SignatureScheme},
    EMPTY, body, id, one, pointer, ty,
};
use nerve_core::manifest::Encoding;

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme { encoding: Encoding::Base64, ..body("typeform-signature", "sha256=") }),
    id: id(pointer("/event_id")),
    ty: ty(pointer("/event_type")),
    subject: pointer("/form_response/form_id"),
    ..EMPTY
};

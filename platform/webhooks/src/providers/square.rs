//! Square.

use super::{
    super::scheme::{Scheme, SignatureScheme},
    EMPTY, body, id, one, pointer, ty,
};
use nerve_core::manifest::Encoding;

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme {
        encoding: Encoding::Base64,
        signed: "{url}{body}",
        ..body("x-square-hmacsha256-signature", "")
    }),
    id: id(pointer("/event_id")),
    ty: ty(pointer("/type")),
    subject: pointer("/data/id"),
    ..EMPTY
};

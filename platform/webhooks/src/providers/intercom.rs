//! Intercom.

use super::{
    super::scheme::{Scheme, SignatureScheme},
    EMPTY, body, id, one, pointer, ty,
};
use nerve_core::manifest::Algorithm;

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme { algorithm: Algorithm::Sha1, ..body("x-hub-signature", "sha1=") }),
    id: id(pointer("/id")),
    ty: ty(pointer("/topic")),
    subject: pointer("/data/item/id"),
    ..EMPTY
};

//! CloudEvents.

use super::{
    super::scheme::{Handshake, Scheme, SignatureScheme},
    EMPTY, body, header, id, one, ty,
};
use nerve_core::manifest::Algorithm;

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme { algorithm: Algorithm::Token, ..body("authorization", "Bearer ") }),
    id: id(header("ce-id")),
    ty: ty(header("ce-type")),
    handshake: Some(Handshake::CloudEvents),
    ..EMPTY
};

//! Discord.

use super::{
    super::scheme::{Handshake, Scheme, SignatureScheme},
    EMPTY, body, id, one, pointer, seconds,
};
use nerve_core::manifest::{Algorithm, KeyForm};

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme {
        algorithm: Algorithm::Ed25519,
        key: KeyForm::Hex,
        signed: "{timestamp}{body}",
        timestamp: seconds("x-signature-timestamp"),
        ..body("x-signature-ed25519", "")
    }),
    id: id(pointer("/id")),
    ty: [[pointer("/event/type"), None], [pointer("/type"), None]],
    handshake: Some(Handshake::Discord),
    ..EMPTY
};

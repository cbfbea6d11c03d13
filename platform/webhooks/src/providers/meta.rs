//! Meta.

use super::{
    super::scheme::{Handshake, Scheme},
    EMPTY, body, one, pointer,
};

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(body("x-hub-signature-256", "sha256=")),
    ty: [[pointer("/object"), pointer("/entry/0/changes/0/field")], [None, None]],
    subject: pointer("/entry/0/id"),
    handshake: Some(Handshake::Meta),
    ..EMPTY
};

//! Notion.

use super::{
    super::scheme::{Handshake, Scheme},
    EMPTY, body, id, one, pointer, ty,
};

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(body("x-notion-signature", "sha256=")),
    id: id(pointer("/id")),
    ty: ty(pointer("/type")),
    subject: pointer("/entity/id"),
    handshake: Some(Handshake::Notion { at: "/verification_token" }),
    ..EMPTY
};

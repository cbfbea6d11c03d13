//! Zoom.

use super::{
    super::scheme::{Handshake, Scheme, SignatureScheme},
    EMPTY, body, one, pointer, seconds, ty,
};

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme {
        signed: "v0:{timestamp}:{body}",
        timestamp: seconds("x-zm-request-timestamp"),
        ..body("x-zm-signature", "v0=")
    }),
    ty: ty(pointer("/event")),
    subject: pointer("/payload/object/id"),
    handshake: Some(Handshake::Zoom { when: ("/event", "endpoint.url_validation"), at: "/payload/plainToken" }),
    ..EMPTY
};

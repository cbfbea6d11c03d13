//! Slack.

use super::{
    super::scheme::{Handshake, Scheme, SignatureScheme},
    EMPTY, body, id, one, pointer, seconds,
};

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme {
        signed: "v0:{timestamp}:{body}",
        timestamp: seconds("x-slack-request-timestamp"),
        ..body("x-slack-signature", "v0=")
    }),
    id: id(pointer("/event_id")),
    ty: [[pointer("/event/type"), None], [pointer("/type"), None]],
    subject: pointer("/event/channel"),
    form_field: Some("payload"),
    handshake: Some(Handshake::Echo { when: Some(("/type", "url_verification")), at: "/challenge" }),
    ..EMPTY
};

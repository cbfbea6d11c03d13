//! Jira.

use super::{super::scheme::Scheme, EMPTY, body, header, id, one, pointer, ty};

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(body("x-hub-signature", "sha256=")),
    id: id(header("x-atlassian-webhook-identifier")),
    ty: ty(pointer("/webhookEvent")),
    subject: pointer("/issue/key"),
    ..EMPTY
};

//! GitHub.

use super::{super::scheme::Scheme, EMPTY, body, header, id, one, pointer};

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(body("x-hub-signature-256", "sha256=")),
    id: id(header("x-github-delivery")),
    ty: [[header("x-github-event"), pointer("/action")], [None, None]],
    subject: pointer("/repository/full_name"),
    form_field: Some("payload"),
    ..EMPTY
};

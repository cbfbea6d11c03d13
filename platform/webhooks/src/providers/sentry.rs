//! Sentry.

use super::{super::scheme::Scheme, EMPTY, body, header, id, one, pointer};

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(body("sentry-hook-signature", "")),
    id: id(header("request-id")),
    ty: [[header("sentry-hook-resource"), pointer("/action")], [None, None]],
    ..EMPTY
};

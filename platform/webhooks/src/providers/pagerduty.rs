//! PagerDuty.

use super::{super::scheme::Scheme, EMPTY, body, id, one, pointer, ty};

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(body("x-pagerduty-signature", "v1=")),
    id: id(pointer("/event/id")),
    ty: ty(pointer("/event/event_type")),
    subject: pointer("/event/data/id"),
    ..EMPTY
};

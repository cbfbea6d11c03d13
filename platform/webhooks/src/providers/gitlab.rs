//! GitLab.

use super::{
    super::scheme::{KeyPrefix, Scheme, SignatureScheme, ValueLocation},
    EMPTY, HMAC, header, pointer,
    standard_webhooks::STANDARD,
    ty,
};
use nerve_core::manifest::Algorithm;

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: [
        Some(SignatureScheme { key_prefix: KeyPrefix::Required("whsec_"), ..STANDARD }),
        Some(SignatureScheme {
            signature: ValueLocation::Header("x-gitlab-token"),
            algorithm: Algorithm::Token,
            key_prefix: KeyPrefix::Without("whsec_"),
            ..HMAC
        }),
    ],
    id: [header("webhook-id"), header("idempotency-key"), header("x-gitlab-event-uuid")],
    ty: ty(header("x-gitlab-event")),
    subject: pointer("/project/path_with_namespace"),
    ..EMPTY
};

//! Standard Webhooks.

use super::{
    super::scheme::{KeyPrefix, Scheme, SignatureScheme, ValueLocation},
    EMPTY, HMAC, header, id, pointer, seconds, ty,
};
use nerve_core::manifest::{Algorithm, Encoding, KeyForm};

/// HMAC-SHA256 signatures, `v1`.
pub(super) const STANDARD: SignatureScheme<'static> = SignatureScheme {
    signature: ValueLocation::Header("webhook-signature"),
    prefix: "v1,",
    encoding: Encoding::Base64,
    key: KeyForm::Base64,
    key_prefix: KeyPrefix::Optional("whsec_"),
    signed: "{id}.{timestamp}.{body}",
    timestamp: seconds("webhook-timestamp"),
    ..HMAC
};

/// Ed25519 signatures, `v1a`.
pub(super) const STANDARD_ED25519: SignatureScheme<'static> = SignatureScheme {
    prefix: "v1a,",
    algorithm: Algorithm::Ed25519,
    key_prefix: KeyPrefix::Required("whpk_"),
    ..STANDARD
};

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: [Some(STANDARD), Some(STANDARD_ED25519)],
    id: id(header("webhook-id")),
    ty: ty(pointer("/type")),
    ..EMPTY
};

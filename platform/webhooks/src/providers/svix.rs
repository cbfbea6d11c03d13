//! Svix.

use super::{
    super::scheme::{Scheme, SignatureScheme, ValueLocation},
    header, id, seconds,
    standard_webhooks::{self, STANDARD, STANDARD_ED25519},
};

const SVIX_SIGNATURE: ValueLocation<'static> = ValueLocation::Header("svix-signature");

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: [
        Some(SignatureScheme { signature: SVIX_SIGNATURE, timestamp: seconds("svix-timestamp"), ..STANDARD }),
        Some(SignatureScheme { signature: SVIX_SIGNATURE, timestamp: seconds("svix-timestamp"), ..STANDARD_ED25519 }),
    ],
    id: id(header("svix-id")),
    ..standard_webhooks::SCHEME
};

//! Twilio.

use super::{
    super::scheme::{Scheme, SignatureScheme, UrlForm},
    EMPTY, body, header, id, one,
};
use nerve_core::manifest::{Algorithm, Encoding};

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme {
        algorithm: Algorithm::Sha1,
        encoding: Encoding::Base64,
        signed: "{url}{form}",
        ..body("x-twilio-signature", "")
    }),
    id: id(header("i-twilio-idempotency-token")),
    body_digest: Some("bodySHA256"),
    url: UrlForm::AnyPort,
    ..EMPTY
};

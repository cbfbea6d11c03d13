//! SendGrid.

use super::{
    super::scheme::{Items, Scheme, SignatureScheme},
    EMPTY, body, one, seconds,
};
use nerve_core::manifest::{Algorithm, Encoding};

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme {
        algorithm: Algorithm::EcdsaP256,
        encoding: Encoding::Base64,
        signed: "{timestamp}{body}",
        timestamp: seconds("x-twilio-email-event-webhook-timestamp"),
        ..body("x-twilio-email-event-webhook-signature", "")
    }),
    items: Some(Items { at: "", id: [Some("/sg_event_id"), None, None], ty: Some("/event") }),
    ..EMPTY
};

//! HubSpot.

use super::{
    super::scheme::{Items, Scheme, SignatureScheme, UrlForm, ValueLocation},
    EMPTY, body, one,
};
use nerve_core::manifest::{Encoding, TimestampUnit};

pub(super) const SCHEME: Scheme<'static> = Scheme {
    signature_schemes: one(SignatureScheme {
        encoding: Encoding::Base64,
        signed: "{method}{url}{body}{timestamp}",
        timestamp: Some((ValueLocation::Header("x-hubspot-request-timestamp"), TimestampUnit::Milliseconds)),
        ..body("x-hubspot-signature-v3", "")
    }),
    url: UrlForm::Decoded,
    // HubSpot documents that an eventId alone is not unique.
    items: Some(Items {
        at: "",
        id: [Some("/eventId"), Some("/subscriptionId"), Some("/objectId")],
        ty: Some("/subscriptionType"),
    }),
    ..EMPTY
};

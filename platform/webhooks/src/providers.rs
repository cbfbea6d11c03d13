//! The schemes of the built-in providers, one file each, by the provider's SDK or documentation; and the declared scheme of
//! `custom`.

mod calendly;
mod cloudevents;
mod discord;
mod docusign;
mod github;
mod gitlab;
mod hubspot;
mod intercom;
mod jira;
mod linear;
mod mailgun;
mod meta;
mod notion;
mod paddle;
mod pagerduty;
mod sendgrid;
mod sentry;
mod shopify;
mod slack;
mod sns;
mod square;
mod standard_webhooks;
mod stripe;
mod svix;
mod twilio;
mod typeform;
mod zendesk;
mod zoom;

use super::scheme::{Handshake, Items, KeyPrefix, Scheme, SignatureScheme, UrlForm, ValueLocation};
use nerve_core::manifest::{Algorithm, CustomScheme, Encoding, KeyForm, Locator, Provider, TimestampUnit};

/// HMAC-SHA256 of the body, in hex; the base of most schemes.
const HMAC: SignatureScheme<'static> = SignatureScheme {
    signature: ValueLocation::Header(""),
    prefix: "",
    algorithm: Algorithm::Sha256,
    encoding: Encoding::Hex,
    key: KeyForm::Text,
    key_prefix: KeyPrefix::Any,
    signed: "{body}",
    timestamp: None,
    guard_field: None,
};

/// A scheme without any field.
const EMPTY: Scheme<'static> = Scheme {
    signature_schemes: [None, None],
    id: [None, None, None],
    ty: [[None, None], [None, None]],
    subject: None,
    form_field: None,
    body_digest: None,
    url: UrlForm::Plain,
    items: None,
    handshake: None,
};

const fn header(name: &'static str) -> Option<ValueLocation<'static>> {
    Some(ValueLocation::Header(name))
}

const fn pointer(pointer: &'static str) -> Option<ValueLocation<'static>> {
    Some(ValueLocation::Pointer(pointer))
}

/// HMAC-SHA256 of the body, in hex, in this header.
const fn body(signature: &'static str, prefix: &'static str) -> SignatureScheme<'static> {
    SignatureScheme { signature: ValueLocation::Header(signature), prefix, ..HMAC }
}

/// Seconds since the epoch in this header.
const fn seconds(name: &'static str) -> Option<(ValueLocation<'static>, TimestampUnit)> {
    Some((ValueLocation::Header(name), TimestampUnit::Seconds))
}

const fn one(signature_scheme: SignatureScheme<'static>) -> [Option<SignatureScheme<'static>>; 2] {
    [Some(signature_scheme), None]
}

const fn ty(location: Option<ValueLocation<'static>>) -> [[Option<ValueLocation<'static>>; 2]; 2] {
    [[location, None], [None, None]]
}

const fn id(location: Option<ValueLocation<'static>>) -> [Option<ValueLocation<'static>>; 3] {
    [location, None, None]
}

impl<'a> Scheme<'a> {
    /// Returns the scheme of a provider.
    pub fn of(provider: &'a Provider) -> Self {
        match provider {
            Provider::Github => github::SCHEME,
            Provider::Gitlab => gitlab::SCHEME,
            Provider::Stripe => stripe::SCHEME,
            Provider::Slack => slack::SCHEME,
            Provider::Shopify => shopify::SCHEME,
            Provider::Twilio => twilio::SCHEME,
            Provider::StandardWebhooks => standard_webhooks::SCHEME,
            Provider::Svix => svix::SCHEME,
            Provider::Discord => discord::SCHEME,
            Provider::Linear => linear::SCHEME,
            Provider::Pagerduty => pagerduty::SCHEME,
            Provider::Zendesk => zendesk::SCHEME,
            Provider::Square => square::SCHEME,
            Provider::Meta => meta::SCHEME,
            Provider::Sendgrid => sendgrid::SCHEME,
            Provider::Paddle => paddle::SCHEME,
            Provider::Hubspot => hubspot::SCHEME,
            Provider::Intercom => intercom::SCHEME,
            Provider::Typeform => typeform::SCHEME,
            Provider::Calendly => calendly::SCHEME,
            Provider::Mailgun => mailgun::SCHEME,
            Provider::Zoom => zoom::SCHEME,
            Provider::Notion => notion::SCHEME,
            Provider::Sentry => sentry::SCHEME,
            Provider::Jira => jira::SCHEME,
            Provider::Docusign => docusign::SCHEME,
            Provider::Sns => sns::SCHEME,
            Provider::Cloudevents => cloudevents::SCHEME,
            Provider::Custom(custom) => Self::custom(custom),
        }
    }

    fn custom(custom: &'a CustomScheme) -> Self {
        let signature_scheme = SignatureScheme {
            signature: ValueLocation::signatures(&custom.signature),
            prefix: &custom.prefix,
            algorithm: custom.algorithm,
            encoding: custom.encoding,
            key: custom.key,
            key_prefix: KeyPrefix::Any,
            signed: if custom.algorithm == Algorithm::Token { "{body}" } else { &custom.signed },
            timestamp: custom
                .timestamp
                .as_deref()
                .map(|location| (ValueLocation::time(location), custom.timestamp_unit)),
            guard_field: None,
        };
        let inside = |locator: &'a Option<Locator>| match locator {
            Some(Locator::Pointer(pointer)) => Some(pointer.as_str()),
            _ => None,
        };
        let items = custom.batch.as_deref().map(|at| Items {
            at: if at == "." { "" } else { at },
            id: [inside(&custom.id), None, None],
            ty: inside(&custom.ty),
        });
        Self {
            signature_schemes: [Some(signature_scheme), None],
            id: [custom.id.as_ref().map(ValueLocation::of), None, None],
            ty: [[custom.ty.as_ref().map(ValueLocation::of), None], [None, None]],
            items,
            handshake: custom.challenge.as_deref().map(|at| Handshake::Echo { when: None, at }),
            ..EMPTY
        }
    }
}

//! The providers' schemes, each by the provider's SDK or documentation, and the one that a manifest declares.
//!
//! [`timed`]: those that sign the time; [`untimed`]: those that do not.

mod timed;
mod untimed;

use super::scheme::{Handshake, Items, KeyPrefix, Kind, Place, Scheme, UrlForm};
use nerve_core::manifest::{Algorithm, CustomScheme, Encoding, KeyForm, Locator, Provider, TimestampUnit};

const HMAC: Kind<'static> = Kind {
    signature: Place::Header(""),
    mark: "",
    algorithm: Algorithm::Sha256,
    encoding: Encoding::Hex,
    key: KeyForm::Text,
    key_prefix: KeyPrefix::Any,
    signed: "{body}",
    timestamp: None,
    only: None,
};

const NONE: Scheme<'static> = Scheme {
    kinds: [None, None],
    id: [None, None, None],
    ty: [[None, None], [None, None]],
    subject: None,
    form_field: None,
    body_digest: None,
    url: UrlForm::Plain,
    items: None,
    handshake: None,
};

const fn header(name: &'static str) -> Option<Place<'static>> {
    Some(Place::Header(name))
}

const fn pointer(pointer: &'static str) -> Option<Place<'static>> {
    Some(Place::Pointer(pointer))
}

/// The body, signed by HMAC-SHA256 in hex, in this header.
const fn body(signature: &'static str, mark: &'static str) -> Kind<'static> {
    Kind { signature: Place::Header(signature), mark, ..HMAC }
}

/// The seconds since the epoch in this header.
const fn seconds(name: &'static str) -> Option<(Place<'static>, TimestampUnit)> {
    Some((Place::Header(name), TimestampUnit::Seconds))
}

const fn one(kind: Kind<'static>) -> [Option<Kind<'static>>; 2] {
    [Some(kind), None]
}

const fn ty(place: Option<Place<'static>>) -> [[Option<Place<'static>>; 2]; 2] {
    [[place, None], [None, None]]
}

const fn id(place: Option<Place<'static>>) -> [Option<Place<'static>>; 3] {
    [place, None, None]
}

impl<'a> Scheme<'a> {
    /// The scheme of a provider.
    pub fn of(provider: &'a Provider) -> Self {
        match provider {
            Provider::Github => untimed::GITHUB,
            Provider::Gitlab => timed::GITLAB,
            Provider::Stripe => timed::STRIPE,
            Provider::Slack => timed::SLACK,
            Provider::Shopify => untimed::SHOPIFY,
            Provider::Twilio => untimed::TWILIO,
            Provider::StandardWebhooks => timed::STANDARD_WEBHOOKS,
            Provider::Svix => timed::SVIX,
            Provider::Discord => timed::DISCORD,
            Provider::Linear => timed::LINEAR,
            Provider::Pagerduty => untimed::PAGERDUTY,
            Provider::Zendesk => timed::ZENDESK,
            Provider::Square => untimed::SQUARE,
            Provider::Meta => untimed::META,
            Provider::Sendgrid => timed::SENDGRID,
            Provider::Paddle => timed::PADDLE,
            Provider::Hubspot => timed::HUBSPOT,
            Provider::Intercom => untimed::INTERCOM,
            Provider::Typeform => untimed::TYPEFORM,
            Provider::Calendly => timed::CALENDLY,
            Provider::Mailgun => timed::MAILGUN,
            Provider::Zoom => timed::ZOOM,
            Provider::Notion => untimed::NOTION,
            Provider::Sentry => untimed::SENTRY,
            Provider::Jira => untimed::JIRA,
            Provider::Docusign => untimed::DOCUSIGN,
            Provider::Sns => timed::SNS,
            Provider::Cloudevents => untimed::CLOUDEVENTS,
            Provider::Custom(custom) => Self::custom(custom),
        }
    }

    fn custom(custom: &'a CustomScheme) -> Self {
        let kind = Kind {
            signature: Place::signatures(&custom.signature),
            mark: &custom.prefix,
            algorithm: custom.algorithm,
            encoding: custom.encoding,
            key: custom.key,
            key_prefix: KeyPrefix::Any,
            signed: if custom.algorithm == Algorithm::Token { "{body}" } else { &custom.signed },
            timestamp: custom.timestamp.as_deref().map(|place| (Place::time(place), custom.timestamp_unit)),
            only: None,
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
            kinds: [Some(kind), None],
            id: [custom.id.as_ref().map(Place::of), None, None],
            ty: [[custom.ty.as_ref().map(Place::of), None], [None, None]],
            items,
            handshake: custom.challenge.as_deref().map(|at| Handshake::Echo { when: None, at }),
            ..NONE
        }
    }
}

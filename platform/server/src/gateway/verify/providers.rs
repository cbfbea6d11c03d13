//! The providers' schemes, each by the provider's SDK or documentation, and the one that a manifest declares.

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

const GITHUB: Scheme<'static> = Scheme {
    kinds: one(body("x-hub-signature-256", "sha256=")),
    id: id(header("x-github-delivery")),
    ty: [[header("x-github-event"), pointer("/action")], [None, None]],
    subject: pointer("/repository/full_name"),
    form_field: Some("payload"),
    ..NONE
};

const STANDARD: Kind<'static> = Kind {
    signature: Place::Header("webhook-signature"),
    mark: "v1,",
    encoding: Encoding::Base64,
    key: KeyForm::Base64,
    key_prefix: KeyPrefix::Optional("whsec_"),
    signed: "{id}.{timestamp}.{body}",
    timestamp: seconds("webhook-timestamp"),
    ..HMAC
};

const STANDARD_ED25519: Kind<'static> =
    Kind { mark: "v1a,", algorithm: Algorithm::Ed25519, key_prefix: KeyPrefix::Required("whpk_"), ..STANDARD };

const STANDARD_WEBHOOKS: Scheme<'static> = Scheme {
    kinds: [Some(STANDARD), Some(STANDARD_ED25519)],
    id: id(header("webhook-id")),
    ty: ty(pointer("/type")),
    ..NONE
};

const SVIX_SIGNATURE: Place<'static> = Place::Header("svix-signature");

const SVIX: Scheme<'static> = Scheme {
    kinds: [
        Some(Kind { signature: SVIX_SIGNATURE, timestamp: seconds("svix-timestamp"), ..STANDARD }),
        Some(Kind { signature: SVIX_SIGNATURE, timestamp: seconds("svix-timestamp"), ..STANDARD_ED25519 }),
    ],
    id: id(header("svix-id")),
    ..STANDARD_WEBHOOKS
};

const GITLAB: Scheme<'static> = Scheme {
    kinds: [
        Some(Kind { key_prefix: KeyPrefix::Required("whsec_"), ..STANDARD }),
        Some(Kind {
            signature: Place::Header("x-gitlab-token"),
            algorithm: Algorithm::Token,
            key_prefix: KeyPrefix::Without("whsec_"),
            ..HMAC
        }),
    ],
    id: [header("webhook-id"), header("idempotency-key"), header("x-gitlab-event-uuid")],
    ty: ty(header("x-gitlab-event")),
    subject: pointer("/project/path_with_namespace"),
    ..NONE
};

const STRIPE: Scheme<'static> = Scheme {
    kinds: one(Kind {
        signed: "{timestamp}.{body}",
        timestamp: Some((Place::Part("stripe-signature", "t"), TimestampUnit::Seconds)),
        ..body("stripe-signature", "v1=")
    }),
    id: id(pointer("/id")),
    ty: ty(pointer("/type")),
    subject: pointer("/data/object/id"),
    ..NONE
};

const SLACK: Scheme<'static> = Scheme {
    kinds: one(Kind {
        signed: "v0:{timestamp}:{body}",
        timestamp: seconds("x-slack-request-timestamp"),
        ..body("x-slack-signature", "v0=")
    }),
    id: id(pointer("/event_id")),
    ty: [[pointer("/event/type"), None], [pointer("/type"), None]],
    subject: pointer("/event/channel"),
    form_field: Some("payload"),
    handshake: Some(Handshake::Echo { when: Some(("/type", "url_verification")), at: "/challenge" }),
    ..NONE
};

const SHOPIFY: Scheme<'static> = Scheme {
    kinds: one(Kind { encoding: Encoding::Base64, ..body("x-shopify-hmac-sha256", "") }),
    id: id(header("x-shopify-webhook-id")),
    ty: ty(header("x-shopify-topic")),
    subject: header("x-shopify-shop-domain"),
    ..NONE
};

const TWILIO: Scheme<'static> = Scheme {
    kinds: one(Kind {
        algorithm: Algorithm::Sha1,
        encoding: Encoding::Base64,
        signed: "{url}{form}",
        ..body("x-twilio-signature", "")
    }),
    id: id(header("i-twilio-idempotency-token")),
    body_digest: Some("bodySHA256"),
    url: UrlForm::AnyPort,
    ..NONE
};

const DISCORD: Scheme<'static> = Scheme {
    kinds: one(Kind {
        algorithm: Algorithm::Ed25519,
        key: KeyForm::Hex,
        signed: "{timestamp}{body}",
        timestamp: seconds("x-signature-timestamp"),
        ..body("x-signature-ed25519", "")
    }),
    id: id(pointer("/id")),
    ty: [[pointer("/event/type"), None], [pointer("/type"), None]],
    handshake: Some(Handshake::Discord),
    ..NONE
};

const LINEAR: Scheme<'static> = Scheme {
    kinds: one(Kind {
        timestamp: Some((Place::Pointer("/webhookTimestamp"), TimestampUnit::Milliseconds)),
        ..body("linear-signature", "")
    }),
    id: id(header("linear-delivery")),
    ty: [[header("linear-event"), pointer("/action")], [None, None]],
    subject: pointer("/data/id"),
    ..NONE
};

const PAGERDUTY: Scheme<'static> = Scheme {
    kinds: one(body("x-pagerduty-signature", "v1=")),
    id: id(pointer("/event/id")),
    ty: ty(pointer("/event/event_type")),
    subject: pointer("/event/data/id"),
    ..NONE
};

const ZENDESK: Scheme<'static> = Scheme {
    kinds: one(Kind {
        encoding: Encoding::Base64,
        signed: "{timestamp}{body}",
        timestamp: Some((Place::Header("x-zendesk-webhook-signature-timestamp"), TimestampUnit::Rfc3339)),
        ..body("x-zendesk-webhook-signature", "")
    }),
    id: id(header("x-zendesk-webhook-invocation-id")),
    ty: ty(pointer("/type")),
    subject: pointer("/subject"),
    ..NONE
};

const SQUARE: Scheme<'static> = Scheme {
    kinds: one(Kind { encoding: Encoding::Base64, signed: "{url}{body}", ..body("x-square-hmacsha256-signature", "") }),
    id: id(pointer("/event_id")),
    ty: ty(pointer("/type")),
    subject: pointer("/data/id"),
    ..NONE
};

const META: Scheme<'static> = Scheme {
    kinds: one(body("x-hub-signature-256", "sha256=")),
    ty: [[pointer("/object"), pointer("/entry/0/changes/0/field")], [None, None]],
    subject: pointer("/entry/0/id"),
    handshake: Some(Handshake::Meta),
    ..NONE
};

const SENDGRID: Scheme<'static> = Scheme {
    kinds: one(Kind {
        algorithm: Algorithm::EcdsaP256,
        encoding: Encoding::Base64,
        signed: "{timestamp}{body}",
        timestamp: seconds("x-twilio-email-event-webhook-timestamp"),
        ..body("x-twilio-email-event-webhook-signature", "")
    }),
    items: Some(Items { at: "", id: [Some("/sg_event_id"), None, None], ty: Some("/event") }),
    ..NONE
};

const PADDLE: Scheme<'static> = Scheme {
    kinds: one(Kind {
        signed: "{timestamp}:{body}",
        timestamp: Some((Place::Part("paddle-signature", "ts"), TimestampUnit::Seconds)),
        ..body("paddle-signature", "h1=")
    }),
    id: id(pointer("/event_id")),
    ty: ty(pointer("/event_type")),
    subject: pointer("/data/id"),
    ..NONE
};

const HUBSPOT: Scheme<'static> = Scheme {
    kinds: one(Kind {
        encoding: Encoding::Base64,
        signed: "{method}{url}{body}{timestamp}",
        timestamp: Some((Place::Header("x-hubspot-request-timestamp"), TimestampUnit::Milliseconds)),
        ..body("x-hubspot-signature-v3", "")
    }),
    url: UrlForm::Decoded,
    // By HubSpot's word an eventId alone is not unique.
    items: Some(Items {
        at: "",
        id: [Some("/eventId"), Some("/subscriptionId"), Some("/objectId")],
        ty: Some("/subscriptionType"),
    }),
    ..NONE
};

const INTERCOM: Scheme<'static> = Scheme {
    kinds: one(Kind { algorithm: Algorithm::Sha1, ..body("x-hub-signature", "sha1=") }),
    id: id(pointer("/id")),
    ty: ty(pointer("/topic")),
    subject: pointer("/data/item/id"),
    ..NONE
};

const TYPEFORM: Scheme<'static> = Scheme {
    kinds: one(Kind { encoding: Encoding::Base64, ..body("typeform-signature", "sha256=") }),
    id: id(pointer("/event_id")),
    ty: ty(pointer("/event_type")),
    subject: pointer("/form_response/form_id"),
    ..NONE
};

const CALENDLY: Scheme<'static> = Scheme {
    kinds: one(Kind {
        signed: "{timestamp}.{body}",
        timestamp: Some((Place::Part("calendly-webhook-signature", "t"), TimestampUnit::Seconds)),
        ..body("calendly-webhook-signature", "v1=")
    }),
    ty: ty(pointer("/event")),
    subject: pointer("/payload/uri"),
    ..NONE
};

const MAILGUN: Scheme<'static> = Scheme {
    kinds: one(Kind {
        signature: Place::Pointer("/signature/signature"),
        signed: "{timestamp}{id}",
        timestamp: Some((Place::Pointer("/signature/timestamp"), TimestampUnit::Seconds)),
        ..HMAC
    }),
    id: id(pointer("/signature/token")),
    ty: ty(pointer("/event-data/event")),
    subject: pointer("/event-data/recipient"),
    ..NONE
};

const ZOOM: Scheme<'static> = Scheme {
    kinds: one(Kind {
        signed: "v0:{timestamp}:{body}",
        timestamp: seconds("x-zm-request-timestamp"),
        ..body("x-zm-signature", "v0=")
    }),
    ty: ty(pointer("/event")),
    subject: pointer("/payload/object/id"),
    handshake: Some(Handshake::Zoom { when: ("/event", "endpoint.url_validation"), at: "/payload/plainToken" }),
    ..NONE
};

const NOTION: Scheme<'static> = Scheme {
    kinds: one(body("x-notion-signature", "sha256=")),
    id: id(pointer("/id")),
    ty: ty(pointer("/type")),
    subject: pointer("/entity/id"),
    handshake: Some(Handshake::Notion { at: "/verification_token" }),
    ..NONE
};

const SENTRY: Scheme<'static> = Scheme {
    kinds: one(body("sentry-hook-signature", "")),
    id: id(header("request-id")),
    ty: [[header("sentry-hook-resource"), pointer("/action")], [None, None]],
    ..NONE
};

const JIRA: Scheme<'static> = Scheme {
    kinds: one(body("x-hub-signature", "sha256=")),
    id: id(header("x-atlassian-webhook-identifier")),
    ty: ty(pointer("/webhookEvent")),
    subject: pointer("/issue/key"),
    ..NONE
};

const DOCUSIGN: Scheme<'static> = Scheme {
    kinds: one(Kind { signature: Place::Numbered("x-docusign-signature-"), encoding: Encoding::Base64, ..HMAC }),
    ty: ty(pointer("/event")),
    subject: pointer("/data/envelopeId"),
    ..NONE
};

const SNS_2: Kind<'static> = Kind {
    signature: Place::Pointer("/Signature"),
    algorithm: Algorithm::RsaSha256,
    encoding: Encoding::Base64,
    key_prefix: KeyPrefix::Certificate,
    signed: "{sns}",
    timestamp: Some((Place::Pointer("/Timestamp"), TimestampUnit::Rfc3339)),
    only: Some(("/SignatureVersion", "2")),
    ..HMAC
};

const SNS: Scheme<'static> = Scheme {
    kinds: [Some(SNS_2), Some(Kind { algorithm: Algorithm::RsaSha1, only: Some(("/SignatureVersion", "1")), ..SNS_2 })],
    id: id(pointer("/MessageId")),
    ty: ty(pointer("/Type")),
    subject: pointer("/TopicArn"),
    handshake: Some(Handshake::Sns),
    ..NONE
};

const CLOUDEVENTS: Scheme<'static> = Scheme {
    kinds: one(Kind { algorithm: Algorithm::Token, ..body("authorization", "Bearer ") }),
    id: id(header("ce-id")),
    ty: ty(header("ce-type")),
    handshake: Some(Handshake::CloudEvents),
    ..NONE
};

impl<'a> Scheme<'a> {
    /// The scheme of a provider.
    pub(crate) fn of(provider: &'a Provider) -> Self {
        match provider {
            Provider::Github => GITHUB,
            Provider::Gitlab => GITLAB,
            Provider::Stripe => STRIPE,
            Provider::Slack => SLACK,
            Provider::Shopify => SHOPIFY,
            Provider::Twilio => TWILIO,
            Provider::StandardWebhooks => STANDARD_WEBHOOKS,
            Provider::Svix => SVIX,
            Provider::Discord => DISCORD,
            Provider::Linear => LINEAR,
            Provider::Pagerduty => PAGERDUTY,
            Provider::Zendesk => ZENDESK,
            Provider::Square => SQUARE,
            Provider::Meta => META,
            Provider::Sendgrid => SENDGRID,
            Provider::Paddle => PADDLE,
            Provider::Hubspot => HUBSPOT,
            Provider::Intercom => INTERCOM,
            Provider::Typeform => TYPEFORM,
            Provider::Calendly => CALENDLY,
            Provider::Mailgun => MAILGUN,
            Provider::Zoom => ZOOM,
            Provider::Notion => NOTION,
            Provider::Sentry => SENTRY,
            Provider::Jira => JIRA,
            Provider::Docusign => DOCUSIGN,
            Provider::Sns => SNS,
            Provider::Cloudevents => CLOUDEVENTS,
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

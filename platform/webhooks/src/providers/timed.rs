//! Providers that sign the time, so that a delivery cannot be replayed for longer than the source's tolerance.

use super::{
    super::scheme::{Handshake, Items, KeyPrefix, Kind, Place, Scheme, UrlForm},
    HMAC, NONE, body, header, id, one, pointer, seconds, ty,
};
use nerve_core::manifest::{Algorithm, Encoding, KeyForm, TimestampUnit};

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

pub(super) const STANDARD_WEBHOOKS: Scheme<'static> = Scheme {
    kinds: [Some(STANDARD), Some(STANDARD_ED25519)],
    id: id(header("webhook-id")),
    ty: ty(pointer("/type")),
    ..NONE
};

const SVIX_SIGNATURE: Place<'static> = Place::Header("svix-signature");

pub(super) const SVIX: Scheme<'static> = Scheme {
    kinds: [
        Some(Kind { signature: SVIX_SIGNATURE, timestamp: seconds("svix-timestamp"), ..STANDARD }),
        Some(Kind { signature: SVIX_SIGNATURE, timestamp: seconds("svix-timestamp"), ..STANDARD_ED25519 }),
    ],
    id: id(header("svix-id")),
    ..STANDARD_WEBHOOKS
};

pub(super) const GITLAB: Scheme<'static> = Scheme {
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

pub(super) const STRIPE: Scheme<'static> = Scheme {
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

pub(super) const SLACK: Scheme<'static> = Scheme {
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

pub(super) const DISCORD: Scheme<'static> = Scheme {
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

pub(super) const LINEAR: Scheme<'static> = Scheme {
    kinds: one(Kind {
        timestamp: Some((Place::Pointer("/webhookTimestamp"), TimestampUnit::Milliseconds)),
        ..body("linear-signature", "")
    }),
    id: id(header("linear-delivery")),
    ty: [[header("linear-event"), pointer("/action")], [None, None]],
    subject: pointer("/data/id"),
    ..NONE
};

pub(super) const ZENDESK: Scheme<'static> = Scheme {
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

pub(super) const SENDGRID: Scheme<'static> = Scheme {
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

pub(super) const PADDLE: Scheme<'static> = Scheme {
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

pub(super) const HUBSPOT: Scheme<'static> = Scheme {
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

pub(super) const CALENDLY: Scheme<'static> = Scheme {
    kinds: one(Kind {
        signed: "{timestamp}.{body}",
        timestamp: Some((Place::Part("calendly-webhook-signature", "t"), TimestampUnit::Seconds)),
        ..body("calendly-webhook-signature", "v1=")
    }),
    ty: ty(pointer("/event")),
    subject: pointer("/payload/uri"),
    ..NONE
};

pub(super) const MAILGUN: Scheme<'static> = Scheme {
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

pub(super) const ZOOM: Scheme<'static> = Scheme {
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

pub(super) const SNS: Scheme<'static> = Scheme {
    kinds: [Some(SNS_2), Some(Kind { algorithm: Algorithm::RsaSha1, only: Some(("/SignatureVersion", "1")), ..SNS_2 })],
    id: id(pointer("/MessageId")),
    ty: ty(pointer("/Type")),
    subject: pointer("/TopicArn"),
    handshake: Some(Handshake::Sns),
    ..NONE
};

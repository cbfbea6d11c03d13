//! Providers that sign no time: only what is remembered tells a replay.

use super::{
    super::scheme::{Handshake, Kind, Place, Scheme, UrlForm},
    HMAC, NONE, body, header, id, one, pointer, ty,
};
use nerve_core::manifest::{Algorithm, Encoding};

pub(super) const GITHUB: Scheme<'static> = Scheme {
    kinds: one(body("x-hub-signature-256", "sha256=")),
    id: id(header("x-github-delivery")),
    ty: [[header("x-github-event"), pointer("/action")], [None, None]],
    subject: pointer("/repository/full_name"),
    form_field: Some("payload"),
    ..NONE
};

pub(super) const SHOPIFY: Scheme<'static> = Scheme {
    kinds: one(Kind { encoding: Encoding::Base64, ..body("x-shopify-hmac-sha256", "") }),
    id: id(header("x-shopify-webhook-id")),
    ty: ty(header("x-shopify-topic")),
    subject: header("x-shopify-shop-domain"),
    ..NONE
};

pub(super) const TWILIO: Scheme<'static> = Scheme {
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

pub(super) const PAGERDUTY: Scheme<'static> = Scheme {
    kinds: one(body("x-pagerduty-signature", "v1=")),
    id: id(pointer("/event/id")),
    ty: ty(pointer("/event/event_type")),
    subject: pointer("/event/data/id"),
    ..NONE
};

pub(super) const SQUARE: Scheme<'static> = Scheme {
    kinds: one(Kind { encoding: Encoding::Base64, signed: "{url}{body}", ..body("x-square-hmacsha256-signature", "") }),
    id: id(pointer("/event_id")),
    ty: ty(pointer("/type")),
    subject: pointer("/data/id"),
    ..NONE
};

pub(super) const META: Scheme<'static> = Scheme {
    kinds: one(body("x-hub-signature-256", "sha256=")),
    ty: [[pointer("/object"), pointer("/entry/0/changes/0/field")], [None, None]],
    subject: pointer("/entry/0/id"),
    handshake: Some(Handshake::Meta),
    ..NONE
};

pub(super) const INTERCOM: Scheme<'static> = Scheme {
    kinds: one(Kind { algorithm: Algorithm::Sha1, ..body("x-hub-signature", "sha1=") }),
    id: id(pointer("/id")),
    ty: ty(pointer("/topic")),
    subject: pointer("/data/item/id"),
    ..NONE
};

pub(super) const TYPEFORM: Scheme<'static> = Scheme {
    kinds: one(Kind { encoding: Encoding::Base64, ..body("typeform-signature", "sha256=") }),
    id: id(pointer("/event_id")),
    ty: ty(pointer("/event_type")),
    subject: pointer("/form_response/form_id"),
    ..NONE
};

pub(super) const NOTION: Scheme<'static> = Scheme {
    kinds: one(body("x-notion-signature", "sha256=")),
    id: id(pointer("/id")),
    ty: ty(pointer("/type")),
    subject: pointer("/entity/id"),
    handshake: Some(Handshake::Notion { at: "/verification_token" }),
    ..NONE
};

pub(super) const SENTRY: Scheme<'static> = Scheme {
    kinds: one(body("sentry-hook-signature", "")),
    id: id(header("request-id")),
    ty: [[header("sentry-hook-resource"), pointer("/action")], [None, None]],
    ..NONE
};

pub(super) const JIRA: Scheme<'static> = Scheme {
    kinds: one(body("x-hub-signature", "sha256=")),
    id: id(header("x-atlassian-webhook-identifier")),
    ty: ty(pointer("/webhookEvent")),
    subject: pointer("/issue/key"),
    ..NONE
};

pub(super) const DOCUSIGN: Scheme<'static> = Scheme {
    kinds: one(Kind { signature: Place::Numbered("x-docusign-signature-"), encoding: Encoding::Base64, ..HMAC }),
    ty: ty(pointer("/event")),
    subject: pointer("/data/envelopeId"),
    ..NONE
};

pub(super) const CLOUDEVENTS: Scheme<'static> = Scheme {
    kinds: one(Kind { algorithm: Algorithm::Token, ..body("authorization", "Bearer ") }),
    id: id(header("ce-id")),
    ty: ty(header("ce-type")),
    handshake: Some(Handshake::CloudEvents),
    ..NONE
};

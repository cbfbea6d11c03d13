//! `[source.NAME]`: a webhook source.

use super::{CustomScheme, Network, Rate};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A webhook source: who posts to `/hooks/NAME`, and how that is verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceSpec {
    /// The scheme.
    pub provider: Provider,
    /// Names of secrets, any of which may have signed; several while rotating.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// How far a signed time may be from now, where the scheme signs one.
    #[serde(with = "crate::manifest::millis")]
    pub tolerance: Duration,
    /// The URL as the sender knows it, where the scheme signs the URL; when none, what the gateway can tell of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
    /// Whether signatures are checked.
    #[serde(default)]
    pub verify: Verify,
    /// What makes two deliveries one; the provider's own way when none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe: Option<Dedupe>,
    /// What an id of the sender's names; what the provider's do when none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Ids>,
    /// The name of the secret that a sender who asks whether the URL is ours must know (Meta's verify token).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_token: Option<String>,
    /// The ARNs of the SNS topics that are heard: anybody can make a topic, and AWS signs for all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<String>,
    /// Whether deliveries wait on the gateway's disk, answered 2xx, while the broker is away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spool: bool,
    /// The most verified deliveries in a time, a gateway; no bound when none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Verified deliveries that are being stored at once, a gateway; no bound when none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// The networks that may post; every one when none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Network>,
    /// Largest body, in bytes; what the gateway takes when none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body: Option<u64>,
}

impl SourceSpec {
    /// A source of this provider with its defaults, and no secret yet.
    pub fn new(provider: Provider) -> Self {
        Self {
            tolerance: provider.tolerance(),
            provider,
            secrets: Vec::new(),
            public_url: None,
            verify: Verify::Signature,
            dedupe: None,
            ids: None,
            verify_token: None,
            topics: Vec::new(),
            spool: false,
            rate: None,
            concurrency: None,
            allow: Vec::new(),
            max_body: None,
        }
    }

    /// Whether it must be known which URL the sender posts to.
    pub fn needs_url(&self) -> bool {
        let signed = match &self.provider {
            Provider::Custom(scheme) => scheme.signed.contains("{url}"),
            provider => provider.signs_url(),
        };
        signed && self.verify == Verify::Signature
    }

    /// What makes two deliveries one.
    pub fn dedupe(&self) -> Dedupe {
        self.dedupe.unwrap_or_else(|| self.provider.dedupe())
    }

    /// What an id of the sender's names.
    pub fn ids(&self) -> Ids {
        let unsigned = self.verify == Verify::None && matches!(self.provider, Provider::Custom(_));
        self.ids.unwrap_or_else(|| if unsigned { Ids::Reused } else { self.provider.ids() })
    }
}

/// What makes two deliveries one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dedupe {
    /// Nothing: every delivery is an event of its own.
    None,
    /// The same id. What is signed may come again under another one, as honest senders do whose signature covers
    /// neither a time nor an id.
    Id,
    /// The same id, or the same signed bytes: those under another id are a replay, and refused.
    Signed,
}

impl Dedupe {
    /// The name in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Id => "id",
            Self::Signed => "signed",
        }
    }
}

/// What an id of the sender's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ids {
    /// One delivery. The same id with another body is the same delivery, sent again.
    Unique,
    /// Whatever the sender likes, such as an order: the same id with another body is another delivery.
    Reused,
}

impl Ids {
    /// The name in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unique => "unique",
            Self::Reused => "reused",
        }
    }
}

/// Whether signatures are checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// They are; a source without a secret is refused.
    #[default]
    Signature,
    /// They are not: anybody who knows the URL can post.
    None,
}

/// A webhook scheme.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    /// GitHub.
    Github,
    /// GitLab, by its signing token or by its secret token.
    Gitlab,
    /// Stripe.
    Stripe,
    /// Slack.
    Slack,
    /// Shopify.
    Shopify,
    /// Twilio.
    Twilio,
    /// Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`.
    StandardWebhooks,
    /// Svix: Standard Webhooks with `svix-*` headers.
    Svix,
    /// Discord.
    Discord,
    /// Linear.
    Linear,
    /// PagerDuty.
    Pagerduty,
    /// Zendesk.
    Zendesk,
    /// Square.
    Square,
    /// Meta: Facebook, Instagram, WhatsApp.
    Meta,
    /// SendGrid.
    Sendgrid,
    /// Paddle.
    Paddle,
    /// HubSpot.
    Hubspot,
    /// Intercom.
    Intercom,
    /// Typeform.
    Typeform,
    /// Calendly.
    Calendly,
    /// Mailgun.
    Mailgun,
    /// Zoom.
    Zoom,
    /// Notion.
    Notion,
    /// Sentry.
    Sentry,
    /// Jira.
    Jira,
    /// DocuSign.
    Docusign,
    /// Amazon SNS.
    Sns,
    /// CloudEvents over HTTP, with a bearer token.
    Cloudevents,
    /// A scheme declared in the table.
    Custom(Box<CustomScheme>),
}

impl Provider {
    /// Every provider whose scheme is built in.
    pub const BUILT_IN: &[Self] = &[
        Self::Github,
        Self::Gitlab,
        Self::Stripe,
        Self::Slack,
        Self::Shopify,
        Self::Twilio,
        Self::StandardWebhooks,
        Self::Svix,
        Self::Discord,
        Self::Linear,
        Self::Pagerduty,
        Self::Zendesk,
        Self::Square,
        Self::Meta,
        Self::Sendgrid,
        Self::Paddle,
        Self::Hubspot,
        Self::Intercom,
        Self::Typeform,
        Self::Calendly,
        Self::Mailgun,
        Self::Zoom,
        Self::Notion,
        Self::Sentry,
        Self::Jira,
        Self::Docusign,
        Self::Sns,
        Self::Cloudevents,
    ];

    /// The provider's name in a manifest.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Github => "github",
            Self::Gitlab => "gitlab",
            Self::Stripe => "stripe",
            Self::Slack => "slack",
            Self::Shopify => "shopify",
            Self::Twilio => "twilio",
            Self::StandardWebhooks => "standard-webhooks",
            Self::Svix => "svix",
            Self::Discord => "discord",
            Self::Linear => "linear",
            Self::Pagerduty => "pagerduty",
            Self::Zendesk => "zendesk",
            Self::Square => "square",
            Self::Meta => "meta",
            Self::Sendgrid => "sendgrid",
            Self::Paddle => "paddle",
            Self::Hubspot => "hubspot",
            Self::Intercom => "intercom",
            Self::Typeform => "typeform",
            Self::Calendly => "calendly",
            Self::Mailgun => "mailgun",
            Self::Zoom => "zoom",
            Self::Notion => "notion",
            Self::Sentry => "sentry",
            Self::Jira => "jira",
            Self::Docusign => "docusign",
            Self::Sns => "sns",
            Self::Cloudevents => "cloudevents",
            Self::Custom(_) => "custom",
        }
    }

    /// The built-in provider of this name.
    pub fn built_in(name: &str) -> Option<Self> {
        Self::BUILT_IN.iter().find(|provider| provider.name() == name).cloned()
    }

    /// How far a signed time may be from now, unless the source says otherwise.
    pub fn tolerance(&self) -> Duration {
        let seconds = match self {
            Self::Linear | Self::Paddle => 60,
            Self::Calendly => 180,
            // Its sending is late at times, and a token is taken once only.
            Self::Mailgun => 15 * 60,
            // It signs when the message was published, and tries for six hours to deliver it.
            Self::Sns => 7 * 3600,
            // As Standard Webhooks recommends.
            _ => 300,
        };
        Duration::from_secs(seconds)
    }

    /// Whether the scheme signs the URL it posts to, so that it must be known which it is.
    pub fn signs_url(&self) -> bool {
        matches!(self, Self::Twilio | Self::Square | Self::Hubspot)
    }

    /// What makes two deliveries one, unless the source says otherwise.
    pub fn dedupe(&self) -> Dedupe {
        match self {
            // What these sign may be the same for two things that happened, and the id is a header.
            Self::Github
            | Self::Gitlab
            | Self::Shopify
            | Self::Twilio
            | Self::Sentry
            | Self::Jira
            | Self::Cloudevents => Dedupe::Id,
            Self::Custom(scheme) if !scheme.signs_time_or_id() => Dedupe::Id,
            _ => Dedupe::Signed,
        }
    }

    /// What an id of this provider's names, unless the source says otherwise.
    pub fn ids(&self) -> Ids {
        match self {
            // One of its ids, `X-Gitlab-Event-UUID`, is shared by the webhooks that one webhook led to.
            Self::Gitlab => Ids::Reused,
            // Only an id that is signed together with the body was made for the delivery.
            Self::Custom(scheme) if !scheme.signed.contains("{id}") => Ids::Reused,
            // Documented as unique to an event; of some, the body holds a count of attempts or the time of sending.
            _ => Ids::Unique,
        }
    }
}

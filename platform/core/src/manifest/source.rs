//! `[source.NAME]`: a webhook source.

use super::{CustomScheme, Network, Rate};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A webhook source: the sender of `/hooks/NAME` and its verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceSpec {
    /// The provider's signature scheme.
    pub provider: Provider,
    /// Names of the accepted signing secrets, several during a rotation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Maximum difference between a signed timestamp and the current time.
    #[serde(with = "crate::manifest::millis")]
    pub tolerance: Duration,
    /// The sender's URL of this source, for schemes that sign the URL; derived from the request if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
    /// Whether signatures are checked.
    #[serde(default)]
    pub verify: Verify,
    /// Definition of a duplicate delivery; the provider's default if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe: Option<Dedupe>,
    /// Scope of the sender's ids; the provider's default if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Ids>,
    /// Name of the secret for the sender's URL verification (Meta's verify token).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_token: Option<String>,
    /// ARNs of the accepted SNS topics. Required, because AWS signs the messages of all topics of all accounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<String>,
    /// Whether the gateway accepts deliveries to its disk while the broker is unavailable.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spool: bool,
    /// Maximum rate of verified deliveries per gateway; unlimited if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Maximum verified deliveries being stored concurrently, per gateway; unlimited if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// Allowed networks of the sender; all if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Network>,
    /// Maximum body size in bytes; the gateway's limit if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body: Option<u64>,
}

impl SourceSpec {
    /// Creates a source with the provider's defaults and no secret.
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

    /// Whether verification requires the URL that the sender posts to.
    pub fn needs_url(&self) -> bool {
        let signed = match &self.provider {
            Provider::Custom(scheme) => scheme.signed.contains("{url}"),
            provider => provider.signs_url(),
        };
        signed && self.verify == Verify::Signature
    }

    /// Definition of a duplicate delivery.
    pub fn dedupe(&self) -> Dedupe {
        self.dedupe.unwrap_or_else(|| self.provider.dedupe())
    }

    /// Scope of the sender's ids.
    pub fn ids(&self) -> Ids {
        let unsigned = self.verify == Verify::None && matches!(self.provider, Provider::Custom(_));
        self.ids.unwrap_or_else(|| if unsigned { Ids::Reused } else { self.provider.ids() })
    }
}

/// Definition of a duplicate delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dedupe {
    /// None: every delivery is a separate event.
    None,
    /// The same id. The same signed bytes under another id are a new delivery: some signatures cover neither a
    /// timestamp nor an id.
    Id,
    /// The same id or the same signed bytes. The same signed bytes under another id are rejected as a replay.
    Signed,
}

impl Dedupe {
    /// Name in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Id => "id",
            Self::Signed => "signed",
        }
    }
}

/// Scope of the sender's ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ids {
    /// Unique per delivery. The same id with another body is a redelivery.
    Unique,
    /// Not unique, such as an order number. The same id with another body is another delivery.
    Reused,
}

impl Ids {
    /// Name in a manifest.
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
    /// Signatures are checked; a source without a secret is rejected.
    #[default]
    Signature,
    /// Signatures are not checked: anyone who knows the URL can post.
    None,
}

/// A webhook scheme.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    /// GitHub.
    Github,
    /// GitLab, with a signing token or a secret token.
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
    /// All providers with a built-in scheme.
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

    /// Name of the provider in a manifest.
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

    /// Returns the built-in provider of this name.
    pub fn built_in(name: &str) -> Option<Self> {
        Self::BUILT_IN.iter().find(|provider| provider.name() == name).cloned()
    }

    /// Default maximum difference between a signed timestamp and the current time.
    pub fn tolerance(&self) -> Duration {
        let seconds = match self {
            Self::Linear | Self::Paddle => 60,
            Self::Calendly => 180,
            // Deliveries may be late, and a token is accepted only once.
            Self::Mailgun => 15 * 60,
            // The timestamp is the time of publication, and deliveries are retried for six hours.
            Self::Sns => 7 * 3600,
            // Recommended by Standard Webhooks.
            _ => 300,
        };
        Duration::from_secs(seconds)
    }

    /// Whether the signature covers the URL.
    pub fn signs_url(&self) -> bool {
        matches!(self, Self::Twilio | Self::Square | Self::Hubspot)
    }

    /// Default definition of a duplicate delivery.
    pub fn dedupe(&self) -> Dedupe {
        match self {
            // Different events may have the same signed bytes, and the id is in a header.
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

    /// Default scope of the sender's ids.
    pub fn ids(&self) -> Ids {
        match self {
            // Webhooks caused by one webhook share the id `X-Gitlab-Event-UUID`.
            Self::Gitlab => Ids::Reused,
            // Only an id that is signed with the body is unique to the delivery.
            Self::Custom(scheme) if !scheme.signed.contains("{id}") => Ids::Reused,
            // Documented as unique per event. Some bodies contain an attempt count or the time of sending.
            _ => Ids::Unique,
        }
    }
}

//! `[source.NAME]`: a webhook source.

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
    /// The URL as the sender knows it, where the scheme signs the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
    /// Whether signatures are checked.
    #[serde(default)]
    pub verify: Verify,
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
    /// GitHub: `X-Hub-Signature-256`.
    Github,
    /// Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`.
    StandardWebhooks,
    /// Svix: Standard Webhooks with `svix-*` headers.
    Svix,
    /// A scheme declared in the table.
    Custom(CustomScheme),
}

impl Provider {
    /// The provider's name in a manifest.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Github => "github",
            Self::StandardWebhooks => "standard-webhooks",
            Self::Svix => "svix",
            Self::Custom(_) => "custom",
        }
    }
}

/// A signature scheme in data: enough for what a description can say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomScheme {
    /// The header that holds the signature, or several separated by commas or spaces.
    pub signature: String,
    /// What stands before each signature in the header, such as `sha256=` or `v1,`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// What is signed: a template over `{body}`, `{timestamp}`, `{id}` and `{url}`.
    pub signed: String,
    /// How it is signed.
    pub algorithm: Algorithm,
    /// How the signature is written.
    pub encoding: Encoding,
    /// How the secret is written.
    #[serde(default)]
    pub key: KeyForm,
    /// The header that holds the signed time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// The unit of that time.
    #[serde(default)]
    pub timestamp_unit: TimestampUnit,
    /// Where the delivery's id is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Locator>,
    /// Where the event's type is.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub ty: Option<Locator>,
}

/// Where in a request a value is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Locator {
    /// In this header.
    Header(String),
    /// At this JSON pointer (RFC 6901) in the body.
    Pointer(String),
}

/// A signature algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// HMAC with SHA-1, for senders that offer nothing better.
    Sha1,
    /// HMAC with SHA-256.
    Sha256,
    /// HMAC with SHA-512.
    Sha512,
    /// Ed25519: the secret is the sender's public key.
    Ed25519,
}

/// How bytes are written as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Hexadecimal, either case.
    Hex,
    /// Base64, standard alphabet, padded.
    Base64,
}

/// How a secret is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyForm {
    /// The secret's own bytes are the key.
    #[default]
    Text,
    /// The key is the secret decoded from hexadecimal.
    Hex,
    /// The key is the secret decoded from base64, after any prefix that ends in `_` (as `whsec_`).
    Base64,
}

/// The unit of a signed time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimestampUnit {
    /// Seconds since the epoch.
    #[default]
    #[serde(rename = "s")]
    Seconds,
    /// Milliseconds since the epoch.
    #[serde(rename = "ms")]
    Milliseconds,
}

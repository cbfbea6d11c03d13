//! A signature scheme that a source declares.

use serde::{Deserialize, Serialize};

/// A signature scheme in data: enough for what a description can say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomScheme {
    /// Where the signature is, or several: in this header, in all headers that begin so (`X-Signature-*`), or at this
    /// JSON pointer.
    pub signature: String,
    /// What stands before each signature in the header, such as `sha256=` or `v1,`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// What is signed: a template over `{body}`, `{timestamp}`, `{id}`, `{url}`, `{method}` and `{form}`; empty for a
    /// token.
    pub signed: String,
    /// How it is signed.
    pub algorithm: Algorithm,
    /// How the signature is written.
    pub encoding: Encoding,
    /// How the secret is written.
    #[serde(default)]
    pub key: KeyForm,
    /// Where the signed time is: in this header, in a part of it (`X-Signature:t` for `t=…,v1=…`), or at this JSON
    /// pointer.
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
    /// The JSON pointer of the array whose items become one event each (`.`: the body is the array); the pointers of id
    /// and type then begin at the item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<String>,
    /// A verified body with a value at this JSON pointer asks whether the URL is ours: it is answered
    /// `{"<last token>": value}`, and is no event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenge: Option<String>,
}

impl CustomScheme {
    /// Whether the signature covers a time or an id, which nobody else can change.
    pub(super) fn signs_time_or_id(&self) -> bool {
        self.signed.contains("{timestamp}") || self.signed.contains("{id}")
    }
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
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// HMAC with SHA-1, for senders that offer nothing better.
    Sha1,
    /// HMAC with SHA-256.
    Sha256,
    /// HMAC with SHA-512.
    Sha512,
    /// Ed25519: the secret is the sender's public key.
    Ed25519,
    /// ECDSA on P-256 with SHA-256, the signature in DER: the secret is the sender's public key, as PEM or its base64.
    EcdsaP256,
    /// RSA (PKCS #1 v1.5) with SHA-1, as old SNS topics sign: the secret is the sender's public key.
    RsaSha1,
    /// RSA (PKCS #1 v1.5) with SHA-256: the secret is the sender's public key, as PEM or its base64.
    RsaSha256,
    /// None: the header holds the secret itself.
    Token,
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

/// How a signed time is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimestampUnit {
    /// Seconds since the epoch.
    #[default]
    #[serde(rename = "s")]
    Seconds,
    /// Milliseconds since the epoch.
    #[serde(rename = "ms")]
    Milliseconds,
    /// A date and time such as `2026-01-31T12:00:00Z` (RFC 3339).
    #[serde(rename = "rfc3339")]
    Rfc3339,
}

//! A signature scheme declared in a manifest.

use serde::{Deserialize, Serialize};

/// A declarative signature scheme.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomScheme {
    /// Location of the signatures: a header, a header prefix (`X-Signature-*`) or a JSON pointer.
    pub signature: String,
    /// Prefix of each signature in the header, such as `sha256=` or `v1,`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// Template of the signed payload, with `{body}`, `{timestamp}`, `{id}`, `{url}`, `{method}` and `{form}`; empty
    /// for a token.
    pub signed: String,
    /// The signature algorithm.
    pub algorithm: Algorithm,
    /// Encoding of the signature.
    pub encoding: Encoding,
    /// Encoding of the secret.
    #[serde(default)]
    pub key: KeyForm,
    /// Location of the signed timestamp: a header, a part of it (`X-Signature:t` for `t=…,v1=…`), or a JSON pointer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// Format of the timestamp.
    #[serde(default)]
    pub timestamp_unit: TimestampUnit,
    /// Location of the delivery's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Locator>,
    /// Location of the event's type.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub ty: Option<Locator>,
    /// JSON pointer of an array whose items become one event each (`.`: the body is the array). The pointers of `id`
    /// and `type` are then relative to the item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<String>,
    /// JSON pointer of a URL verification challenge. A verified body with this value gets the response `{"<last
    /// token>": value}` and creates no event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenge: Option<String>,
}

impl CustomScheme {
    /// Whether the signature covers a timestamp or an id.
    pub(super) fn signs_time_or_id(&self) -> bool {
        self.signed.contains("{timestamp}") || self.signed.contains("{id}")
    }
}

/// Location of a value in a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Locator {
    /// A header.
    Header(String),
    /// A JSON pointer (RFC 6901) into the body.
    Pointer(String),
}

/// A signature algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// HMAC with SHA-1, for senders without a stronger algorithm.
    Sha1,
    /// HMAC with SHA-256.
    Sha256,
    /// HMAC with SHA-512.
    Sha512,
    /// Ed25519: the secret is the sender's public key.
    Ed25519,
    /// ECDSA on P-256 with SHA-256 and a DER signature: the secret is the sender's public key, as PEM or its base64.
    EcdsaP256,
    /// RSA (PKCS #1 v1.5) with SHA-1, used by old SNS topics: the secret is the sender's public key.
    RsaSha1,
    /// RSA (PKCS #1 v1.5) with SHA-256: the secret is the sender's public key, as PEM or its base64.
    RsaSha256,
    /// No signature: the header contains the secret.
    Token,
}

/// Text encoding of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Hexadecimal, either case.
    Hex,
    /// Base64, standard alphabet, padded.
    Base64,
}

/// Encoding of a secret.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyForm {
    /// The key is the secret's bytes.
    #[default]
    Text,
    /// The key is the secret decoded from hexadecimal.
    Hex,
    /// The key is the secret decoded from base64, after any prefix that ends in `_` (as `whsec_`).
    Base64,
}

/// Format of a signed timestamp.
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

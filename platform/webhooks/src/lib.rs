//! Verification of webhooks: checks that the sender of a source signed a delivery.
//!
//! Pure functions from headers, body, time and secrets to events or a refusal.
//!
//! # Layout
//! - [`scheme`]: webhook schemes, as data. [`providers`]: the built-in schemes, one file each, and those declared as `custom`.
//! - [`delivery_reader`]: one delivery, read by its scheme.
//! - [`template`]: the signed content. [`form`]: form bodies and URLs in it.
//! - [`signature`]: keys, signatures, constant-time comparison. [`certificate`]: certificates of AWS.
//! - [`content`]: the payload and values in it. [`mod@pointer`]: JSON pointers. [`items`]: several events in one body.
//! - [`handshake`]: requests of senders that are no events. [`sample`]: signed test deliveries, for `nerve source test`.
//!
//! # Flow
//! find the scheme and its keys → read its headers, each of which may occur once → check the time → build the signed content →
//! try each secret → read id, type and subject from their locations.

mod certificate;
mod content;
mod delivery_reader;
mod form;
mod handshake;
mod items;
mod pointer;
mod providers;
mod sample;
mod scheme;
mod signature;
mod template;

pub use certificate::Certificate;
pub use handshake::{Reply, challenge};
pub use sample::{Sample, SigningError};
pub use scheme::{Handshake, Scheme};

use bytes::Bytes;
use content::Content;
use delivery_reader::DeliveryReader;
use http::HeaderMap;
use nerve_core::{
    SourceSpec,
    function::Secret,
    manifest::{Dedupe, Ids, Verify},
};
use scheme::{KeyPrefix, ValueLocation};
use sha2::{Digest, Sha256};
use signature::InvalidKey;
use std::{cell::OnceCell, time::Duration};
use time::OffsetDateTime;

/// Maximum bytes of an id of the sender.
const MAX_ID_BYTES: usize = 255;

/// A received webhook request.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// The request's body, unchanged.
    pub body: &'a Bytes,
    /// The query of the request URL.
    pub query: Option<&'a str>,
    /// The certificate that the body refers to, if the scheme uses certificates.
    pub certificate: Option<&'a Certificate>,
    /// The current time, to which the signed time is compared.
    pub now: OffsetDateTime,
}

/// The result of an accepted delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// Events, in order.
    Events(Vec<VerifiedEvent>, SignedIdentity),
    /// No event: a handshake request of the sender, and the reply to it.
    Handshake(Reply),
}

/// The identity of a delivery by its signed content, in addition to the ids of its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedIdentity {
    /// SHA-256 in hex of the signed content, if the source deduplicates by it and it contains no id.
    pub signed_sha256: Option<String>,
    /// Whether the signed content contains the ids of the events, so that a replay cannot change them.
    pub id_is_signed: bool,
}

/// An event of an accepted delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedEvent {
    /// The sender's id of the delivery. Without a valid one: SHA-256 in hex of the signed content and the body, or of the item.
    pub id: String,
    /// The scope of the id.
    pub id_scope: IdScope,
    /// The sender's event type, if any; any text.
    pub ty: Option<String>,
    /// The subject of the event, if the scheme locates one.
    pub subject: Option<String>,
    /// The media type of [`data`](Self::data), if it is known.
    pub content_type: Option<String>,
    /// The payload: the body, the JSON in a form field, or one item of a batch.
    pub data: Bytes,
}

/// The scope of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdScope {
    /// The id identifies the delivery.
    Delivery,
    /// The id and the SHA-256 of the body identify the delivery: the sender may reuse the id.
    DeliveryAndBody([u8; 32]),
    /// The id is a hash of the content: the sender gave no id.
    ContentHash,
}

impl IdScope {
    /// Returns the scope of the sender's ids.
    pub fn of(ids: Ids, body: &[u8]) -> Self {
        match ids {
            Ids::Unique => Self::Delivery,
            Ids::Reused => Self::DeliveryAndBody(Sha256::digest(body).into()),
        }
    }
}

/// The reason why a delivery is refused. For logs: the sender gets the status only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A required header is missing or is not text.
    #[error("header `{0}` is missing or is not ASCII text")]
    Missing(String),
    /// A header occurs more than once, so that two readers could use different values.
    #[error("header `{0}` occurs more than once")]
    Repeated(String),
    /// The signed time cannot be parsed.
    #[error("signed time is not in the format of the scheme")]
    InvalidTime,
    /// The signed time is too old: perhaps a replay, or the sender's clock is slow.
    #[error("signed time is {0:?} ago, which exceeds the source's `tolerance`")]
    Expired(Duration),
    /// The signed time is in the future.
    #[error("signed time is {0:?} in the future, which exceeds the source's `tolerance`")]
    Future(Duration),
    /// The delivery has too many signatures.
    #[error("delivery has more than {} signatures", signature::MAX_SIGNATURES)]
    TooManySignatures,
    /// No signature matches a secret of the source.
    #[error("no signature matches a secret of this source")]
    InvalidSignature,
    /// The delivery is verified, but its body is not the declared JSON.
    #[error("content type is JSON, but the body is not")]
    Malformed,
    /// The delivery has too many items.
    #[error("delivery has more than {} items", items::MAX_ITEMS)]
    TooManyItems,
    /// The SNS topic is not one of the source's.
    #[error("topic is not in the source's `topics`")]
    UnknownTopic,
    /// The certificate is not AWS', or cannot be read.
    #[error("certificate is not one of AWS")]
    InvalidCertificate,
    /// An unsigned delivery that announces the verification secret (Notion handshake).
    #[error("delivery announces the verification secret")]
    AnnouncesSecret(Secret),
    /// The source is misconfigured and cannot verify any delivery.
    #[error("{0}")]
    Unusable(Unusable),
}

/// The reason why a source cannot verify any delivery.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// No secret is set.
    #[error("source has no secret for its scheme; set one that it names with `nerve secrets set`")]
    NoSecret,
    /// None of the secrets is a key of the scheme.
    #[error("no secret of the source is a key of its scheme: {0}")]
    InvalidSecret(InvalidKey),
    /// The scheme signs the URL, and neither the source nor the connection determines it.
    #[error(
        "the scheme signs the URL, and this gateway cannot determine its public URL: set the source's `public_url` as the \
         sender knows it; or list the proxy that forwards it (X-Forwarded-Proto, -Host) in gateway.trusted_proxies; or serve \
         TLS here (gateway.tls_cert)"
    )]
    NoPublicUrl,
}

/// Verifies `delivery` for `source`. Any one of `secrets` may have signed it.
///
/// # Errors
/// The reason why the delivery is refused.
pub fn verify(source: &SourceSpec, secrets: &[Secret], delivery: Delivery<'_>) -> Result<Accepted, Refusal> {
    let scheme = Scheme::of(&source.provider);
    let reader = DeliveryReader { scheme, source, delivery, content: OnceCell::new() };
    let (keys, signed) = match source.verify {
        Verify::Signature => reader.verified(secrets)?,
        Verify::None => (Vec::new(), reader.unverified()?),
    };
    let content = reader.content();
    if content.malformed() {
        return Err(Refusal::Malformed);
    }
    if let Some(reply) = handshake::reply(&scheme, content, &keys)? {
        return Ok(Accepted::Handshake(reply));
    }
    let several = scheme.items.map(|items| items::events(&items, content, source.ids())).transpose()?.flatten();
    if let Some(events) = several {
        return Ok(Accepted::Events(events, SignedIdentity { signed_sha256: None, id_is_signed: true }));
    }
    let (event, location) = reader.event(&signed);
    // Without an id of the sender the event's id is a hash of the signed content and the body.
    let in_body = !matches!(location, Some(ValueLocation::Header(_)));
    let id_is_signed = in_body || signed.covers_id && location == scheme.id.first().copied().flatten();
    // Computed only if needed: it takes as long as the signature.
    let is_needed = !id_is_signed && source.dedupe() == Dedupe::Signed;
    let signed_sha256 = is_needed.then(|| signed.sha256());
    Ok(Accepted::Events(vec![event], SignedIdentity { signed_sha256, id_is_signed }))
}

/// Whether a text is valid as the id or the subject of an event.
pub fn is_valid_attribute(text: &str) -> bool {
    text.len() <= MAX_ID_BYTES && !text.chars().any(char::is_control)
}

/// Returns the URL of the signing certificate of a delivery, if the scheme uses certificates. It is a URL of AWS, and the
/// delivery is for a topic of the source.
///
/// # Errors
/// [`Refusal::UnknownTopic`] and [`Refusal::InvalidCertificate`].
pub fn certificate_url(source: &SourceSpec, delivery: Delivery<'_>) -> Result<Option<String>, Refusal> {
    let scheme = Scheme::of(&source.provider);
    let uses_certificate = scheme
        .signature_schemes
        .iter()
        .flatten()
        .any(|signature_scheme| signature_scheme.key_prefix == KeyPrefix::Certificate);
    if source.verify == Verify::None || !uses_certificate {
        return Ok(None);
    }
    let content = Content::read(&scheme, delivery);
    check_topic(source, &content)?;
    let url = content.scalar("/SigningCertURL").filter(|url| certificate::is_certificate_url(url));
    url.map(Some).ok_or(Refusal::InvalidCertificate)
}

fn check_topic(source: &SourceSpec, content: &Content<'_>) -> Result<(), Refusal> {
    let is_known = content.scalar("/TopicArn").is_some_and(|topic| source.topics.contains(&topic));
    if is_known { Ok(()) } else { Err(Refusal::UnknownTopic) }
}

/// Returns the single value of a header. An error if it is missing, repeated or not text.
fn single_header<'h>(headers: &'h HeaderMap, name: &str) -> Result<&'h str, Refusal> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().and_then(|value| value.to_str().ok());
    match (first, values.next()) {
        (_, Some(_)) => Err(Refusal::Repeated(name.to_owned())),
        (Some(value), None) if !value.is_empty() => Ok(value),
        _ => Err(Refusal::Missing(name.to_owned())),
    }
}

#[cfg(test)]
mod tests;

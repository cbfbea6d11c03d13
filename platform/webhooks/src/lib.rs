//! Verification of webhooks: is this delivery what the source's sender signed?
//!
//! Pure functions: headers, body, the time and the secrets in; what was delivered, or why it is refused, out.
//!
//! # Layout
//! - [`scheme`]: what a scheme is, as data. [`providers`]: those that are built in, and how `custom` fills one in.
//! - [`reading`]: one delivery, read as its scheme says.
//! - [`pieces`]: what is signed, laid out by a template.
//! - [`signature`]: keys, signatures, constant-time comparison. [`certificate`]: those that AWS signs with.
//! - [`content`]: the payload, and values in it. [`pointer`]: reads one out of JSON. [`items`]: several events in one body.
//! - [`handshake`]: what senders ask besides. [`sample`]: the same the other way round, for `nerve source test`.
//!
//! # Flow
//! find the scheme and its keys → read its headers, each of which may stand once → check the time → lay out what is signed →
//! try each secret → read the id, the type and the subject from where the scheme says.

mod certificate;
mod content;
mod handshake;
mod items;
mod pieces;
mod pointer;
mod providers;
mod reading;
mod sample;
mod scheme;
mod signature;

pub use certificate::Certificate;
pub use handshake::{Reply, challenge};
pub use sample::{Sample, Unsigned};
pub use scheme::{Handshake, Scheme};

use bytes::Bytes;
use content::Content;
use http::HeaderMap;
use nerve_core::{
    SourceSpec,
    function::Secret,
    manifest::{Dedupe, Ids, Verify},
};
use reading::Reading;
use scheme::{KeyPrefix, Place};
use sha2::{Digest, Sha256};
use signature::BadKey;
use std::{cell::OnceCell, time::Duration};
use time::OffsetDateTime;

/// The longest id that a sender is believed.
const MAX_ID: usize = 255;

/// What was posted.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// The request's body, as it came.
    pub body: &'a Bytes,
    /// The query of the URL that it was posted to.
    pub query: Option<&'a str>,
    /// The certificate that the body refers to, where the scheme has one.
    pub certificate: Option<&'a Certificate>,
    /// The time that a signed time is compared with.
    pub now: OffsetDateTime,
}

/// What a delivery that is accepted comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// Events, in their order.
    Events(Vec<Verified>, Recognition),
    /// No event: the sender asked something.
    Asked(Reply),
}

/// What tells a delivery from others, beside the ids of its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recognition {
    /// SHA-256 in hex of what is signed, where the source counts that and no id is in it.
    pub signed_sha256: Option<String>,
    /// Whether the ids of the events are in what is signed, so that none can be given to it later.
    pub id_is_signed: bool,
}

/// A delivery that is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The sender's id of the delivery; SHA-256 in hex of what is signed and of the body, or of the item, where it gave none
    /// that can be believed.
    pub id: String,
    /// What that id names.
    pub id_names: IdNames,
    /// The sender's name for what happened, where it gave one; any text.
    pub ty: Option<String>,
    /// What it is about, where the scheme says where that is.
    pub subject: Option<String>,
    /// The media type of [`data`](Self::data), where it is known.
    pub content_type: Option<String>,
    /// The payload: the body, the JSON that was in its form, or one item of it.
    pub data: Bytes,
}

/// What the id of a delivery names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdNames {
    /// This delivery, whatever its body.
    Delivery,
    /// This delivery together with the SHA-256 of its body: the sender may use the id again.
    WithBody([u8; 32]),
    /// These bytes: the sender gave no id.
    Bytes,
}

impl IdNames {
    /// What an id of the sender's names.
    pub fn of(ids: Ids, body: &[u8]) -> Self {
        match ids {
            Ids::Unique => Self::Delivery,
            Ids::Reused => Self::WithBody(Sha256::digest(body).into()),
        }
    }
}

/// Why a delivery is refused. For logs: the sender is told no more than which status it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A header that the scheme needs is not there, or is not text.
    #[error("the header `{0}` is missing or is not ASCII text")]
    Missing(String),
    /// A header stands more than once, so that two readers could disagree about which one counts.
    #[error("the header `{0}` stands more than once")]
    Repeated(String),
    /// The signed time cannot be read.
    #[error("the signed time is not a time as the scheme writes it")]
    Time,
    /// It was signed too long ago, or its clock is behind: perhaps a replay.
    #[error("it was signed {0:?} ago, and the source's tolerance is less")]
    Old(Duration),
    /// It claims to be signed in the future.
    #[error("it was signed {0:?} from now, and the source's tolerance is less")]
    Future(Duration),
    /// More signatures than anybody needs.
    #[error("it has more than {} signatures", signature::MAX_SIGNATURES)]
    TooManySignatures,
    /// No secret made any of the signatures.
    #[error("no signature in it was made with a secret of this source")]
    Wrong,
    /// Verified, but the body is not the JSON that its content type says.
    #[error("its content type says JSON, and its body is not")]
    Malformed,
    /// More items than one delivery may hold.
    #[error("it holds more than {} items", items::MAX)]
    TooManyItems,
    /// It is signed by AWS for a topic that is none of the source's.
    #[error("its topic is none of the source's `topics`")]
    Topic,
    /// It refers to a certificate that is not AWS', or cannot be read.
    #[error("its certificate is not one of AWS'")]
    Certificate,
    /// Nothing is signed yet, and it brings the secret that will.
    #[error("it brings the secret that the source is to have")]
    Brings(Secret),
    /// The source cannot verify anything until somebody mends it.
    #[error("{0}")]
    Unusable(Unusable),
}

/// Why a source cannot verify anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// There is no secret.
    #[error("the source has no secret that signs this scheme; `nerve secrets set` one that the source names")]
    NoSecret,
    /// None of the secrets is a key of the scheme.
    #[error("no secret of the source is a key of its scheme: {0}")]
    BadSecret(BadKey),
    /// The scheme signs the URL, and neither the source nor the connection says which it is.
    #[error(
        "the scheme signs the URL, and this gateway cannot tell which that is: set the source's `public_url` to it as the \
         sender knows it; or name the proxy that says it (X-Forwarded-Proto, -Host) in gateway.trusted_proxies; or serve \
         TLS here (gateway.tls_cert)"
    )]
    NoPublicUrl,
}

/// Checks `delivery` against `source`; any one of `secrets` may have signed it.
pub fn verify(source: &SourceSpec, secrets: &[Secret], delivery: Delivery<'_>) -> Result<Accepted, Refusal> {
    let scheme = Scheme::of(&source.provider);
    let reading = Reading { scheme, source, delivery, content: OnceCell::new() };
    let (keys, signed) = match source.verify {
        Verify::Signature => reading.checked(secrets)?,
        Verify::None => (Vec::new(), reading.unchecked()?),
    };
    let content = reading.content();
    if content.malformed() {
        return Err(Refusal::Malformed);
    }
    if let Some(reply) = handshake::asked(&scheme, content, &keys)? {
        return Ok(Accepted::Asked(reply));
    }
    let several = scheme.items.map(|items| items::events(&items, content, source.ids())).transpose()?.flatten();
    if let Some(events) = several {
        return Ok(Accepted::Events(events, Recognition { signed_sha256: None, id_is_signed: true }));
    }
    let (event, place) = reading.event(&signed);
    // Without an id of the sender's the event's id is a hash of what is signed and of the body.
    let in_body = !matches!(place, Some(Place::Header(_)));
    let id_is_signed = in_body || signed.covers_id && place == scheme.id.first().copied().flatten();
    // It takes as long as the signature does, and for most sources nobody asks.
    let counts = !id_is_signed && source.dedupe() == Dedupe::Signed;
    let signed_sha256 = counts.then(|| signed.sha256());
    Ok(Accepted::Events(vec![event], Recognition { signed_sha256, id_is_signed }))
}

/// Whether this can be the id or the subject of an event.
pub fn is_sound(text: &str) -> bool {
    text.len() <= MAX_ID && !text.chars().any(char::is_control)
}

/// The URL of the certificate that the delivery says it is signed with, where the scheme has one: AWS', and for a topic of
/// the source's.
pub fn certificate_url(source: &SourceSpec, delivery: Delivery<'_>) -> Result<Option<String>, Refusal> {
    let scheme = Scheme::of(&source.provider);
    let wants = scheme.kinds.iter().flatten().any(|kind| kind.key_prefix == KeyPrefix::Certificate);
    if source.verify == Verify::None || !wants {
        return Ok(None);
    }
    let content = Content::read(&scheme, delivery);
    check_topic(source, &content)?;
    let url = content.scalar("/SigningCertURL").filter(|url| certificate::is_certificate_url(url));
    url.map(Some).ok_or(Refusal::Certificate)
}

fn check_topic(source: &SourceSpec, content: &Content<'_>) -> Result<(), Refusal> {
    let heard = content.scalar("/TopicArn").is_some_and(|topic| source.topics.contains(&topic));
    if heard { Ok(()) } else { Err(Refusal::Topic) }
}

/// The header's one value; an error when it is absent, stands twice or is not text.
fn once<'h>(headers: &'h HeaderMap, name: &str) -> Result<&'h str, Refusal> {
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

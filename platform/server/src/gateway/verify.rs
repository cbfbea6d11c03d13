//! Verification of webhooks: is this delivery what the source's sender signed?
//!
//! Pure functions: headers, body, the time and the secrets in; what was delivered, or why it is refused, out.
//!
//! # Layout
//! - [`scheme`]: what a scheme is, as data; the built-in providers are constants of it, `custom` fills it in.
//! - [`signature`]: keys, signatures, constant-time comparison.
//! - [`pointer`]: reads one value out of a JSON body.
//!
//! # Flow
//! find the scheme and its keys → read its headers, each of which may stand once → check the time → lay out what is signed →
//! try each secret → read the id, the type and the subject from where the scheme says.

mod pointer;
mod scheme;
mod signature;

use bytes::Bytes;
use http::{HeaderMap, header::CONTENT_TYPE};
use nerve_core::{
    SourceSpec,
    function::Secret,
    manifest::{TimestampUnit, Verify},
};
use scheme::{Kind, Piece, Place, Scheme};
use sha2::{Digest, Sha256};
use signature::{BadKey, Key};
use std::time::Duration;
use time::OffsetDateTime;

/// What was posted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivery<'a> {
    /// The request's headers.
    pub(crate) headers: &'a HeaderMap,
    /// The request's body, as it came.
    pub(crate) body: &'a Bytes,
    /// The time that a signed time is compared with.
    pub(crate) now: OffsetDateTime,
}

/// A delivery that is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verified {
    /// The sender's id of the delivery, where it gave one.
    pub(crate) id: Option<String>,
    /// The sender's name for what happened, where it gave one; any text.
    pub(crate) ty: Option<String>,
    /// What it is about, where the scheme says where that is.
    pub(crate) subject: Option<String>,
    /// SHA-256 of what is signed, in hex: two deliveries that agree in it are one, whatever their ids say.
    pub(crate) signed_sha256: String,
    /// The media type of [`data`](Self::data), where it is known.
    pub(crate) content_type: Option<String>,
    /// The payload: the body, or the JSON that was in its form.
    pub(crate) data: Bytes,
}

/// Why a delivery is refused. For logs: the sender is told no more than which status it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// A header that the scheme needs is not there, or is not text.
    #[error("the header `{0}` is missing or is not ASCII text")]
    Missing(String),
    /// A header stands more than once, so that two readers could disagree about which one counts.
    #[error("the header `{0}` stands more than once")]
    Repeated(String),
    /// The signed time is not a number.
    #[error("the signed time is not a whole number")]
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
    /// The source cannot verify anything until somebody mends it.
    #[error("{0}")]
    Unusable(Unusable),
}

/// Why a source cannot verify anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    /// There is no secret.
    #[error("the source has no secret that signs this scheme; `nerve secrets set` one that the source names")]
    NoSecret,
    /// None of the secrets is a key of the scheme.
    #[error("no secret of the source is a key of its scheme: {0}")]
    BadSecret(BadKey),
    /// The scheme signs the URL, and the source does not say which it is.
    #[error("the scheme signs the URL: set `public_url` to it as the sender knows it")]
    NoPublicUrl,
}

/// Checks `delivery` against `source`; any one of `secrets` may have signed it.
pub(crate) fn verify(source: &SourceSpec, secrets: &[Secret], delivery: Delivery<'_>) -> Result<Verified, Refusal> {
    let scheme = Scheme::of(&source.provider);
    let checked = source.verify == Verify::Signature;
    let keys = if checked { keys(&scheme, secrets)? } else { Vec::new() };
    let signed = Signed::read(&scheme, source, delivery, checked)?;
    if checked {
        signed.check_time(&scheme, source.tolerance, delivery.now)?;
        signed.check(&keys)?;
    }
    let content = Content::read(&scheme, delivery);
    if content.malformed() {
        return Err(Refusal::Malformed);
    }
    let types: Vec<_> = scheme.ty.iter().flatten().map_while(|place| content.at(place, delivery.headers)).collect();
    Ok(Verified {
        id: scheme.id.and_then(|place| content.at(&place, delivery.headers)),
        ty: (!types.is_empty()).then(|| types.join(".")),
        subject: scheme.subject.and_then(|place| content.at(&place, delivery.headers)),
        signed_sha256: signed.sha256(),
        content_type: content.content_type,
        data: content.data,
    })
}

/// The keys that may have signed, each with the kind of signature it makes; an error when there is none at all.
fn keys<'s>(scheme: &'s Scheme<'_>, secrets: &[Secret]) -> Result<Vec<(&'s Kind<'s>, Key)>, Refusal> {
    let mut bad = None;
    let mut keys = Vec::new();
    for kind in scheme.kinds.iter().flatten() {
        for key in secrets.iter().filter_map(|secret| Key::of(secret, kind)) {
            match key {
                Ok(key) => keys.push((kind, key)),
                Err(reason) => bad = Some(reason),
            }
        }
    }
    match bad {
        _ if !keys.is_empty() => Ok(keys),
        Some(reason) => Err(Refusal::Unusable(Unusable::BadSecret(reason))),
        None => Err(Refusal::Unusable(Unusable::NoSecret)),
    }
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

/// The payload of a delivery.
struct Content {
    content_type: Option<String>,
    data: Bytes,
    /// Whether the content type says JSON.
    declared_json: bool,
    is_json: bool,
}

impl Content {
    fn read(scheme: &Scheme<'_>, delivery: Delivery<'_>) -> Self {
        let declared = delivery.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = declared.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let in_form = scheme.form_field.filter(|_| essence == "application/x-www-form-urlencoded");
        if let Some(json) = in_form.and_then(|field| form_field(delivery.body, field)) {
            let is_json = pointer::is_json(&json);
            let content_type = Some("application/json".to_owned());
            return Self { content_type, data: Bytes::from(json), declared_json: true, is_json };
        }
        let declared_json = matches!(&*essence, "application/json" | "text/json") || essence.ends_with("+json");
        let maybe_json = declared_json || essence.is_empty();
        let is_json = maybe_json && std::str::from_utf8(delivery.body).is_ok_and(pointer::is_json);
        let content_type = match declared.filter(|_| !essence.is_empty()) {
            Some(declared) => declared,
            None if is_json => "application/json",
            None => "application/octet-stream",
        };
        Self { content_type: Some(content_type.to_owned()), data: delivery.body.clone(), declared_json, is_json }
    }

    fn malformed(&self) -> bool {
        self.declared_json && !self.is_json
    }

    fn at(&self, place: &Place<'_>, headers: &HeaderMap) -> Option<String> {
        let found = match place {
            Place::Header(name) => once(headers, name).ok().map(str::to_owned),
            Place::Pointer(pointer) if self.is_json => {
                std::str::from_utf8(&self.data).ok().and_then(|text| pointer::scalar(text, pointer))
            }
            Place::Pointer(_) => None,
        };
        found.filter(|value| !value.is_empty())
    }
}

/// The first value of a field of a form, percent-decoded.
fn form_field(body: &[u8], field: &str) -> Option<String> {
    let decode = |part: &[u8]| {
        let spaced: Vec<u8> = part.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect();
        String::from_utf8(percent_encoding::percent_decode(&spaced).collect()).ok()
    };
    body.split(|&byte| byte == b'&').find_map(|pair| {
        let mut halves = pair.splitn(2, |&byte| byte == b'=');
        let name = decode(halves.next()?)?;
        if name == field { decode(halves.next()?) } else { None }
    })
}

/// What the signature covers, and the headers that say so.
struct Signed<'a> {
    pieces: Vec<SignedPiece<'a>>,
    timestamp: Option<&'a str>,
    signatures: &'a str,
}

enum SignedPiece<'a> {
    Borrowed(&'a [u8]),
    Owned(String),
}

impl SignedPiece<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(text) => text.as_bytes(),
        }
    }
}

impl<'a> Signed<'a> {
    /// Lays out what is signed; when nothing will be checked, what is missing is empty.
    fn read(
        scheme: &Scheme<'a>,
        source: &'a SourceSpec,
        delivery: Delivery<'a>,
        checked: bool,
    ) -> Result<Self, Refusal> {
        let header = |name: &str| match once(delivery.headers, name) {
            Err(_) if !checked => Ok(""),
            read => read,
        };
        let timestamp = scheme.timestamp.map(|(name, _)| header(name)).transpose()?;
        let piece = |piece| match piece {
            Piece::Literal(text) => Ok(SignedPiece::Borrowed(text.as_bytes())),
            Piece::Body => Ok(SignedPiece::Borrowed(delivery.body)),
            Piece::Timestamp => Ok(SignedPiece::Borrowed(timestamp.unwrap_or_default().as_bytes())),
            Piece::Url => match &source.public_url {
                Some(url) => Ok(SignedPiece::Borrowed(url.as_bytes())),
                None if checked => Err(Refusal::Unusable(Unusable::NoPublicUrl)),
                None => Ok(SignedPiece::Borrowed(b"")),
            },
            Piece::Id => match scheme.id {
                Some(Place::Header(name)) => header(name).map(|id| SignedPiece::Borrowed(id.as_bytes())),
                Some(place) => match Content::read(scheme, delivery).at(&place, delivery.headers) {
                    None if checked => Err(Refusal::Wrong),
                    id => Ok(SignedPiece::Owned(id.unwrap_or_default())),
                },
                None => Ok(SignedPiece::Borrowed(b"")),
            },
        };
        let pieces = scheme.template().map(piece).collect::<Result<_, _>>()?;
        Ok(Self { pieces, timestamp, signatures: header(scheme.signature)? })
    }

    fn check_time(&self, scheme: &Scheme<'_>, tolerance: Duration, now: OffsetDateTime) -> Result<(), Refusal> {
        let (Some((_, unit)), Some(text)) = (scheme.timestamp, self.timestamp) else { return Ok(()) };
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Refusal::Time);
        }
        let given: i128 = text.parse().map_err(|_| Refusal::Time)?;
        let nanos = match unit {
            TimestampUnit::Seconds => given.checked_mul(1_000_000_000),
            TimestampUnit::Milliseconds => given.checked_mul(1_000_000),
        };
        let age = now.unix_timestamp_nanos().checked_sub(nanos.ok_or(Refusal::Time)?).ok_or(Refusal::Time)?;
        let apart = Duration::from_nanos(u64::try_from(age.unsigned_abs()).unwrap_or(u64::MAX));
        match apart <= tolerance {
            true => Ok(()),
            false if age > 0 => Err(Refusal::Old(apart)),
            false => Err(Refusal::Future(apart)),
        }
    }

    fn check(&self, keys: &[(&Kind<'_>, Key)]) -> Result<(), Refusal> {
        let pieces: Vec<&[u8]> = self.pieces.iter().map(SignedPiece::bytes).collect();
        for (kind, key) in keys {
            let candidates = signature::candidates(self.signatures, kind).ok_or(Refusal::TooManySignatures)?;
            if !candidates.is_empty() && key.signed(&pieces, &candidates) {
                return Ok(());
            }
        }
        Err(Refusal::Wrong)
    }

    fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for piece in &self.pieces {
            hash.update(piece.bytes());
        }
        hex::encode(hash.finalize())
    }
}

#[cfg(test)]
mod tests;

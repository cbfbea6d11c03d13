//! Deliveries as a sender of a scheme would sign them, made from the same description that they are checked against.

use super::{
    Delivery, Reading,
    scheme::{Kind, Place, Scheme},
    signature::Key,
    verify,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};
use nerve_core::{
    SourceSpec,
    function::Secret,
    manifest::{Algorithm, Encoding, TimestampUnit, Verify},
};
use serde_json::{Value, json};
use std::cell::OnceCell;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A delivery to be posted to a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The request's headers.
    pub headers: HeaderMap,
    /// The request's body.
    pub body: Bytes,
    /// The query of the URL.
    pub query: Option<String>,
}

/// Why no delivery can be signed for a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    /// Only the sender has what signs.
    #[error("what signs it is the sender's alone: the source knows its public key")]
    PublicKey,
    /// There is no secret, or none that is a key of the scheme.
    #[error("no secret of the source is a key of its scheme")]
    NoSecret,
}

impl Sample {
    /// A delivery of the type `ty` under this id, signed by the first of `secrets` that can.
    pub fn sign(
        source: &SourceSpec,
        secrets: &[Secret],
        (id, ty): (&str, &str),
        now: OffsetDateTime,
    ) -> Result<Self, Unsigned> {
        let scheme = Scheme::of(&source.provider);
        let mut draft = Draft { headers: HeaderMap::new(), body: json!({"sample": id}) };
        let [id_place, ..] = scheme.id;
        let [[type_place, ..], ..] = scheme.ty;
        for (place, text) in [(id_place, id), (type_place, ty)] {
            place.into_iter().for_each(|place| draft.set(place, text));
        }
        if let Some(items) = scheme.items {
            let mut item = Draft { headers: HeaderMap::new(), body: json!({}) };
            items.id.iter().take(1).flatten().for_each(|pointer| item.set(Place::Pointer(pointer), id));
            items.ty.iter().for_each(|pointer| item.set(Place::Pointer(pointer), ty));
            match items.at {
                "" => draft.body = json!([item.body]),
                at => draft.put(at, json!([item.body])),
            }
        }
        if source.verify == Verify::None {
            return Ok(draft.finish(None));
        }
        let mut refused = Unsigned::NoSecret;
        for kind in scheme.kinds.iter().flatten() {
            if asymmetric(kind) {
                refused = Unsigned::PublicKey;
                continue;
            }
            let secret = secrets.iter().find(|secret| matches!(Key::of(secret, kind), Some(Ok(_))));
            if let Some(secret) = secret {
                return draft.signed(&scheme, kind, source, secret, now).ok_or(Unsigned::NoSecret);
            }
        }
        Err(refused)
    }

    /// Whether a gateway would take this delivery in, as far as its source goes; AWS' certificates are not fetched.
    pub fn is_taken(&self, source: &SourceSpec, secrets: &[Secret], now: OffsetDateTime) -> bool {
        let (headers, body, query) = (&self.headers, &self.body, self.query.as_deref());
        let delivery = Delivery { headers, body, query, certificate: None, now };
        super::certificate_url(source, delivery).is_ok() && verify(source, secrets, delivery).is_ok()
    }
}

fn asymmetric(kind: &Kind<'_>) -> bool {
    use Algorithm::{EcdsaP256, Ed25519, RsaSha1, RsaSha256};
    matches!(kind.algorithm, Ed25519 | EcdsaP256 | RsaSha1 | RsaSha256)
}

struct Draft {
    headers: HeaderMap,
    body: Value,
}

impl Draft {
    /// Puts a text where the scheme reads it.
    fn set(&mut self, place: Place<'_>, text: &str) {
        match place {
            Place::Header(name) => self.header(name, text),
            Place::Numbered(start) => self.header(&format!("{start}1"), text),
            // Parts are put together with the signature.
            Place::Part(..) => {}
            Place::Pointer(pointer) => self.put(pointer, json!(text)),
        }
    }

    fn header(&mut self, name: &str, text: &str) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(text)) {
            self.headers.insert(name, value);
        }
    }

    fn put(&mut self, pointer: &str, value: Value) {
        let mut here = &mut self.body;
        for token in pointer.split('/').skip(1) {
            let token = token.replace("~1", "/").replace("~0", "~");
            if !here.is_object() {
                *here = json!({});
            }
            let Some(members) = here.as_object_mut() else { return };
            here = members.entry(token).or_insert(Value::Null);
        }
        *here = value;
    }

    fn signed(
        mut self,
        scheme: &Scheme<'_>,
        kind: &Kind<'_>,
        source: &SourceSpec,
        secret: &Secret,
        now: OffsetDateTime,
    ) -> Option<Sample> {
        let time = kind.timestamp.map(|(place, unit)| (place, written(now, unit)));
        match &time {
            Some((Place::Pointer(pointer), text)) if kind.timestamp?.1 == TimestampUnit::Milliseconds => {
                self.put(pointer, json!(text.parse::<i64>().ok()?));
            }
            Some((place, text)) => self.set(*place, text),
            None => {}
        }
        let in_header = |text: &str| match &time {
            Some((Place::Part(_, part), time)) => format!("{part}={time},{}{text}", kind.mark),
            _ => format!("{}{text}", kind.mark),
        };
        if let Some((Place::Part(name, _), _)) = &time {
            self.header(name, &in_header(""));
        }
        let unsigned = self.finish(scheme.body_digest);
        let delivery = Delivery {
            headers: &unsigned.headers,
            body: &unsigned.body,
            query: unsigned.query.as_deref(),
            certificate: None,
            now,
        };
        let signature = match kind.algorithm {
            Algorithm::Token => secret.expose().to_owned(),
            _ => {
                let reading = Reading { scheme: *scheme, source, delivery, content: OnceCell::new() };
                let url = source.public_url.as_deref().unwrap_or_default();
                let url = super::pieces::urls(url, delivery.query, scheme.url).pop()?;
                let signed = reading.lay_out(kind, &url, true).ok()?;
                let bytes = Key::of(secret, kind)?.ok()?.mac(&signed.pieces)?;
                match kind.encoding {
                    Encoding::Hex => HEXLOWER.encode(&bytes),
                    Encoding::Base64 => BASE64_STANDARD.encode(bytes),
                }
            }
        };
        let text = in_header(&signature);
        let mut draft = Self { headers: unsigned.headers, body: serde_json::from_slice(&unsigned.body).ok()? };
        match kind.signature {
            Place::Part(name, _) => draft.header(name, &text),
            place => draft.set(place, &text),
        }
        let body = if matches!(kind.signature, Place::Pointer(_)) { draft.finish(None).body } else { unsigned.body };
        Some(Sample { headers: draft.headers, body, query: unsigned.query })
    }

    fn finish(&self, body_digest: Option<&str>) -> Sample {
        let body = Bytes::from(self.body.to_string());
        let query = body_digest
            .map(|name| format!("{name}={}", HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest(&body))));
        let mut headers = self.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Sample { headers, body, query }
    }
}

fn written(now: OffsetDateTime, unit: TimestampUnit) -> String {
    match unit {
        TimestampUnit::Seconds => now.unix_timestamp().to_string(),
        TimestampUnit::Milliseconds => (now.unix_timestamp_nanos() / 1_000_000).to_string(),
        TimestampUnit::Rfc3339 => {
            now.replace_nanosecond(0).ok().and_then(|now| now.format(&Rfc3339).ok()).unwrap_or_default()
        }
    }
}

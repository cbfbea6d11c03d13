//! Sample deliveries, signed by the same scheme that verifies them.

use super::{
    Delivery, DeliveryReader,
    scheme::{Scheme, SignatureScheme, ValueLocation},
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

/// A sample delivery for a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The request's headers.
    pub headers: HeaderMap,
    /// The request's body.
    pub body: Bytes,
    /// The query of the URL.
    pub query: Option<String>,
}

/// The reason why no delivery can be signed for a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SigningError {
    /// Only the sender has the private key.
    #[error("the source has only the public key of the sender, which cannot sign")]
    PublicKey,
    /// No secret is a key of the scheme.
    #[error("no secret of the source is a key of its scheme")]
    NoSecret,
}

impl Sample {
    /// Creates a delivery with this id and type, signed by the first suitable secret.
    ///
    /// # Errors
    /// The reason why no secret can sign.
    pub fn sign(
        source: &SourceSpec,
        secrets: &[Secret],
        (id, ty): (&str, &str),
        now: OffsetDateTime,
    ) -> Result<Self, SigningError> {
        let scheme = Scheme::of(&source.provider);
        let mut draft = Draft { headers: HeaderMap::new(), body: json!({"sample": id}) };
        let [id_location, ..] = scheme.id;
        let [[type_location, ..], ..] = scheme.ty;
        for (location, text) in [(id_location, id), (type_location, ty)] {
            location.into_iter().for_each(|location| draft.set(location, text));
        }
        if let Some(items) = scheme.items {
            let mut item = Draft { headers: HeaderMap::new(), body: json!({}) };
            items.id.iter().take(1).flatten().for_each(|pointer| item.set(ValueLocation::Pointer(pointer), id));
            items.ty.iter().for_each(|pointer| item.set(ValueLocation::Pointer(pointer), ty));
            match items.at {
                "" => draft.body = json!([item.body]),
                at => draft.put(at, json!([item.body])),
            }
        }
        if source.verify == Verify::None {
            return Ok(draft.finish(None));
        }
        let mut error = SigningError::NoSecret;
        for signature_scheme in scheme.signature_schemes.iter().flatten() {
            if asymmetric(signature_scheme) {
                error = SigningError::PublicKey;
                continue;
            }
            let secret = secrets.iter().find(|secret| matches!(Key::of(secret, signature_scheme), Some(Ok(_))));
            if let Some(secret) = secret {
                return draft.signed(&scheme, signature_scheme, source, secret, now).ok_or(SigningError::NoSecret);
            }
        }
        Err(error)
    }

    /// Whether the source accepts this delivery. Certificates of AWS are not fetched.
    pub fn is_accepted(&self, source: &SourceSpec, secrets: &[Secret], now: OffsetDateTime) -> bool {
        let (headers, body, query) = (&self.headers, &self.body, self.query.as_deref());
        let delivery = Delivery { headers, body, query, certificate: None, now };
        super::certificate_url(source, delivery).is_ok() && verify(source, secrets, delivery).is_ok()
    }
}

fn asymmetric(signature_scheme: &SignatureScheme<'_>) -> bool {
    use Algorithm::{EcdsaP256, Ed25519, RsaSha1, RsaSha256};
    matches!(signature_scheme.algorithm, Ed25519 | EcdsaP256 | RsaSha1 | RsaSha256)
}

struct Draft {
    headers: HeaderMap,
    body: Value,
}

impl Draft {
    /// Writes a text to a location.
    fn set(&mut self, location: ValueLocation<'_>, text: &str) {
        match location {
            ValueLocation::Header(name) => self.header(name, text),
            ValueLocation::NumberedHeaders(start) => self.header(&format!("{start}1"), text),
            // Header parameters are written together with the signature.
            ValueLocation::HeaderParameter(..) => {}
            ValueLocation::Pointer(pointer) => self.put(pointer, json!(text)),
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
        signature_scheme: &SignatureScheme<'_>,
        source: &SourceSpec,
        secret: &Secret,
        now: OffsetDateTime,
    ) -> Option<Sample> {
        let time = signature_scheme.timestamp.map(|(location, unit)| (location, format_time(now, unit)));
        match &time {
            Some((ValueLocation::Pointer(pointer), text))
                if signature_scheme.timestamp?.1 == TimestampUnit::Milliseconds =>
            {
                self.put(pointer, json!(text.parse::<i64>().ok()?));
            }
            Some((location, text)) => self.set(*location, text),
            None => {}
        }
        let in_header = |text: &str| match &time {
            Some((ValueLocation::HeaderParameter(_, part), time)) => {
                format!("{part}={time},{}{text}", signature_scheme.prefix)
            }
            _ => format!("{}{text}", signature_scheme.prefix),
        };
        if let Some((ValueLocation::HeaderParameter(name, _), _)) = &time {
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
        let signature = match signature_scheme.algorithm {
            Algorithm::Token => secret.expose().to_owned(),
            _ => {
                let reader = DeliveryReader { scheme: *scheme, source, delivery, content: OnceCell::new() };
                let url = source.public_url.as_deref().unwrap_or_default();
                let url = super::form::urls(url, delivery.query, scheme.url).pop()?;
                let signed = reader.signed_content(signature_scheme, &url, true).ok()?;
                let bytes = Key::of(secret, signature_scheme)?.ok()?.mac(&signed.segments)?;
                match signature_scheme.encoding {
                    Encoding::Hex => HEXLOWER.encode(&bytes),
                    Encoding::Base64 => BASE64_STANDARD.encode(bytes),
                }
            }
        };
        let text = in_header(&signature);
        let mut draft = Self { headers: unsigned.headers, body: serde_json::from_slice(&unsigned.body).ok()? };
        match signature_scheme.signature {
            ValueLocation::HeaderParameter(name, _) => draft.header(name, &text),
            location => draft.set(location, &text),
        }
        let body = if matches!(signature_scheme.signature, ValueLocation::Pointer(_)) {
            draft.finish(None).body
        } else {
            unsigned.body
        };
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

fn format_time(now: OffsetDateTime, unit: TimestampUnit) -> String {
    match unit {
        TimestampUnit::Seconds => now.unix_timestamp().to_string(),
        TimestampUnit::Milliseconds => (now.unix_timestamp_nanos() / 1_000_000).to_string(),
        TimestampUnit::Rfc3339 => {
            now.replace_nanosecond(0).ok().and_then(|now| now.format(&Rfc3339).ok()).unwrap_or_default()
        }
    }
}

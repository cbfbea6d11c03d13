//! Binary mode: attributes in `ce-*` headers, the body unchanged.

use super::{Event, EventError};
use crate::EventType;
use bytes::Bytes;
use std::borrow::Cow;

const PREFIX: &str = "ce-";
const CONTENT_TYPE: &str = "content-type";

impl Event {
    /// Headers of this event in binary mode: `ce-specversion` first, `content-type` last.
    ///
    /// Values are percent-encoded as the HTTP and NATS bindings require, so they are printable ASCII.
    pub fn to_headers(&self) -> impl Iterator<Item = (Cow<'static, str>, Cow<'_, str>)> {
        let content_type =
            self.content_type.as_deref().map(|value| (Cow::Borrowed(CONTENT_TYPE), Cow::Borrowed(value)));
        self.attributes().map(|(name, value)| (header_name(name), encode_cow(value))).chain(content_type)
    }

    /// Reads an event in binary mode. Header names are case-insensitive; other headers are ignored.
    ///
    /// # Errors
    /// If a required attribute is missing, or an attribute is invalid.
    pub fn from_headers<'h>(
        headers: impl IntoIterator<Item = (&'h str, &'h str)>,
        data: Bytes,
    ) -> Result<Self, EventError> {
        let mut attributes: Vec<(Cow<'_, str>, &str)> = Vec::new();
        let mut content_type = None;
        for (name, value) in headers {
            if name.eq_ignore_ascii_case(CONTENT_TYPE) {
                content_type = Some(value.to_owned());
            } else if let Some((_, attribute)) =
                name.split_at_checked(PREFIX.len()).filter(|(prefix, _)| prefix.eq_ignore_ascii_case(PREFIX))
            {
                let is_lower = !attribute.bytes().any(|b| b.is_ascii_uppercase());
                let lower = if is_lower { attribute.into() } else { attribute.to_ascii_lowercase().into() };
                attributes.push((lower, value));
            }
        }
        let find = |attribute| attributes.iter().find(|(name, _)| name == attribute).map(|(_, value)| *value);
        find("specversion").ok_or(EventError::Missing("specversion"))?;
        let ty = find("type").ok_or(EventError::Missing("type"))?;
        let mut event = Self::blank(EventType::parse(decode_value(ty))?);
        for (name, value) in attributes.iter().filter(|(name, _)| name != "type") {
            event.set(name, decode_value(value))?;
        }
        event.content_type = content_type.or(event.content_type);
        event.data = data;
        event.checked()
    }
}

/// Header name of an attribute. Common names are static, which avoids an allocation.
fn header_name(attribute: &str) -> Cow<'static, str> {
    Cow::Borrowed(match attribute {
        "specversion" => "ce-specversion",
        "id" => "ce-id",
        "source" => "ce-source",
        "type" => "ce-type",
        "subject" => "ce-subject",
        "time" => "ce-time",
        "dataschema" => "ce-dataschema",
        "correlationid" => "ce-correlationid",
        "causationid" => "ce-causationid",
        "traceparent" => "ce-traceparent",
        "partitionkey" => "ce-partitionkey",
        "nervehops" => "ce-nervehops",
        other => return format!("{PREFIX}{other}").into(),
    })
}

fn is_unreserved(byte: u8) -> bool {
    (0x21..=0x7e).contains(&byte) && byte != b'"' && byte != b'%'
}

fn encode_cow(value: Cow<'_, str>) -> Cow<'_, str> {
    if value.bytes().all(is_unreserved) { value } else { encode_value(&value).into_owned().into() }
}

/// Percent-encodes a header value: non-printable and non-ASCII bytes, space, `"` and `%` (CloudEvents HTTP binding
/// 1.0.2, section 3.1.3.2).
pub fn encode_value(value: &str) -> Cow<'_, str> {
    if value.bytes().all(is_unreserved) {
        return Cow::Borrowed(value);
    }
    let mut encoded = String::with_capacity(value.len() + 16);
    for byte in value.bytes() {
        if is_unreserved(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    Cow::Owned(encoded)
}

/// Reverses [`encode_value`]. Invalid escapes are kept unchanged.
pub fn decode_value(value: &str) -> String {
    if !value.contains('%') {
        return value.to_owned();
    }
    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escape = if byte == b'%' { tail.get(..2) } else { None };
        let code =
            escape.and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(code) => {
                decoded.push(code);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                decoded.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip() {
        let mut event = Event::new("1 %41", "/sensors/\"ü\"", EventType::parse("a.b").unwrap())
            .with_data("text/plain; charset=utf-8", "x\0y")
            .with_extension("partitionkey", "k");
        event.subject = Some("€".into());
        event.time = Some(time::macros::datetime!(2026-01-02 03:04:05.678 UTC));
        let headers: Vec<_> = event.to_headers().collect();
        assert!(headers.iter().all(|(_, value)| value.is_ascii()));
        let pairs = headers.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
        assert_eq!(Event::from_headers(pairs, event.data.clone()).unwrap(), event);
    }

    #[test]
    fn value_encoding_matches_the_specification_example() {
        assert_eq!(encode_value("Euro € 😀"), "Euro%20%E2%82%AC%20%F0%9F%98%80");
        assert_eq!(decode_value("Euro%20%E2%82%AC%20%F0%9F%98%80"), "Euro € 😀");
        assert_eq!(decode_value("100%"), "100%");
    }

    #[test]
    fn missing_attribute_is_named() {
        let read = |headers: &[(&str, &str)]| Event::from_headers(headers.iter().copied(), Bytes::new()).unwrap_err();
        assert_eq!(read(&[]), EventError::Missing("specversion"));
        let some = [("ce-specversion", "1.0"), ("ce-type", "t"), ("ce-source", "s")];
        assert_eq!(read(&some), EventError::Missing("id"));
        let old = [("ce-specversion", "0.3"), ("ce-type", "t"), ("ce-source", "s"), ("ce-id", "1")];
        assert!(read(&old).to_string().contains("1.0"));
    }
}

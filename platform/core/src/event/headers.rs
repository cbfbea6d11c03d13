//! Binary mode: attributes in `ce-*` headers, the body as it is.

use super::{Event, EventError};
use crate::EventType;
use bytes::Bytes;

const PREFIX: &str = "ce-";
const CONTENT_TYPE: &str = "content-type";

impl Event {
    /// The headers of this event in binary mode: `ce-specversion` first, and `content-type` last if there is one.
    ///
    /// Values are percent-encoded as the HTTP and NATS bindings ask, so they are printable ASCII.
    pub fn to_headers(&self) -> Vec<(String, String)> {
        let mut headers: Vec<_> =
            self.attributes().map(|(name, value)| (format!("{PREFIX}{name}"), encode_value(&value))).collect();
        if let Some(content_type) = &self.content_type {
            headers.push((CONTENT_TYPE.to_owned(), content_type.clone()));
        }
        headers
    }

    /// Reads an event in binary mode; header names are compared without case, other headers are passed over.
    pub fn from_headers<'h>(
        headers: impl IntoIterator<Item = (&'h str, &'h str)>,
        data: Bytes,
    ) -> Result<Self, EventError> {
        let mut attributes = Vec::new();
        let mut content_type = None;
        for (name, value) in headers {
            let name = name.to_ascii_lowercase();
            if name == CONTENT_TYPE {
                content_type = Some(value.to_owned());
            } else if let Some(attribute) = name.strip_prefix(PREFIX) {
                attributes.push((attribute.to_owned(), decode_value(value)));
            }
        }
        if !attributes.iter().any(|(name, _)| name == "specversion") {
            return Err(EventError::Missing("specversion"));
        }
        let ty = attributes.iter().find(|(name, _)| name == "type").ok_or(EventError::Missing("type"))?;
        let mut event = Self::blank(EventType::parse(ty.1.clone())?);
        for (name, value) in attributes {
            event.set(&name, value)?;
        }
        event.content_type = content_type.or(event.content_type);
        event.data = data;
        event.checked()
    }
}

/// Percent-encodes a header value: everything but printable ASCII, and space, `"` and `%`.
/// (CloudEvents HTTP binding 1.0.2, section 3.1.3.2.)
pub fn encode_value(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        if (0x21..=0x7e).contains(&byte) && byte != b'"' && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Undoes [`encode_value`]; what is not a valid escape is kept as it stands.
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
    fn headers_come_back_as_the_same_event() {
        let mut event = Event::new("1 %41", "/sensors/\"ü\"", EventType::parse("a.b").unwrap())
            .with_data("text/plain; charset=utf-8", "x\0y")
            .with_extension("partitionkey", "k");
        event.subject = Some("€".into());
        event.time = Some(time::macros::datetime!(2026-01-02 03:04:05.678 UTC));
        let headers = event.to_headers();
        assert!(headers.iter().all(|(_, value)| value.is_ascii()));
        let pairs = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        assert_eq!(Event::from_headers(pairs, event.data.clone()).unwrap(), event);
    }

    #[test]
    fn the_specs_own_example_of_encoding() {
        assert_eq!(encode_value("Euro € 😀"), "Euro%20%E2%82%AC%20%F0%9F%98%80");
        assert_eq!(decode_value("Euro%20%E2%82%AC%20%F0%9F%98%80"), "Euro € 😀");
        assert_eq!(decode_value("100%"), "100%");
    }

    #[test]
    fn what_is_missing_is_named() {
        let read = |headers: &[(&str, &str)]| Event::from_headers(headers.iter().copied(), Bytes::new()).unwrap_err();
        assert_eq!(read(&[]), EventError::Missing("specversion"));
        let some = [("ce-specversion", "1.0"), ("ce-type", "t"), ("ce-source", "s")];
        assert_eq!(read(&some), EventError::Missing("id"));
        let old = [("ce-specversion", "0.3"), ("ce-type", "t"), ("ce-source", "s"), ("ce-id", "1")];
        assert!(read(&old).to_string().contains("1.0"));
    }
}

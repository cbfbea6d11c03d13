//! A CloudEvent (specification 1.0.2) and its two wire formats.
//!
//! Binary mode carries the attributes in headers and the body unchanged (HTTP and NATS protocol bindings); structured
//! mode is one JSON document (JSON event format). Unlike the SDK's types, these keep the sender's bytes as the body and
//! require a type that is valid in a subject.

mod headers;
mod json;

pub use headers::{decode_value, encode_value};
pub use json::{JsonError, MAX_BATCH_EVENTS};

use crate::{EventType, subject::InvalidSubject};
use bytes::Bytes;
use std::{borrow::Cow, collections::BTreeMap};
use time::OffsetDateTime;

/// Media type of one event as JSON.
pub const STRUCTURED_MEDIA_TYPE: &str = "application/cloudevents+json";
/// Media type of a JSON array of events.
pub const BATCH_MEDIA_TYPE: &str = "application/cloudevents-batch+json";

/// A CloudEvent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Unique within [`source`](Self::source).
    pub id: String,
    /// The context in which the event occurred: a URI reference.
    pub source: String,
    /// The event type.
    pub ty: EventType,
    /// The subject within the source.
    pub subject: Option<String>,
    /// Time of the occurrence.
    pub time: Option<OffsetDateTime>,
    /// Media type of the body; `None` means JSON.
    pub content_type: Option<String>,
    /// Schema of the body: a URI.
    pub schema: Option<String>,
    /// Extension attributes, such as [`CORRELATION_ID`]. Names are lower-case letters and digits.
    pub extensions: BTreeMap<String, String>,
    /// The body, unchanged.
    pub data: Bytes,
}

/// Extension: id of the conversation or workflow.
pub const CORRELATION_ID: &str = "correlationid";
/// Extension: id of the event that caused this one.
pub const CAUSATION_ID: &str = "causationid";
/// Extension: W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// Extension: key within which events are processed in order.
pub const PARTITION_KEY: &str = "partitionkey";
/// Extension (CloudEvents "dataref", the claim-check pattern): location of a body that is too large for a message.
pub const DATA_REF: &str = "dataref";
/// Extension: length of the causal chain of function results that led to this event. Only Nerve sets it.
pub const HOPS: &str = "nervehops";

/// Prefixes of the sources of Nerve's own events.
pub const RESERVED_SOURCE_PREFIXES: [&str; 4] = ["/hooks/", "/functions/", "/nerve/", "/v1/"];
/// URI scheme of Nerve's own [`DATA_REF`]s.
pub const NERVE_DATA_REF_SCHEME: &str = "nats-object:";

/// An invalid CloudEvent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// A required attribute is absent or empty.
    #[error("the CloudEvents attribute `{0}` is missing")]
    Missing(&'static str),
    /// An attribute has an invalid value.
    #[error("the CloudEvents attribute `{name}` is invalid: {why}")]
    Invalid {
        /// The attribute.
        name: String,
        /// Why it is invalid.
        why: String,
    },
    /// An external event has an attribute value that is reserved for Nerve's own events.
    #[error("the CloudEvents attribute `{name}` is reserved: `{value}` begins with `{reserved}`: {next}")]
    Reserved {
        /// The attribute.
        name: &'static str,
        /// Its value.
        value: String,
        /// The reserved prefix.
        reserved: &'static str,
        /// The value to send instead.
        next: &'static str,
    },
    /// The type is not valid in a subject.
    #[error("the CloudEvents attribute `type` is invalid: {0}")]
    Type(#[from] InvalidSubject),
}

/// Whether a media type, with or without parameters, is JSON: `application/json`, `text/json` or any `+json`.
pub fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    let suffix = essence.rsplit_once('+').map(|(_, suffix)| suffix);
    ["application/json", "text/json"].iter().any(|json| essence.eq_ignore_ascii_case(json))
        || suffix.is_some_and(|suffix| suffix.eq_ignore_ascii_case("json"))
}

/// Whether a media type is a valid header value: printable ASCII, without surrounding space.
pub fn is_media_type(text: &str) -> bool {
    !text.is_empty() && text.trim_ascii() == text && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// Whether a reference has Nerve's own scheme. Schemes are case-insensitive (RFC 3986).
fn is_nerve_data_ref(reference: &str) -> bool {
    let scheme = reference.get(..NERVE_DATA_REF_SCHEME.len());
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(NERVE_DATA_REF_SCHEME))
}

impl EventError {
    fn invalid(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { name: name.into(), why: why.into() }
    }
}

impl Event {
    /// Creates an event with the required attributes only.
    pub fn new(id: impl Into<String>, source: impl Into<String>, ty: EventType) -> Self {
        Self {
            id: id.into(),
            source: source.into(),
            ty,
            subject: None,
            time: None,
            content_type: None,
            schema: None,
            extensions: BTreeMap::new(),
            data: Bytes::new(),
        }
    }

    /// Sets the body and its media type.
    #[must_use]
    pub fn with_data(mut self, content_type: impl Into<String>, data: impl Into<Bytes>) -> Self {
        self.content_type = Some(content_type.into());
        self.data = data.into();
        self
    }

    /// Sets an extension attribute; `name` must be lower-case letters and digits.
    #[must_use]
    pub fn with_extension(mut self, name: &str, value: impl Into<String>) -> Self {
        self.extensions.insert(name.to_owned(), value.into());
        self
    }

    /// Returns an extension attribute.
    pub fn extension(&self, name: &str) -> Option<&str> {
        self.extensions.get(name).map(String::as_str)
    }

    /// Whether the body's media type is JSON: `None`, `application/json` or any `+json`.
    pub fn is_json(&self) -> bool {
        self.content_type.as_deref().is_none_or(is_json)
    }

    /// Rejects an external event that claims to be created by Nerve, or to have a body in Nerve's object store.
    ///
    /// # Errors
    /// If `source` begins with one of [`RESERVED_SOURCE_PREFIXES`], `dataref` has Nerve's own scheme, or
    /// `datacontenttype` is not a valid header value.
    pub fn check_external(&self) -> Result<(), EventError> {
        if self.content_type.as_deref().is_some_and(|declared| !is_media_type(declared)) {
            let why = "not a media type: use printable ASCII, as in `application/json`";
            return Err(EventError::invalid("datacontenttype", why));
        }
        let refuse = |name, value: &str, reserved, next| {
            Err(EventError::Reserved { name, value: value.to_owned(), reserved, next })
        };
        if let Some(reference) = self.extension(DATA_REF).filter(|reference| is_nerve_data_ref(reference)) {
            let next = "that scheme is Nerve's own: send the body as the event's data, or refer to it by its URL";
            return refuse(DATA_REF, reference, NERVE_DATA_REF_SCHEME, next);
        }
        match RESERVED_SOURCE_PREFIXES.into_iter().find(|reserved| self.source.starts_with(reserved)) {
            Some(reserved) => {
                let next = "sources below /hooks/, /functions/, /nerve/ or /v1/ are Nerve's own: name the \
                            sender, as in `/shop` or `https://shop.example`";
                refuse("source", &self.source, reserved, next)
            }
            None => Ok(()),
        }
    }

    /// Length of the causal chain of function results that led to this event; 0 if it is not a result.
    pub fn hops(&self) -> u32 {
        self.extension(HOPS).map_or(0, |hops| hops.parse().unwrap_or(u32::MAX))
    }

    /// Sets the length of the causal chain of function results.
    #[must_use]
    pub fn with_hops(self, hops: u32) -> Self {
        if hops == 0 { self } else { self.with_extension(HOPS, hops.to_string()) }
    }

    /// Removes the hop count, which an external sender may forward from another Nerve but must not set here.
    pub fn remove_hops(&mut self) {
        self.extensions.remove(HOPS);
    }

    /// Whether the body is in Nerve's object store because it is too large for a message.
    pub fn has_stored_body(&self) -> bool {
        self.extension(DATA_REF).is_some_and(is_nerve_data_ref)
    }

    /// Sets a context attribute or extension from its text form.
    fn set(&mut self, name: &str, value: String) -> Result<(), EventError> {
        match name {
            "specversion" if value == "1.0" => {}
            "specversion" => return Err(EventError::invalid(name, "only version 1.0 is supported")),
            "id" => self.id = value,
            "source" => self.source = value,
            "type" => self.ty = EventType::parse(value)?,
            "subject" => self.subject = Some(value),
            "datacontenttype" => self.content_type = Some(value),
            "dataschema" => self.schema = Some(value),
            "time" => {
                let format = &time::format_description::well_known::Rfc3339;
                let parsed = OffsetDateTime::parse(&value, format);
                self.time = Some(parsed.map_err(|_| EventError::invalid(name, "not an RFC 3339 time"))?);
            }
            _ if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) => {
                return Err(EventError::invalid(name, "attribute names are lower-case letters and digits"));
            }
            _ => {
                self.extensions.insert(name.to_owned(), value);
            }
        }
        Ok(())
    }

    /// The attributes in text form, `specversion` first, without the content type.
    fn attributes(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        let time = self.time.and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok());
        [
            ("specversion", Some(Cow::Borrowed("1.0"))),
            ("id", Some(Cow::Borrowed(self.id.as_str()))),
            ("source", Some(Cow::Borrowed(self.source.as_str()))),
            ("type", Some(Cow::Borrowed(self.ty.as_str()))),
            ("subject", self.subject.as_deref().map(Cow::Borrowed)),
            ("time", time.map(Cow::Owned)),
            ("dataschema", self.schema.as_deref().map(Cow::Borrowed)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .chain(self.extensions.iter().map(|(name, value)| (name.as_str(), Cow::Borrowed(value.as_str()))))
    }

    /// An empty event for [`set`](Self::set) and [`checked`](Self::checked).
    fn blank(ty: EventType) -> Self {
        Self::new(String::new(), String::new(), ty)
    }

    fn checked(self) -> Result<Self, EventError> {
        if self.id.is_empty() {
            return Err(EventError::Missing("id"));
        }
        if self.source.is_empty() {
            return Err(EventError::Missing("source"));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(source: &str) -> Event {
        Event::new("1", source, EventType::parse("a.b").unwrap())
    }

    #[test]
    fn external_event_cannot_use_a_reserved_source() {
        for own in ["/hooks/gh2", "/functions/f", "/nerve/cli", "/v1/documents", "/hooks/"] {
            let refused = from(own).check_external().unwrap_err().to_string();
            for part in ["`source`", own, "/hooks/, /functions/, /nerve/ or /v1/", "name the sender"] {
                assert!(refused.contains(part), "{refused}");
            }
        }
        for foreign in ["/shop", "https://shop.example/hooks/x", "/hooksmith", "hooks/x", "/v10/x", "urn:nerve"] {
            assert_eq!(from(foreign).check_external(), Ok(()), "{foreign}");
        }
    }

    #[test]
    fn external_event_needs_a_media_type_valid_in_a_header() {
        let of = |media_type: &str| from("/shop").with_data(media_type, "x").check_external();
        for wrong in ["", " ", "a/b ", "text/plain\r\nNats-Msg-Id: 1", "a/b\0", "text/ü"] {
            let refused = of(wrong).unwrap_err().to_string();
            assert!(refused.contains("`datacontenttype`") && refused.contains("media type"), "{wrong:?}: {refused}");
        }
        for right in ["application/json", "text/plain; charset=\"utf-8\"", "x"] {
            assert_eq!(of(right), Ok(()), "{right}");
        }
    }

    #[test]
    fn hops_are_set_and_removed() {
        assert_eq!((from("/shop").hops(), from("/shop").with_hops(0).extensions.len()), (0, 0));
        let mut third = from("/shop").with_hops(3);
        assert_eq!((third.hops(), third.extension(HOPS)), (3, Some("3")));
        assert_eq!(from("/shop").with_extension(HOPS, "-1").hops(), u32::MAX, "an invalid count allows no further hop");
        third.remove_hops();
        assert_eq!(third, from("/shop"));
    }

    #[test]
    fn external_event_cannot_refer_to_a_stored_body() {
        let referring = |to: &str| from("/shop").with_extension(DATA_REF, to);
        for own in ["nats-object:bodies/abc", "NATS-Object:bodies/abc", "nats-object:"] {
            let refused = referring(own).check_external().unwrap_err().to_string();
            assert!(refused.contains("`dataref`") && refused.contains(own), "{refused}");
            assert!(referring(own).has_stored_body());
        }
        for foreign in ["https://x.example/y", "nats-objects:x", "é", ""] {
            assert_eq!(referring(foreign).check_external(), Ok(()), "{foreign}");
            assert!(!referring(foreign).has_stored_body());
        }
        assert!(!from("/shop").has_stored_body());
    }
}

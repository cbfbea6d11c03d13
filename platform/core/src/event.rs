//! A CloudEvent (specification 1.0.2), and its two wire forms.
//!
//! Binary mode puts the attributes in headers and leaves the body alone (HTTP and NATS protocol bindings);
//! structured mode is one JSON document (JSON event format). The types are our own rather than the SDK's:
//! the body stays the sender's bytes, and every event here has a type that can stand in a subject.

mod headers;
mod json;

pub use headers::{decode_value, encode_value};
pub use json::{JsonError, MAX_BATCH_EVENTS};

use crate::{EventType, subject::InvalidSubject};
use bytes::Bytes;
use std::{borrow::Cow, collections::BTreeMap};
use time::OffsetDateTime;

/// The media type of one event as JSON.
pub const STRUCTURED: &str = "application/cloudevents+json";
/// The media type of a JSON array of events.
pub const BATCH: &str = "application/cloudevents-batch+json";

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Unique within [`source`](Self::source).
    pub id: String,
    /// Where it happened: a URI reference.
    pub source: String,
    /// What happened.
    pub ty: EventType,
    /// What within the source it is about.
    pub subject: Option<String>,
    /// When it happened.
    pub time: Option<OffsetDateTime>,
    /// The body's media type; none means JSON.
    pub content_type: Option<String>,
    /// The schema the body follows: a URI.
    pub schema: Option<String>,
    /// Extension attributes, such as [`CORRELATION_ID`]; lower-case letters and digits name them.
    pub extensions: BTreeMap<String, String>,
    /// The body, as it was sent.
    pub data: Bytes,
}

/// Extension: one conversation or workflow.
pub const CORRELATION_ID: &str = "correlationid";
/// Extension: the id of the event that caused this one.
pub const CAUSATION_ID: &str = "causationid";
/// Extension: the W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// Extension: what is processed in order.
pub const PARTITION_KEY: &str = "partitionkey";
/// Extension (CloudEvents "dataref", the claim-check pattern): where a body too large for a message lies.
pub const DATA_REF: &str = "dataref";
/// Extension: how many results of functions led to this one, each the next one's cause. Nerve alone sets it.
pub const HOPS: &str = "nervehops";

/// How the sources of Nerve's own events begin.
pub const RESERVED_SOURCES: [&str; 4] = ["/hooks/", "/functions/", "/nerve/", "/v1/"];
/// The scheme of Nerve's own [`DATA_REF`]s.
pub const OWN_DATA_REF: &str = "nats-object:";

/// Why something is not a CloudEvent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// A required attribute is absent or empty.
    #[error("the CloudEvents attribute `{0}` is missing")]
    Missing(&'static str),
    /// An attribute has a value it may not have.
    #[error("the CloudEvents attribute `{name}` is wrong: {why}")]
    Invalid {
        /// The attribute.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// An event from outside has an attribute that only Nerve's own events have.
    #[error("the CloudEvents attribute `{name}` is refused: `{value}` begins with `{reserved}`, {next}")]
    Reserved {
        /// The attribute.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may not begin with.
        reserved: &'static str,
        /// What to send instead.
        next: &'static str,
    },
    /// The type cannot stand in a subject.
    #[error("the CloudEvents attribute `type` is wrong: {0}")]
    Type(#[from] InvalidSubject),
}

/// Whether this media type, with parameters or without, is one of JSON's: `application/json`, `text/json`, anything `+json`.
pub fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    let suffix = essence.rsplit_once('+').map(|(_, suffix)| suffix);
    ["application/json", "text/json"].iter().any(|json| essence.eq_ignore_ascii_case(json))
        || suffix.is_some_and(|suffix| suffix.eq_ignore_ascii_case("json"))
}

/// Whether a body's media type can stand in a header as it is: printable ASCII, without space around it.
pub fn is_media_type(text: &str) -> bool {
    !text.is_empty() && text.trim_ascii() == text && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// Whether a reference is of Nerve's own scheme; a scheme's letters may be of either case (RFC 3986).
fn is_own_data_ref(reference: &str) -> bool {
    let scheme = reference.get(..OWN_DATA_REF.len());
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(OWN_DATA_REF))
}

impl EventError {
    fn invalid(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { name: name.into(), why: why.into() }
    }
}

impl Event {
    /// An event with the required attributes and nothing else.
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

    /// This event with a body of that media type.
    #[must_use]
    pub fn with_data(mut self, content_type: impl Into<String>, data: impl Into<Bytes>) -> Self {
        self.content_type = Some(content_type.into());
        self.data = data.into();
        self
    }

    /// This event with an extension attribute; `name` must be lower-case letters and digits.
    #[must_use]
    pub fn with_extension(mut self, name: &str, value: impl Into<String>) -> Self {
        self.extensions.insert(name.to_owned(), value.into());
        self
    }

    /// An extension attribute.
    pub fn extension(&self, name: &str) -> Option<&str> {
        self.extensions.get(name).map(String::as_str)
    }

    /// Whether the body is JSON by its media type: none, `application/json`, or anything `+json`.
    pub fn is_json(&self) -> bool {
        self.content_type.as_deref().is_none_or(is_json)
    }

    /// Refuses what an event from outside Nerve may not say of itself: that Nerve made it, or that Nerve stored its body.
    ///
    /// # Errors
    /// When its `source` begins as one of [`RESERVED_SOURCES`], its `dataref` is of Nerve's own scheme, or its
    /// `datacontenttype` cannot stand in a header.
    pub fn check_from_outside(&self) -> Result<(), EventError> {
        if self.content_type.as_deref().is_some_and(|declared| !is_media_type(declared)) {
            let why = "it is no media type: write it in printable ASCII, as in `application/json`";
            return Err(EventError::invalid("datacontenttype", why));
        }
        let refuse = |name, value: &str, reserved, next| {
            Err(EventError::Reserved { name, value: value.to_owned(), reserved, next })
        };
        if let Some(reference) = self.extension(DATA_REF).filter(|reference| is_own_data_ref(reference)) {
            let next =
                "which only Nerve's own references do: send the body as the event's data, or refer to it by its URL";
            return refuse(DATA_REF, reference, OWN_DATA_REF, next);
        }
        match RESERVED_SOURCES.into_iter().find(|reserved| self.source.starts_with(reserved)) {
            Some(reserved) => {
                let next = "and sources that begin with /hooks/, /functions/, /nerve/ or /v1/ are Nerve's own: name the \
                            sender, as in `/shop` or `https://shop.example`";
                refuse("source", &self.source, reserved, next)
            }
            None => Ok(()),
        }
    }

    /// How many results of functions led to it; none where it is no result.
    pub fn hops(&self) -> u32 {
        self.extension(HOPS).map_or(0, |hops| hops.parse().unwrap_or(u32::MAX))
    }

    /// This event after so many results.
    #[must_use]
    pub fn with_hops(self, hops: u32) -> Self {
        if hops == 0 { self } else { self.with_extension(HOPS, hops.to_string()) }
    }

    /// Takes away what the sender of an event from outside may not set, and may well pass on: an event of another Nerve
    /// begins anew here.
    pub fn forget_hops(&mut self) {
        self.extensions.remove(HOPS);
    }

    /// Whether its body was too large for a message, and lies in Nerve's own store.
    pub fn has_stored_body(&self) -> bool {
        self.extension(DATA_REF).is_some_and(is_own_data_ref)
    }

    /// Sets a context attribute or extension from its text form.
    fn set(&mut self, name: &str, value: String) -> Result<(), EventError> {
        match name {
            "specversion" if value == "1.0" => {}
            "specversion" => return Err(EventError::invalid(name, "only version 1.0 is understood")),
            "id" => self.id = value,
            "source" => self.source = value,
            "type" => self.ty = EventType::parse(value)?,
            "subject" => self.subject = Some(value),
            "datacontenttype" => self.content_type = Some(value),
            "dataschema" => self.schema = Some(value),
            "time" => {
                let format = &time::format_description::well_known::Rfc3339;
                let parsed = OffsetDateTime::parse(&value, format);
                self.time = Some(parsed.map_err(|_| EventError::invalid(name, "it is not an RFC 3339 time"))?);
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

    /// The attributes that are set, in their text form, `specversion` first; the content type is not among them.
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

    /// An event to be filled by [`set`](Self::set), then checked by [`checked`](Self::checked).
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
    fn event_from_outside_cannot_pass_for_one_of_nerve() {
        for own in ["/hooks/gh2", "/functions/f", "/nerve/cli", "/v1/documents", "/hooks/"] {
            let refused = from(own).check_from_outside().unwrap_err().to_string();
            for said in ["`source`", own, "/hooks/, /functions/, /nerve/ or /v1/", "name the sender"] {
                assert!(refused.contains(said), "{refused}");
            }
        }
        for foreign in ["/shop", "https://shop.example/hooks/x", "/hooksmith", "hooks/x", "/v10/x", "urn:nerve"] {
            assert_eq!(from(foreign).check_from_outside(), Ok(()), "{foreign}");
        }
    }

    #[test]
    fn event_from_outside_has_a_media_type_that_can_stand_in_a_header() {
        let of = |media_type: &str| from("/shop").with_data(media_type, "x").check_from_outside();
        for wrong in ["", " ", "a/b ", "text/plain\r\nNats-Msg-Id: 1", "a/b\0", "text/ü"] {
            let refused = of(wrong).unwrap_err().to_string();
            assert!(refused.contains("`datacontenttype`") && refused.contains("media type"), "{wrong:?}: {refused}");
        }
        for right in ["application/json", "text/plain; charset=\"utf-8\"", "x"] {
            assert_eq!(of(right), Ok(()), "{right}");
        }
    }

    #[test]
    fn hops_are_counted_and_forgotten() {
        assert_eq!((from("/shop").hops(), from("/shop").with_hops(0).extensions.len()), (0, 0));
        let mut third = from("/shop").with_hops(3);
        assert_eq!((third.hops(), third.extension(HOPS)), (3, Some("3")));
        assert_eq!(from("/shop").with_extension(HOPS, "-1").hops(), u32::MAX, "what is no count has no hop left");
        third.forget_hops();
        assert_eq!(third, from("/shop"));
    }

    #[test]
    fn event_from_outside_cannot_refer_to_a_body_in_nerves_store() {
        let referring = |to: &str| from("/shop").with_extension(DATA_REF, to);
        for own in ["nats-object:bodies/abc", "NATS-Object:bodies/abc", "nats-object:"] {
            let refused = referring(own).check_from_outside().unwrap_err().to_string();
            assert!(refused.contains("`dataref`") && refused.contains(own), "{refused}");
            assert!(referring(own).has_stored_body());
        }
        for foreign in ["https://x.example/y", "nats-objects:x", "é", ""] {
            assert_eq!(referring(foreign).check_from_outside(), Ok(()), "{foreign}");
            assert!(!referring(foreign).has_stored_body());
        }
        assert!(!from("/shop").has_stored_body());
    }
}

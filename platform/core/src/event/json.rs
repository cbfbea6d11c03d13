//! Structured mode: one event as a JSON document, or a JSON array of events.

use super::{Event, EventError};
use crate::{
    EventType,
    limits::{self, BoundedList},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{
    Deserialize, Serialize, Serializer,
    ser::{Error as _, SerializeMap},
};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Maximum members of an event, attributes and data together.
const MAX_MEMBERS: usize = 256;
/// Maximum events per batch.
pub const MAX_BATCH_EVENTS: usize = 1000;

/// Members of an event. Limited, because small members take a hundred times their size in memory.
#[derive(Deserialize)]
#[serde(transparent)]
struct Members<'d>(
    #[serde(borrow, deserialize_with = "limits::map::<_, _, MAX_MEMBERS>")] BTreeMap<String, &'d RawValue>,
);

/// A JSON document that is not an event or a batch.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Not JSON, or not an object (for a batch: not an array of objects).
    #[error("not a CloudEvent as JSON: {0}")]
    Syntax(#[from] serde_json::Error),
    /// A batch of more than [`MAX_BATCH_EVENTS`].
    #[error("the batch has {0} events, the maximum is {MAX_BATCH_EVENTS}: split it")]
    TooMany(usize),
    /// JSON, but not a CloudEvent.
    #[error(transparent)]
    Event(#[from] EventError),
}

/// JSON event format 1.0.2: a JSON body is embedded, text is a string, anything else is base64.
impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.attributes() {
            map.serialize_entry(name, &value)?;
        }
        if let Some(content_type) = &self.content_type {
            map.serialize_entry("datacontenttype", content_type)?;
        }
        if self.data.is_empty() {
            return map.end();
        }
        let text = std::str::from_utf8(&self.data).ok();
        match text {
            Some(text) if self.is_json() => match serde_json::from_str::<&RawValue>(text) {
                Ok(raw) if !text.contains('\n') => map.serialize_entry("data", raw)?,
                // One event is one line (on a process's stdin, in an SSE field), so a pretty-printed body is compacted.
                Ok(raw) => {
                    let value: serde_json::Value = serde_json::from_str(raw.get()).map_err(S::Error::custom)?;
                    map.serialize_entry("data", &value)?;
                }
                Err(_) => map.serialize_entry("data_base64", &BASE64_STANDARD.encode(&self.data))?,
            },
            Some(text) if self.is_text() => map.serialize_entry("data", text)?,
            _ => map.serialize_entry("data_base64", &BASE64_STANDARD.encode(&self.data))?,
        }
        map.end()
    }
}

impl Event {
    fn is_text(&self) -> bool {
        let declared = self.content_type.as_deref().unwrap_or_default().to_ascii_lowercase();
        declared.starts_with("text/") || declared.contains("xml") || declared.contains("x-www-form-urlencoded")
    }

    /// Reads one event in the JSON format. A JSON body keeps its bytes.
    ///
    /// # Errors
    /// If `document` is not JSON or not a CloudEvent.
    pub fn from_json(document: &[u8]) -> Result<Self, JsonError> {
        let Members(members) = serde_json::from_slice(document)?;
        Self::from_members(members)
    }

    /// Reads a batch: a JSON array of at most [`MAX_BATCH_EVENTS`] events.
    ///
    /// # Errors
    /// If `document` is not an array, is too long, or contains an invalid event.
    pub fn batch_from_json(document: &[u8]) -> Result<Vec<Self>, JsonError> {
        let BoundedList::<Members<'_>, MAX_BATCH_EVENTS> { items, total } = serde_json::from_slice(document)?;
        if total > items.len() {
            return Err(JsonError::TooMany(total));
        }
        items.into_iter().map(|Members(members)| Self::from_members(members)).collect()
    }

    fn from_members(members: BTreeMap<String, &RawValue>) -> Result<Self, JsonError> {
        if !members.contains_key("specversion") {
            return Err(EventError::Missing("specversion").into());
        }
        let ty = members.get("type").ok_or(EventError::Missing("type"))?;
        let mut event = Self::blank(EventType::parse(attribute_text("type", ty)?).map_err(EventError::from)?);
        for (name, raw) in &members {
            if !matches!(name.as_str(), "data" | "data_base64") && raw.get() != "null" {
                event.set(name, attribute_text(name, raw)?)?;
            }
        }
        event.data = match (members.get("data"), members.get("data_base64")) {
            (Some(_), Some(_)) => {
                return Err(EventError::invalid("data", "`data` and `data_base64` are mutually exclusive").into());
            }
            (Some(data), None) if event.is_json() => Bytes::copy_from_slice(data.get().as_bytes()),
            (Some(data), None) => match serde_json::from_str::<String>(data.get()) {
                Ok(text) => Bytes::from(text),
                Err(_) => Bytes::copy_from_slice(data.get().as_bytes()),
            },
            (None, Some(encoded)) => {
                let text: String = serde_json::from_str(encoded.get())?;
                let decoded = BASE64_STANDARD.decode(text);
                Bytes::from(decoded.map_err(|e| EventError::invalid("data_base64", e.to_string()))?)
            }
            (None, None) => Bytes::new(),
        };
        Ok(event.checked()?)
    }
}

/// Attributes are strings, integers or booleans, each with a canonical text form.
fn attribute_text(name: &str, raw: &RawValue) -> Result<String, EventError> {
    match serde_json::from_str::<serde_json::Value>(raw.get()) {
        Ok(serde_json::Value::String(text)) => Ok(text),
        Ok(serde_json::Value::Bool(value)) => Ok(value.to_string()),
        Ok(serde_json::Value::Number(number)) if number.is_i64() => Ok(number.to_string()),
        _ => Err(EventError::invalid(name, "it must be a string, an integer or a boolean")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event::new("1", "/s", EventType::parse("a.b").unwrap())
    }

    fn round_trip(event: &Event) -> Event {
        Event::from_json(&serde_json::to_vec(event).unwrap()).unwrap()
    }

    #[test]
    fn each_kind_of_body_round_trips() {
        let bodies = [
            event(),
            event().with_data("application/json", r#"{"n":12345678901234567890123,"b":1.0}"#),
            event().with_data("text/plain", "line\nline"),
            event().with_data("image/png", &b"\x89PNG\0"[..]),
            event().with_data("application/json", "{broken").with_extension("partitionkey", "7"),
        ];
        for body in bodies {
            assert_eq!(round_trip(&body), body);
        }
    }

    #[test]
    fn serialized_event_is_one_line() {
        let pretty = event().with_data("application/json", "{\n  \"a\": 1\n}");
        let line = serde_json::to_string(&pretty).unwrap();
        assert!(!line.contains('\n') && line.contains(r#""data":{"a":1}"#), "{line}");
    }

    #[test]
    fn error_names_the_invalid_attribute() {
        let refuse = |text: &str| Event::from_json(text.as_bytes()).unwrap_err().to_string();
        assert!(refuse("[").contains("not a CloudEvent"));
        assert!(refuse("{}").contains("specversion"));
        let both = r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data":1,"data_base64":"eA=="}"#;
        assert!(refuse(both).contains("exclusive"));
        let bad_type = r#"{"specversion":"1.0","id":"1","source":"s","type":"t > x"}"#;
        assert!(refuse(bad_type).contains("type"));
        let bad_name = r#"{"specversion":"1.0","id":"1","source":"s","type":"t","Trace-Id":"x"}"#;
        assert!(refuse(bad_name).contains("lower-case"));
    }

    #[test]
    fn too_many_members_or_events_are_rejected() {
        let extensions: String = (0..MAX_MEMBERS).map(|n| format!(r#","e{n}":1"#)).collect();
        let wide = format!(r#"{{"specversion":"1.0"{extensions}}}"#);
        assert!(Event::from_json(wide.as_bytes()).unwrap_err().to_string().contains("more than 256 members"));
        let long = format!("[{}]", vec!["{}"; MAX_BATCH_EVENTS + 2].join(","));
        let refused = Event::batch_from_json(long.as_bytes()).unwrap_err();
        assert!(matches!(refused, JsonError::TooMany(1002)), "{refused}");
    }

    #[test]
    fn batch_is_an_array() {
        let batch = format!("[{0},{0}]", serde_json::to_string(&event()).unwrap());
        assert_eq!(Event::batch_from_json(batch.as_bytes()).unwrap().len(), 2);
    }
}

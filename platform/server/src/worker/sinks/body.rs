//! What is posted for an event.

use bytes::Bytes;
use minijinja::{AutoEscape, Environment, value::Serde};
use nerve_core::{
    Event,
    event::{STRUCTURED, is_json},
    manifest::SinkBody,
};
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use std::collections::BTreeMap;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

const JSON: &str = "application/json";
/// The only template of an environment.
const TEMPLATE: &str = "template";
/// Steps that a template may take: a bound on loops over large data.
const FUEL: u64 = 1_000_000;
/// The largest body that a template may make, in bytes.
const LARGEST: usize = 1 << 20;

/// Makes bodies by a sink's format.
pub(super) enum Composer {
    Standard,
    CloudEvents,
    Data,
    Template { environment: Box<Environment<'static>>, content_type: String },
}

/// A body and its media type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Composed {
    pub(super) content_type: String,
    pub(super) body: Bytes,
}

#[derive(Serialize)]
struct Standard<'e> {
    #[serde(rename = "type")]
    ty: &'e str,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'e RawValue>,
    /// A body that is no text, in CloudEvents' way.
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

impl Composer {
    /// Reads a sink's format; the error is about its template.
    pub(super) fn new(body: &SinkBody) -> Result<Self, String> {
        Ok(match body {
            SinkBody::Standard => Self::Standard,
            SinkBody::CloudEvents => Self::CloudEvents,
            SinkBody::Data => Self::Data,
            SinkBody::Template { text, content_type } => {
                let environment = Box::new(environment(text, is_json(content_type))?);
                Self::Template { environment, content_type: content_type.clone() }
            }
        })
    }

    /// What is posted for `event`; the error says why nothing can be.
    pub(super) fn compose(&self, event: &Event) -> Result<Composed, String> {
        let composed =
            |content_type: &str, body: Vec<u8>| Composed { content_type: content_type.to_owned(), body: body.into() };
        match self {
            Self::Standard => standard(event).map(|body| composed(JSON, body)),
            Self::CloudEvents => {
                let body =
                    serde_json::to_vec(event).map_err(|error| format!("it cannot be written as JSON: {error}"))?;
                Ok(composed(STRUCTURED, body))
            }
            Self::Data => {
                let content_type = event.content_type.as_deref().unwrap_or(JSON);
                Ok(Composed { content_type: content_type.to_owned(), body: event.data.clone() })
            }
            Self::Template { environment, content_type } => {
                let text = render(environment, event)?;
                if is_json(content_type) && serde_json::from_str::<serde::de::IgnoredAny>(&text).is_err() {
                    return Err(
                        "`template` made what is no JSON: values are written as JSON by themselves, so leave out \
                                quotes around {{ … }}"
                            .to_owned(),
                    );
                }
                Ok(composed(content_type, text.into_bytes()))
            }
        }
    }
}

fn standard(event: &Event) -> Result<Vec<u8>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("it cannot be written as JSON: {error}");
    let text = std::str::from_utf8(&event.data).ok();
    let data = match text {
        Some("") => None,
        Some(text) if event.is_json() => {
            Some(serde_json::from_str::<Box<RawValue>>(text).map_err(|error| failed(&error))?)
        }
        Some(text) => Some(serde_json::value::to_raw_value(text).map_err(|error| failed(&error))?),
        None => None,
    };
    let binary = text.is_none().then(|| base64::Engine::encode(&base64::prelude::BASE64_STANDARD, &event.data));
    let time = event.time.unwrap_or_else(OffsetDateTime::now_utc);
    let standard = Standard {
        ty: event.ty.as_str(),
        timestamp: time.format(&Rfc3339).map_err(|error| failed(&error))?,
        data: data.as_deref(),
        data_base64: binary,
    };
    serde_json::to_vec(&standard).map_err(|error| failed(&error))
}

fn environment(text: &str, json: bool) -> Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(move |_| if json { AutoEscape::Json } else { AutoEscape::None });
    environment.set_fuel(Some(FUEL));
    let added = environment.add_template_owned(TEMPLATE, text.to_owned());
    added.map_err(|error| format!("`template` is wrong: {error:#}"))?;
    Ok(environment)
}

/// Takes what a template writes, up to its bound.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > LARGEST {
            return Err(std::io::Error::other("it is larger than 1 MiB"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What a template knows.
#[derive(Serialize)]
struct Values<'e> {
    id: &'e str,
    source: &'e str,
    #[serde(rename = "type")]
    ty: &'e str,
    subject: Option<&'e str>,
    time: Option<String>,
    extensions: &'e BTreeMap<String, String>,
    data: Value,
}

fn render(environment: &Environment<'_>, event: &Event) -> Result<String, String> {
    let failed = |error: &dyn std::fmt::Display| format!("`template` cannot be filled in: {error}");
    let data: Value = match event.is_json() {
        true if event.data.is_empty() => Value::Null,
        true => serde_json::from_slice(&event.data).map_err(|error| failed(&error))?,
        false => Value::String(String::from_utf8_lossy(&event.data).into_owned()),
    };
    let values = Values {
        id: &event.id,
        source: &event.source,
        ty: event.ty.as_str(),
        subject: event.subject.as_deref(),
        time: event.time.and_then(|time| time.format(&Rfc3339).ok()),
        extensions: &event.extensions,
        data,
    };
    let mut made = Bounded(Vec::new());
    let template = environment.get_template(TEMPLATE).map_err(|error| failed(&error))?;
    template.render_captured_to(Serde(values), &mut made).map_err(|error| failed(&format_args!("{error:#}")))?;
    String::from_utf8(made.0).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::EventType;
    use time::macros::datetime;

    fn event(content_type: &str, data: &'static [u8]) -> Event {
        let mut event = Event::new("1", "/s", EventType::parse("a.b").unwrap()).with_data(content_type, data);
        event.time = Some(datetime!(2026-11-24 12:00:00 UTC));
        event
    }

    fn composed(body: &SinkBody, event: &Event) -> (String, String) {
        let composed = Composer::new(body).unwrap().compose(event).unwrap();
        (composed.content_type, String::from_utf8(composed.body.to_vec()).unwrap())
    }

    fn template(text: &str, content_type: &str) -> SinkBody {
        SinkBody::Template { text: text.to_owned(), content_type: content_type.to_owned() }
    }

    #[test]
    fn the_standard_body_keeps_the_data_as_it_is() {
        let (content_type, body) = composed(&SinkBody::Standard, &event(JSON, br#"{"n":12345678901234567890123}"#));
        assert_eq!(content_type, JSON);
        let head = r#"{"type":"a.b","timestamp":"2026-11-24T12:00:00Z","#;
        assert_eq!(body, format!(r#"{head}"data":{{"n":12345678901234567890123}}}}"#));
        assert_eq!(composed(&SinkBody::Standard, &event("text/plain", b"hi")).1, format!(r#"{head}"data":"hi"}}"#));
        assert_eq!(
            composed(&SinkBody::Standard, &event("image/png", b"\x89P")).1,
            format!(r#"{head}"data_base64":"iVA="}}"#)
        );
        assert!(Composer::Standard.compose(&event(JSON, b"{oops")).is_err());
    }

    #[test]
    fn the_event_as_it_is() {
        let (content_type, body) = composed(&SinkBody::CloudEvents, &event(JSON, b"{}"));
        assert_eq!(content_type, "application/cloudevents+json");
        assert_eq!(Event::from_json(body.as_bytes()).unwrap(), event(JSON, b"{}"));
        assert_eq!(composed(&SinkBody::Data, &event("text/csv", b"a,b")), ("text/csv".into(), "a,b".into()));
    }

    #[test]
    fn a_template_writes_values_as_json() {
        let text = r#"{"text": {{ "New: " ~ data.title }}, "id": {{ id }}, "all": {{ data.tags }}}"#;
        let (content_type, body) =
            composed(&template(text, JSON), &event(JSON, br#"{"title": "say \"hi\"", "tags": ["a", "b"]}"#));
        assert_eq!(content_type, JSON);
        let value: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(value, serde_json::json!({"text": "New: say \"hi\"", "id": "1", "all": ["a", "b"]}));
        let plain = composed(&template("{{ type }}: {{ data }}", "text/plain"), &event("text/plain", b"a\"b"));
        assert_eq!(plain, ("text/plain".into(), "a.b: a\"b".into()));
    }

    #[test]
    fn what_a_template_cannot_do_is_told() {
        assert!(Composer::new(&template("{{ oops", JSON)).err().unwrap().contains("`template` is wrong"));
        let told = |text: &str| Composer::new(&template(text, JSON)).unwrap().compose(&event(JSON, b"{}")).unwrap_err();
        assert!(told("\"{{ type }}\"").contains("leave out quotes"));
        assert!(told("{{ data | nofilter }}").contains("cannot be filled in"));
        assert!(told("{% for i in range(9999) %}{% for j in range(9999) %}1{% endfor %}{% endfor %}").contains("fuel"));
    }
}

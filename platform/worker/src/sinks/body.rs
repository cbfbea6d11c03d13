//! Request bodies of sinks.

use super::template::{ComposeError, Template};
use bytes::Bytes;
use nerve_core::{
    Event, Name,
    event::{STRUCTURED_MEDIA_TYPE, is_json},
    manifest::SinkBody,
};
use nerve_sandbox::Pool;
use serde::Serialize;
use serde_json::value::RawValue;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

const JSON: &str = "application/json";

/// Builds bodies in a sink's format.
pub(super) enum Composer {
    Standard,
    CloudEvents,
    Data,
    Template { template: Box<Template>, content_type: String },
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
    /// A binary body, as in CloudEvents.
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

impl Composer {
    /// Creates the composer of `sink`. Helper processes of `pool` render its template.
    ///
    /// # Errors
    /// The error in the template.
    pub(super) async fn new(body: &SinkBody, sink: &Name, pool: &Pool) -> Result<Self, String> {
        Ok(match body {
            SinkBody::Standard => Self::Standard,
            SinkBody::CloudEvents => Self::CloudEvents,
            SinkBody::Data => Self::Data,
            SinkBody::Template { text, content_type } => {
                let template = Box::new(Template::new(pool, sink, text, is_json(content_type)).await?);
                Self::Template { template, content_type: content_type.clone() }
            }
        })
    }

    /// Builds the body for `event`.
    pub(super) async fn compose(&self, event: &Event) -> Result<Composed, ComposeError> {
        let composed =
            |content_type: &str, body: Vec<u8>| Composed { content_type: content_type.to_owned(), body: body.into() };
        match self {
            Self::Standard => standard(event).map(|body| composed(JSON, body)),
            Self::CloudEvents => {
                let body = serde_json::to_vec(event).map_err(|error| not_serializable(&error))?;
                Ok(composed(STRUCTURED_MEDIA_TYPE, body))
            }
            Self::Data => {
                let content_type = event.content_type.as_deref().unwrap_or(JSON);
                Ok(Composed { content_type: content_type.to_owned(), body: event.data.clone() })
            }
            Self::Template { template, content_type } => {
                let body = template.render(event).await?;
                check_media_type(content_type, &body)?;
                Ok(composed(content_type, body))
            }
        }
    }
}

/// Rejects a rendered body that does not match its media type.
fn check_media_type(content_type: &str, body: &[u8]) -> Result<(), ComposeError> {
    if !is_json(content_type) || serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok() {
        return Ok(());
    }
    let why = "`template` rendered invalid JSON: values are written as JSON, so leave out quotes around {{ … }}";
    Err(ComposeError::Invalid(why.to_owned()))
}

fn not_serializable(error: &dyn std::fmt::Display) -> ComposeError {
    ComposeError::Invalid(format!("event cannot be written as JSON: {error}"))
}

fn standard(event: &Event) -> Result<Vec<u8>, ComposeError> {
    let text = std::str::from_utf8(&event.data).ok();
    let data = match text {
        Some("") => None,
        Some(text) if event.is_json() => {
            Some(serde_json::from_str::<Box<RawValue>>(text).map_err(|error| not_serializable(&error))?)
        }
        Some(text) => Some(serde_json::value::to_raw_value(text).map_err(|error| not_serializable(&error))?),
        None => None,
    };
    let binary = text.is_none().then(|| base64::Engine::encode(&base64::prelude::BASE64_STANDARD, &event.data));
    let time = event.time.unwrap_or_else(OffsetDateTime::now_utc);
    let standard = Standard {
        ty: event.ty.as_str(),
        timestamp: time.format(&Rfc3339).map_err(|error| not_serializable(&error))?,
        data: data.as_deref(),
        data_base64: binary,
    };
    serde_json::to_vec(&standard).map_err(|error| not_serializable(&error))
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

    async fn composed(composer: Composer, event: &Event) -> (String, String) {
        let composed = composer.compose(event).await.unwrap();
        (composed.content_type, String::from_utf8(composed.body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn standard_body_keeps_the_data_unchanged() {
        let (content_type, body) =
            composed(Composer::Standard, &event(JSON, br#"{"n":12345678901234567890123}"#)).await;
        assert_eq!(content_type, JSON);
        let head = r#"{"type":"a.b","timestamp":"2026-11-24T12:00:00Z","#;
        assert_eq!(body, format!(r#"{head}"data":{{"n":12345678901234567890123}}}}"#));
        let text = composed(Composer::Standard, &event("text/plain", b"hi")).await;
        assert_eq!(text.1, format!(r#"{head}"data":"hi"}}"#));
        let bytes = composed(Composer::Standard, &event("image/png", b"\x89P")).await;
        assert_eq!(bytes.1, format!(r#"{head}"data_base64":"iVA="}}"#));
        assert!(Composer::Standard.compose(&event(JSON, b"{oops")).await.is_err());
    }

    #[tokio::test]
    async fn cloudevents_and_data_bodies_keep_the_event_unchanged() {
        let (content_type, body) = composed(Composer::CloudEvents, &event(JSON, b"{}")).await;
        assert_eq!(content_type, "application/cloudevents+json");
        assert_eq!(Event::from_json(body.as_bytes()).unwrap(), event(JSON, b"{}"));
        let data = composed(Composer::Data, &event("text/csv", b"a,b")).await;
        assert_eq!(data, ("text/csv".into(), "a,b".into()));
    }

    #[test]
    fn rendered_body_must_be_json_if_its_media_type_is() {
        check_media_type("text/plain", b"\"\"a.b\"\"").unwrap();
        check_media_type(JSON, b"\"a.b\"").unwrap();
        let refused = check_media_type(JSON, b"\"\"a.b\"\"").unwrap_err();
        assert!(refused.to_string().contains("leave out quotes"));
    }
}

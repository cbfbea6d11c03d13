//! CloudEvents over HTTP in binary, structured and batch mode (HTTP protocol binding 1.0.2). A source of Nerve's own is refused.
//!
//! The media type selects structured and batch mode, the header `ce-specversion` binary mode.

use crate::api::openapi::{any, text};
use crate::http::problem::{HttpResult, Problem, ProblemType};
use bytes::Bytes;
use http::{HeaderMap, header};
use nerve_core::event::{BATCH_MEDIA_TYPE, Event, JsonError, STRUCTURED_MEDIA_TYPE};
use utoipa::openapi::{
    RefOr, Schema,
    schema::{AdditionalProperties, ObjectBuilder},
};

/// The events of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ParsedRequest {
    /// Binary or structured mode.
    One(Box<Event>),
    /// Batch mode.
    Batch(Vec<Event>),
    /// Not a CloudEvent in any mode.
    Plain,
}

/// Parses a request in any mode.
///
/// # Errors
/// 400 for an invalid event, 413 for too many, 415 for an unknown CloudEvents format.
pub(crate) fn parse(headers: &HeaderMap, body: &Bytes) -> HttpResult<ParsedRequest> {
    let essence = essence(headers);
    if essence == BATCH_MEDIA_TYPE {
        let mut events = Event::batch_from_json(body).map_err(|error| match error {
            JsonError::TooMany(_) => Problem::new(ProblemType::BodyTooLarge, error.to_string()),
            error => refused(error),
        })?;
        events.iter().try_for_each(Event::check_external).map_err(refused)?;
        events.iter_mut().for_each(Event::remove_hops);
        return Ok(ParsedRequest::Batch(events));
    }
    if essence == STRUCTURED_MEDIA_TYPE {
        return one(Event::from_json(body).map_err(refused)?);
    }
    if essence.starts_with("application/cloudevents") {
        let detail = format!("`{essence}` is not supported; send `{STRUCTURED_MEDIA_TYPE}` or `{BATCH_MEDIA_TYPE}`");
        return Err(Problem::new(ProblemType::UnsupportedMediaType, detail));
    }
    if !headers.contains_key("ce-specversion") {
        return Ok(ParsedRequest::Plain);
    }
    let mut pairs = Vec::with_capacity(headers.len());
    for (name, value) in
        headers.iter().filter(|(name, _)| name.as_str().starts_with("ce-") || *name == header::CONTENT_TYPE)
    {
        let value = std::str::from_utf8(value.as_bytes());
        let value = value.map_err(|_| refused(format!("the header `{name}` is not UTF-8")))?;
        pairs.push((name.as_str(), value));
    }
    one(Event::from_headers(pairs, body.clone()).map_err(refused)?)
}

fn one(mut event: Event) -> HttpResult<ParsedRequest> {
    event.check_external().map_err(refused)?;
    event.remove_hops();
    Ok(ParsedRequest::One(Box::new(event)))
}

fn refused(error: impl std::fmt::Display) -> Problem {
    Problem::new(ProblemType::InvalidEvent, error.to_string())
}

/// The media type without its parameters, in lower case; empty if there is none.
pub(crate) fn essence(headers: &HeaderMap) -> String {
    let declared = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The schema of an event in structured mode.
pub(crate) fn cloud_event() -> RefOr<Schema> {
    let required = ["specversion", "id", "source", "type"];
    let optional = ["subject", "time", "datacontenttype", "dataschema", "dataref", "data_base64"];
    let attributes = required.into_iter().chain(optional);
    let event = attributes.fold(ObjectBuilder::new(), |event, name| event.property(name, text()));
    let event = required.into_iter().fold(event, ObjectBuilder::required).property("data", any());
    event.additional_properties(Some(AdditionalProperties::FreeForm(true))).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::event::MAX_BATCH_EVENTS;

    const ONE: &str = r#"{"specversion":"1.0","id":"1","source":"/s","type":"a.b","data":{"n":1}}"#;

    fn posted(headers: &[(&'static str, &str)], body: &str) -> Result<ParsedRequest, u16> {
        let pair = |(name, value): &(&'static str, &str)| (http::HeaderName::from_static(name), value.parse().unwrap());
        let read = parse(&headers.iter().map(pair).collect(), &Bytes::from(body.to_owned()));
        read.map_err(|problem| problem.status().as_u16())
    }

    #[test]
    fn all_modes_yield_the_same_event() {
        let binary = posted(
            &[("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "a.b"), ("accept", "*/*")],
            r#"{"n":1}"#,
        );
        let structured = posted(&[("content-type", "application/cloudevents+json; charset=utf-8")], ONE);
        assert_eq!(binary, structured);
        let Ok(ParsedRequest::One(event)) = structured else { panic!("one event") };
        let batch = posted(&[("content-type", "application/cloudevents-batch+json")], &format!("[{ONE},{ONE}]"));
        assert_eq!(batch, Ok(ParsedRequest::Batch(vec![(*event).clone(), *event])));
        assert_eq!(posted(&[("content-type", BATCH_MEDIA_TYPE)], "[]"), Ok(ParsedRequest::Batch(vec![])));
    }

    #[test]
    fn event_with_a_reserved_source_is_refused_in_every_mode() {
        let forged = |attribute: &str, value: &str| {
            let mut event: serde_json::Value = serde_json::from_str(ONE).unwrap();
            event[attribute] = value.into();
            let (source, reference) = (event["source"].as_str().unwrap(), event["dataref"].as_str().unwrap_or("/d"));
            let binary = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", source), ("ce-type", "a.b")];
            let binary = posted(&[&binary[..], &[("ce-dataref", reference)]].concat(), "{}");
            let structured = posted(&[("content-type", STRUCTURED_MEDIA_TYPE)], &event.to_string());
            let batch = posted(&[("content-type", BATCH_MEDIA_TYPE)], &format!("[{ONE},{event}]"));
            [binary, structured, batch].map(|posted| posted.map(drop))
        };
        for (attribute, value) in [("source", "/hooks/gh2"), ("dataref", "nats-object:bodies/abc")] {
            assert_eq!(forged(attribute, value), [Err(400); 3], "{attribute}");
        }
        assert_eq!(forged("dataref", "https://x.example/y"), [Ok(()); 3]);
    }

    #[test]
    fn other_requests_are_refused_or_plain() {
        assert_eq!(posted(&[("content-type", "application/json")], "{}"), Ok(ParsedRequest::Plain));
        assert_eq!(posted(&[], ""), Ok(ParsedRequest::Plain));
        assert_eq!(posted(&[("content-type", STRUCTURED_MEDIA_TYPE)], "{"), Err(400));
        assert_eq!(posted(&[("content-type", BATCH_MEDIA_TYPE)], "{}"), Err(400));
        assert_eq!(posted(&[("content-type", "application/cloudevents+avro")], ""), Err(415));
        assert_eq!(posted(&[("ce-specversion", "1.0")], ""), Err(400));
        let huge = format!("[{}]", vec![ONE; MAX_BATCH_EVENTS + 1].join(","));
        assert_eq!(posted(&[("content-type", BATCH_MEDIA_TYPE)], &huge), Err(413));
    }
}

//! The types of events that Nerve itself makes and takes, and what their data must look like.
//!
//! An event of one of these types whose data does not fit is refused when it is published: whoever made it is told, and
//! not whoever would have taken it. Types that are not here are their makers' own.

use jsonschema::Validator;
use nerve_core::Event;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::HashMap, sync::LazyLock};

const CATALOGUE: &str = include_str!("event_types.json");
/// Mistakes that are told of one event.
const TOLD: usize = 3;

/// A type of events.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KnownType {
    /// Its name.
    #[serde(rename = "type")]
    pub ty: String,
    /// Whether it is about input, data, a model, control or feedback.
    pub kind: String,
    /// What has happened.
    pub about: String,
    /// What makes it.
    pub producers: Vec<String>,
    /// What takes it.
    pub consumers: Vec<String>,
    /// Its data, as JSON Schema (draft 2020-12).
    pub schema: Value,
}

/// Every type, in the order of the flow.
pub fn known_types() -> &'static [KnownType] {
    static KNOWN: LazyLock<Vec<KnownType>> = LazyLock::new(|| {
        #[expect(clippy::expect_used, reason = "a constant that a test reads")]
        serde_json::from_str(CATALOGUE).expect("the catalogue of event types")
    });
    &KNOWN
}

fn validators() -> &'static HashMap<&'static str, Validator> {
    static VALIDATORS: LazyLock<HashMap<&'static str, Validator>> = LazyLock::new(|| {
        let validator = |known: &'static KnownType| {
            #[expect(clippy::expect_used, reason = "a constant that a test compiles")]
            let validator = jsonschema::validator_for(&known.schema).expect("a schema");
            (known.ty.as_str(), validator)
        };
        known_types().iter().map(validator).collect()
    });
    &VALIDATORS
}

/// Says where an event's data does not fit its type. A body that is no JSON is nothing to say anything about, and one
/// that lies elsewhere was looked at when it was put there.
pub(crate) fn check(event: &Event) -> Result<(), String> {
    let Some(validator) = validators().get(event.ty.as_str()) else { return Ok(()) };
    if !event.is_json() || event.extension(nerve_core::event::DATA_REF).is_some() {
        return Ok(());
    }
    let told =
        |why: String| format!("its data does not fit the type {}: {why}; GET /v1/event-types has its schema", event.ty);
    let data: Value = serde_json::from_slice(&event.data).map_err(|error| told(format!("it is no JSON ({error})")))?;
    if validator.is_valid(&data) {
        return Ok(());
    }
    let mistakes = validator.iter_errors(&data).take(TOLD).map(|mistake| match mistake.instance_path().as_str() {
        "" => mistake.masked().to_string(),
        place => format!("at {place}: {}", mistake.masked()),
    });
    Err(told(mistakes.collect::<Vec<_>>().join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::EventType;

    fn event(ty: &str, data: &str) -> Event {
        Event::new("1", "/s", EventType::parse(ty).unwrap()).with_data("application/json", data.to_owned())
    }

    #[test]
    fn every_schema_is_one_and_every_type_is_there_once() {
        assert_eq!(validators().len(), known_types().len());
        assert!(
            known_types().iter().all(|known| EventType::parse(known.ty.as_str()).is_ok() && !known.about.is_empty())
        );
    }

    #[test]
    fn data_that_does_not_fit_is_told_with_its_place() {
        assert_eq!(check(&event("answer.token", r#"{"text": "a", "more": 1}"#)), Ok(()));
        assert_eq!(check(&event("my.own", "{}")), Ok(()));
        assert_eq!(check(&event("prompt.received", r#"{"prompt": "?"}"#)), Ok(()));
        for (ty, data, said) in [
            ("answer.token", r#"{"text": 1}"#, "at /text"),
            ("answer.token", "{}", "\"text\" is a required property"),
            ("documents.retrieved", r#"{"question": "?", "documents": [{"document": "d"}]}"#, "/documents/0"),
            ("prompt.received", r#"{"q": "?"}"#, "prompt.received"),
            ("feedback.submitted", r#"{"answer": "1", "rating": 3}"#, "/rating"),
            ("answer.generated", "nonsense", "no JSON"),
        ] {
            let why = check(&event(ty, data)).unwrap_err();
            assert!(why.contains(said) && why.contains("/v1/event-types"), "{ty} {data}: {why}");
        }
    }

    #[test]
    fn a_document_may_be_its_own_body() {
        let mut event = event("document.uploaded", "# Fees");
        event.content_type = Some("text/markdown".into());
        assert_eq!(check(&event), Ok(()));
    }
}

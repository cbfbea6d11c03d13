//! The catalog of event types of Nerve, with JSON Schemas of their data.
//!
//! # Layout
//! `event_types.json` is the catalog; [`known_types`] reads it, [`check`] validates an event against it.
//!
//! # Flow
//! An event of a known type whose data violates the schema is refused when it is published, so that the publisher gets the error and not a
//! consumer. Other types are unrestricted.

use jsonschema::Validator;
use nerve_core::{Event, EventType, Pattern};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

const CATALOGUE: &str = include_str!("event_types.json");
/// Maximum number of schema violations to report per event.
const MAX_REPORTED_VIOLATIONS: usize = 3;

/// An event type of Nerve.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KnownType {
    /// Its name, or a pattern with a wildcard at the end.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its kind: input, data, model, control or feedback.
    pub kind: String,
    /// What an event of this type states.
    pub about: String,
    /// The functions and routes that publish it.
    pub producers: Vec<String>,
    /// The functions that consume it.
    pub consumers: Vec<String>,
    /// The JSON Schema of its data (draft 2020-12).
    pub schema: Value,
}

/// All event types of Nerve, in pipeline order.
pub fn known_types() -> &'static [KnownType] {
    static KNOWN: LazyLock<Vec<KnownType>> = LazyLock::new(|| {
        #[expect(clippy::expect_used, reason = "a constant that a test reads")]
        serde_json::from_str(CATALOGUE).expect("the catalogue of event types")
    });
    &KNOWN
}

/// The validators of all event types.
struct Validators {
    by_name: HashMap<&'static str, Validator>,
    by_pattern: Vec<(Pattern, Validator)>,
}

impl Validators {
    fn get(&self, ty: &EventType) -> Option<&Validator> {
        let by_pattern = || self.by_pattern.iter().find(|(pattern, _)| ty.matches(pattern)).map(|(_, found)| found);
        self.by_name.get(ty.as_str()).or_else(by_pattern)
    }
}

fn validators() -> &'static Validators {
    static VALIDATORS: LazyLock<Validators> = LazyLock::new(|| {
        let mut validators = Validators { by_name: HashMap::new(), by_pattern: Vec::new() };
        for known in known_types() {
            #[expect(clippy::expect_used, reason = "a constant that a test compiles")]
            let validator = jsonschema::validator_for(&known.schema).expect("a schema");
            match (EventType::parse(known.ty.as_str()), Pattern::parse(known.ty.as_str())) {
                (Err(_), Ok(pattern)) => validators.by_pattern.push((pattern, validator)),
                _ => drop(validators.by_name.insert(known.ty.as_str(), validator)),
            }
        }
        validators
    });
    &VALIDATORS
}

/// Whether data of this type may name the event's collection.
pub fn names_collection(ty: &EventType) -> bool {
    static NAMING: LazyLock<HashSet<&str>> = LazyLock::new(|| {
        let names = |known: &&KnownType| known.schema.pointer("/properties/collection").is_some();
        known_types().iter().filter(names).map(|known| known.ty.as_str()).collect()
    });
    NAMING.contains(ty.as_str())
}

/// Validates an event's data against the schema of its type. Skips bodies that are not JSON and bodies in Nerve's object store, which were
/// validated when they were stored. An event with a foreign `dataref` is validated as it is.
///
/// # Errors
/// A message that names the type and up to three violations.
pub fn check(event: &Event) -> Result<(), String> {
    let Some(validator) = validators().get(&event.ty) else { return Ok(()) };
    if !event.is_json() || event.has_stored_body() {
        return Ok(());
    }
    let violation =
        |why: String| format!("the data violates the schema of {}: {why}; see GET /v1/event-types", event.ty);
    let data: Value =
        serde_json::from_slice(&event.data).map_err(|error| violation(format!("it is not JSON ({error})")))?;
    if validator.is_valid(&data) {
        return Ok(());
    }
    let violations =
        validator.iter_errors(&data).take(MAX_REPORTED_VIOLATIONS).map(|found| match found.instance_path().as_str() {
            "" => found.masked().to_string(),
            location => format!("at {location}: {}", found.masked()),
        });
    Err(violation(violations.collect::<Vec<_>>().join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fmt::Write, path::Path};

    fn event(ty: &str, data: &str) -> Event {
        Event::new("1", "/s", EventType::parse(ty).unwrap()).with_data("application/json", data.to_owned())
    }

    #[test]
    fn every_schema_is_valid_and_every_type_is_listed_once() {
        let Validators { by_name, by_pattern } = validators();
        assert_eq!(by_name.len() + by_pattern.len(), known_types().len());
        assert!(known_types().iter().all(|known| Pattern::parse(known.ty.as_str()).is_ok() && !known.about.is_empty()));
    }

    /// The table of the manual.
    fn table() -> String {
        let code = |name: &String| match name.contains('/') || name.starts_with("nerve ") {
            true => format!("`{name}`"),
            false => name.clone(),
        };
        let names = |names: &[String]| match names {
            [] => "–".to_owned(),
            names => names.iter().map(code).collect::<Vec<_>>().join(", "),
        };
        let mut table = "| type | kind | what it says | made by | taken by |\n|---|---|---|---|---|\n".to_owned();
        for KnownType { ty, kind, about, producers, consumers, .. } in known_types() {
            let (made, taken) = (names(producers), names(consumers));
            writeln!(table, "| `{ty}` | {kind} | {about} | {made} | {taken} |").unwrap();
        }
        table
    }

    #[test]
    fn manual_has_the_table_of_all_types() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../functions/reference/event-types.md");
        let manual = std::fs::read_to_string(&file).unwrap();
        let start = manual.find("| type | kind |").expect("the manual has the table");
        let (before, rest) = manual.split_at(start);
        let end = rest.find("\n\n").map_or(rest.len(), |end| end + 1);
        let (found, after) = rest.split_at(end);
        if std::env::var_os("NERVE_WRITE_MANUAL").is_some() {
            std::fs::write(&file, format!("{before}{}{after}", table())).unwrap();
        } else {
            assert_eq!(found, table(), "run this test with NERVE_WRITE_MANUAL=1, which writes the table");
        }
    }

    #[test]
    fn schema_violation_is_reported_with_its_location() {
        assert_eq!(check(&event("answer.token", r#"{"text": "a", "more": 1}"#)), Ok(()));
        assert_eq!(check(&event("my.own", "{}")), Ok(()));
        assert_eq!(check(&event("prompt.received", r#"{"prompt": "?"}"#)), Ok(()));
        for (ty, data, said) in [
            ("answer.token", r#"{"text": 1}"#, "at /text"),
            ("answer.token", "{}", "\"text\" is a required property"),
            ("documents.retrieved", r#"{"question": "?", "documents": [{"document": "d"}]}"#, "/documents/0"),
            ("prompt.received", r#"{"q": "?"}"#, "prompt.received"),
            ("feedback.submitted", r#"{"answer": "1", "rating": 3}"#, "/rating"),
            ("answer.generated", "nonsense", "not JSON"),
            ("tool.called.search", r#"{"tool": "search", "arguments": {}}"#, "\"call\" is a required property"),
            ("control.retry_requested", "{}", "control.retry_requested"),
        ] {
            let why = check(&event(ty, data)).unwrap_err();
            assert!(why.contains(said) && why.contains("/v1/event-types"), "{ty} {data}: {why}");
        }
    }

    #[test]
    fn data_with_a_foreign_dataref_is_validated() {
        let referring = |ty: &str, data: &str, to: &str| event(ty, data).with_extension("dataref", to);
        for data in [r#"{"nonsense": 1}"#, ""] {
            assert!(check(&referring("prompt.received", data, "https://x.example/y")).is_err(), "{data}");
        }
        assert_eq!(check(&referring("prompt.received", r#"{"prompt": "?"}"#, "https://x.example/y")), Ok(()));
        assert_eq!(check(&referring("my.own", "", "https://x.example/y")), Ok(()));
        assert_eq!(check(&referring("prompt.received", "", "nats-object:bodies/abc")), Ok(()));
    }

    #[test]
    fn raw_document_body_is_valid() {
        let mut event = event("document.uploaded", "# Fees");
        event.content_type = Some("text/markdown".into());
        assert_eq!(check(&event), Ok(()));
    }
}

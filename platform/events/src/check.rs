//! Validates events against the schemas of their types.

use crate::{KnownType, known_types};
use jsonschema::Validator;
use nerve_core::{Event, EventType, Pattern};
use serde_json::Value;
use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

/// Maximum number of schema violations to report per event.
const MAX_REPORTED_VIOLATIONS: usize = 3;

/// The validators of all event types.
pub(crate) struct Validators {
    pub(crate) by_name: HashMap<&'static str, Validator>,
    pub(crate) by_pattern: Vec<(Pattern, Validator)>,
}

impl Validators {
    fn get(&self, ty: &EventType) -> Option<&Validator> {
        let by_pattern = || self.by_pattern.iter().find(|(pattern, _)| ty.matches(pattern)).map(|(_, found)| found);
        self.by_name.get(ty.as_str()).or_else(by_pattern)
    }
}

pub(crate) fn validators() -> &'static Validators {
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

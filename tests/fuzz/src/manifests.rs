//! `nerve.toml`.

use nerve_core::Manifest;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

/// Reads a manifest; panics unless each mistake has its line, and what is deployed is read back as it is stored.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Manifest::parse(text) {
        Ok(Manifest { functions, sources, sinks, schedules }) => {
            functions.values().for_each(stored);
            sources.values().for_each(stored);
            sinks.values().for_each(stored);
            schedules.values().for_each(stored);
        }
        Err(error) => {
            let lines = text.split('\n').count();
            assert!(!error.problems.is_empty(), "an error names a mistake");
            for problem in &error.problems {
                assert!((1..=lines).contains(&problem.line), "{problem:?} of {lines} lines");
            }
        }
    }
}

fn stored<T: Serialize + DeserializeOwned + PartialEq + Debug>(spec: &T) {
    let record = serde_json::to_vec(spec).expect("a record can be written");
    assert_eq!(&serde_json::from_slice::<T>(&record).expect("a record can be read"), spec);
}

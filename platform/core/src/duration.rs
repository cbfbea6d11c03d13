//! Durations as people write them (`"30s"`, `"1h 30m"`), in settings and options.

use serde::{Deserialize, Deserializer};
use std::time::Duration;

/// Reads a duration from text, for `#[serde(deserialize_with = "nerve_core::duration::deserialize")]`.
///
/// # Errors
/// When the value is not text or not a duration, which the message quotes.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|error| serde::de::Error::custom(format!("`{text}` is not a duration: {error}")))
}

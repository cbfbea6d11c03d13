//! `[streams]`: the retention and the limits of the streams.

use serde::{Deserialize, Deserializer};
use std::time::Duration;

/// The configuration of the streams.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamsConfig {
    /// Replicas of each stream.
    pub replicas: usize,
    /// Maximum age of an event; zero for no limit.
    #[serde(deserialize_with = "duration")]
    pub events_max_age: Duration,
    /// Maximum size of EVENTS in bytes; -1 for no limit.
    pub events_max_bytes: i64,
    /// The behavior when EVENTS is full.
    pub events_full: EventsFull,
    /// Window in which an id is deduplicated.
    #[serde(deserialize_with = "duration")]
    pub dedupe_window: Duration,
    /// Window in which a webhook is deduplicated; zero for `dedupe_window`.
    #[serde(deserialize_with = "duration")]
    pub seen_window: Duration,
    /// Maximum age of a log line.
    #[serde(deserialize_with = "duration")]
    pub logs_max_age: Duration,
    /// Maximum age of an answer.
    #[serde(deserialize_with = "duration")]
    pub answers_max_age: Duration,
    /// Maximum age of a dead letter.
    #[serde(deserialize_with = "duration")]
    pub dead_max_age: Duration,
    /// Maximum age of a due message that nobody has processed.
    #[serde(deserialize_with = "duration")]
    pub timers_max_age: Duration,
    /// Maximum age of a sink attempt.
    #[serde(deserialize_with = "duration")]
    pub attempts_max_age: Duration,
    /// Maximum number of sink attempts; -1 for no limit.
    pub attempts_max: i64,
    /// Maximum size of the log lines in bytes; -1 for no limit.
    pub logs_max_bytes: i64,
    /// Maximum size of the answers in bytes; -1 for no limit.
    pub answers_max_bytes: i64,
    /// Maximum size of the dead letters in bytes; -1 for no limit.
    pub dead_max_bytes: i64,
    /// Maximum size of the sink attempts in bytes; -1 for no limit.
    pub attempts_max_bytes: i64,
    /// Maximum size of deployed files and models in bytes; -1 for no limit.
    pub artifacts_max_bytes: i64,
    /// Maximum size of large bodies in bytes; -1 for no limit.
    pub bodies_max_bytes: i64,
    /// Maximum size of conversations and other views in bytes; -1 for no limit.
    pub views_max_bytes: i64,
    /// Maximum size of the records of requests with an `Idempotency-Key` in bytes; -1 for no limit.
    pub requests_max_bytes: i64,
    /// Free bytes on the broker's disk, if it is local, below which external events are rejected.
    pub disk_reserve: u64,
}

/// The behavior when EVENTS reaches its size limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventsFull {
    /// Removes the oldest events that all consumers have finished; if there are none, rejects events.
    Trim,
    /// Rejects events until their maximum age removes some.
    Refuse,
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|error| serde::de::Error::custom(format!("`{text}`: {error}")))
}

//! `[streams]`: what the broker keeps, for how long, and how much of it.

use serde::{Deserialize, Deserializer};
use std::time::Duration;

/// How streams are kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamsConfig {
    /// Copies of each message.
    pub replicas: usize,
    /// Age at which an event goes; zero for never.
    #[serde(deserialize_with = "duration")]
    pub events_max_age: Duration,
    /// Bytes that EVENTS may take; -1 for no bound.
    pub events_max_bytes: i64,
    /// What happens when it has reached them.
    pub events_full: EventsFull,
    /// How long an id is remembered.
    #[serde(deserialize_with = "duration")]
    pub dedupe_window: Duration,
    /// How long a webhook is remembered; zero: as long as an id.
    #[serde(deserialize_with = "duration")]
    pub seen_window: Duration,
    /// Age at which a log line goes.
    #[serde(deserialize_with = "duration")]
    pub logs_max_age: Duration,
    /// Age at which an answer goes.
    #[serde(deserialize_with = "duration")]
    pub answers_max_age: Duration,
    /// Age at which a dead letter goes.
    #[serde(deserialize_with = "duration")]
    pub dead_max_age: Duration,
    /// Age at which what is due and nobody has taken goes.
    #[serde(deserialize_with = "duration")]
    pub timers_max_age: Duration,
    /// Age at which an attempt of a sink is forgotten.
    #[serde(deserialize_with = "duration")]
    pub attempts_max_age: Duration,
    /// Attempts that are kept; -1 for no bound.
    pub attempts_max: i64,
    /// Bytes that log lines may take; -1 for no bound.
    pub logs_max_bytes: i64,
    /// Bytes that answers may take; -1 for no bound.
    pub answers_max_bytes: i64,
    /// Bytes that dead letters may take; -1 for no bound.
    pub dead_max_bytes: i64,
    /// Bytes that attempts of sinks may take; -1 for no bound.
    pub attempts_max_bytes: i64,
    /// Bytes that deployed files and models may take; -1 for no bound.
    pub artifacts_max_bytes: i64,
    /// Bytes that bodies too large for a message may take; -1 for no bound.
    pub bodies_max_bytes: i64,
    /// Bytes that conversations and other documents of functions may take; -1 for no bound.
    pub views_max_bytes: i64,
    /// Bytes that the records of requests with an `Idempotency-Key` may take; -1 for no bound.
    pub requests_max_bytes: i64,
    /// Free bytes of the broker's disk, where it is this machine's, below which events from outside are refused.
    pub disk_reserve: u64,
}

/// What happens when EVENTS has reached its bound in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventsFull {
    /// The oldest events that all consumers have finished are removed; where there are none, events are refused.
    Trim,
    /// Events are refused until their age removes some.
    Refuse,
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|error| serde::de::Error::custom(format!("`{text}`: {error}")))
}

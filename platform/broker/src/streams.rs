//! `[streams]`: the retention and the limits of the streams.

use crate::SettingsError;
use serde::Deserialize;
use std::time::Duration;

/// Minimum of `streams.timers_max_age`: longer than the wait of any retry.
const MIN_TIMERS_AGE: Duration = Duration::from_secs(48 * 3600);
/// Minimum limit of EVENTS, in bytes.
const MIN_EVENTS_BYTES: i64 = 16 << 10;
/// Minimum limit of the other streams, in bytes.
const MIN_STREAM_BYTES: i64 = 1 << 20;

/// The configuration of the streams.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamsConfig {
    /// Replicas of each stream.
    pub replicas: usize,
    /// Maximum age of an event; zero for no limit.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
    pub events_max_age: Duration,
    /// Maximum size of EVENTS in bytes; -1 for no limit.
    pub events_max_bytes: i64,
    /// The behavior when EVENTS is full.
    pub events_full: EventsFull,
    /// Window in which an id is deduplicated.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
    pub dedupe_window: Duration,
    /// Window in which a webhook is deduplicated; zero for `dedupe_window`.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
    pub seen_window: Duration,
    /// Maximum age of a log line.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
    pub logs_max_age: Duration,
    /// Maximum age of an answer.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
    pub answers_max_age: Duration,
    /// Maximum age of a dead letter.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
    pub dead_max_age: Duration,
    /// Maximum age of a due message that nobody has processed.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
    pub timers_max_age: Duration,
    /// Maximum age of a sink attempt.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
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

impl StreamsConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// [`SettingsError::Invalid`] for a value out of range.
    pub fn check(&self) -> Result<(), SettingsError> {
        let invalid = |key, why| Err(SettingsError::Invalid { key, why });
        if ![1, 3, 5].contains(&self.replicas) {
            return invalid("streams.replicas", "must be 1, 3 or 5");
        }
        if self.dedupe_window < Duration::from_secs(10) {
            return invalid("streams.dedupe_window", "must be at least 10s: redeliveries arrive later than that");
        }
        let age = self.events_max_age;
        if !age.is_zero() && age < self.dedupe_window {
            return invalid("streams.events_max_age", "must be at least streams.dedupe_window");
        }
        let bytes = self.events_max_bytes;
        if bytes != -1 && bytes < MIN_EVENTS_BYTES {
            return invalid("streams.events_max_bytes", "must be -1 (unlimited), or at least 16384");
        }
        if self.events_full == EventsFull::Refuse && bytes == -1 {
            return invalid("streams.events_full", "\"refuse\" requires a limit: set streams.events_max_bytes");
        }
        let age = self.timers_max_age;
        if !age.is_zero() && age < MIN_TIMERS_AGE {
            return invalid("streams.timers_max_age", "must be at least 48h: a retry may wait for a day");
        }
        let limits = [self.logs_max_bytes, self.answers_max_bytes, self.dead_max_bytes];
        let buckets = [self.artifacts_max_bytes, self.bodies_max_bytes, self.views_max_bytes];
        let limits = limits.into_iter().chain([self.attempts_max_bytes, self.requests_max_bytes]).chain(buckets);
        if limits.into_iter().any(|bytes| bytes != -1 && bytes < MIN_STREAM_BYTES) {
            return invalid("streams", "each limit in bytes must be -1 (unlimited), or at least 1048576");
        }
        Ok(())
    }
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

//! The outcome of each request of a sink, in one stream, by the subject of the event.

use super::{Bus, BusError, Start, Tail};
use nerve_core::Name;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use time::OffsetDateTime;

/// Stream: the requests of sinks and their responses.
pub const ATTEMPTS: &str = "ATTEMPTS";

/// One request of a sink, for one event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkAttempt {
    /// The sink.
    pub sink: Name,
    /// The `webhook-id` header: the same at each attempt.
    pub id: String,
    /// The event's id.
    pub event: String,
    /// The event's type.
    #[serde(rename = "type")]
    pub ty: String,
    /// The stream of the event.
    pub stream: String,
    /// Its sequence there.
    pub sequence: u64,
    /// The attempt, starting at 1.
    pub attempt: u32,
    /// The start of the attempt.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// Its duration.
    pub duration_ms: u64,
    /// The response's status; `None` without a response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The first bytes of the response.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub answer: String,
    /// The error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether the attempt timed out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// The consequence for the event.
    pub outcome: SinkOutcome,
    /// The time of the next attempt.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub next: Option<OffsetDateTime>,
}

/// The consequence of an attempt for its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkOutcome {
    /// The endpoint accepted it.
    Delivered,
    /// It will be retried.
    Retry,
    /// Its retries are exhausted.
    Dead,
    /// A test delivery failed.
    Failed,
}

/// Selects attempts of a sink.
#[derive(Debug, Clone, Copy)]
pub struct SinkAttemptFilter<'a> {
    /// The sink.
    pub sink: &'a Name,
    /// Only the attempts of one event, by `webhook-id`.
    pub id: Option<&'a str>,
    /// The start of the time range.
    pub since: Start,
    /// Maximum number of attempts, the newest.
    pub limit: usize,
}

/// A live view of a sink's attempts.
pub struct SinkAttempts(Tail);

impl SinkAttempts {
    /// Waits for the next attempt.
    pub async fn next(&mut self) -> SinkAttempt {
        loop {
            let (message, ..) = self.0.next_message().await;
            if let Ok(attempt) = serde_json::from_slice(&message.payload) {
                return attempt;
            }
        }
    }
}

/// Ids contain only characters that are valid in a subject.
fn subject(sink: &Name, id: Option<&str>) -> String {
    let plain = |id: &&str| !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    format!("attempts.{sink}.{}", id.filter(plain).unwrap_or("*"))
}

impl Bus {
    /// Records an attempt, without delaying the delivery for long.
    pub async fn record_attempt(&self, attempt: &SinkAttempt) {
        let Ok(body) = serde_json::to_vec(attempt) else { return };
        let stored = match self.jetstream.publish(subject(&attempt.sink, Some(&attempt.id)), body.into()).await {
            Ok(acknowledgement) => acknowledgement.await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            tracing::warn!(%error, sink = %attempt.sink, "cannot record a sink attempt");
        }
    }

    /// Reads the attempts that `which` selects and `keep` accepts, oldest first.
    pub async fn sink_attempts(
        &self,
        which: SinkAttemptFilter<'_>,
        keep: impl Fn(&SinkAttempt) -> bool,
    ) -> Result<Vec<SinkAttempt>, BusError> {
        let mut newest = VecDeque::new();
        self.for_each(ATTEMPTS, vec![subject(which.sink, which.id)], which.since, |message, _, _| {
            let attempt = serde_json::from_slice::<SinkAttempt>(&message.payload);
            if let Some(attempt) = attempt.ok().filter(&keep) {
                newest.push_back(attempt);
            }
            if newest.len() > which.limit {
                newest.pop_front();
            }
            true
        })
        .await?;
        Ok(newest.into())
    }

    /// Follows the attempts of a sink, or those for one event.
    pub async fn follow_sink_attempts(&self, sink: &Name, id: Option<&str>) -> Result<SinkAttempts, BusError> {
        Ok(SinkAttempts(self.tail_stream(ATTEMPTS, vec![subject(sink, id)], Start::New).await?))
    }
}

//! What came of each post of a sink: one stream, a subject an event.

use super::{Bus, BusError, Start, Tail};
use nerve_core::Name;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use time::OffsetDateTime;

/// What sinks have posted, and what they were answered.
pub const ATTEMPTS: &str = "ATTEMPTS";

/// One post of an event to a sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkAttempt {
    /// The sink.
    pub sink: Name,
    /// What the endpoint knows the event by: `webhook-id`, the same at each attempt.
    pub id: String,
    /// The event's id.
    pub event: String,
    /// The event's type.
    #[serde(rename = "type")]
    pub ty: String,
    /// The stream that the event is in.
    pub stream: String,
    /// Its sequence there.
    pub sequence: u64,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// How long it took.
    pub duration_ms: u64,
    /// The answer's status; none without an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The answer's first bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub answer: String,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether it was the time that ran out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// What became of the event.
    pub outcome: SinkOutcome,
    /// When it is tried again.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub next: Option<OffsetDateTime>,
}

/// What became of an event after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkOutcome {
    /// The endpoint has it.
    Delivered,
    /// It is tried again.
    Retry,
    /// It was given up.
    Dead,
    /// It was a trial, which failed.
    Failed,
}

/// Which of a sink's attempts.
#[derive(Debug, Clone, Copy)]
pub struct WhichAttempts<'a> {
    /// The sink.
    pub sink: &'a Name,
    /// Those at one event, by the id that the endpoint knows, or at all.
    pub id: Option<&'a str>,
    /// Since when.
    pub since: Start,
    /// The newest so many.
    pub limit: usize,
}

/// A sink's attempts being followed.
pub struct SinkAttempts(Tail);

impl SinkAttempts {
    /// The next one; waits for it for ever.
    pub async fn next(&mut self) -> SinkAttempt {
        loop {
            let (message, ..) = self.0.next_message().await;
            if let Ok(attempt) = serde_json::from_slice(&message.payload) {
                return attempt;
            }
        }
    }
}

/// Ids hold nothing that a subject may not.
fn subject(sink: &Name, id: Option<&str>) -> String {
    let plain = |id: &&str| !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    format!("attempts.{sink}.{}", id.filter(plain).unwrap_or("*"))
}

impl Bus {
    /// Writes an attempt down; a log never holds up what it tells of for long.
    pub async fn record_attempt(&self, attempt: &SinkAttempt) {
        let Ok(body) = serde_json::to_vec(attempt) else { return };
        let stored = match self.jetstream.publish(subject(&attempt.sink, Some(&attempt.id)), body.into()).await {
            Ok(acknowledgement) => acknowledgement.await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            tracing::warn!(%error, sink = %attempt.sink, "an attempt could not be written down");
        }
    }

    /// The attempts that `which` asks for and `keep` keeps, the oldest first.
    pub async fn sink_attempts(
        &self,
        which: WhichAttempts<'_>,
        keep: impl Fn(&SinkAttempt) -> bool,
    ) -> Result<Vec<SinkAttempt>, BusError> {
        let mut newest = VecDeque::new();
        self.each(ATTEMPTS, vec![subject(which.sink, which.id)], which.since, |message, _, _| {
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

    /// Follows a sink's attempts at one event, or at all.
    pub async fn follow_sink_attempts(&self, sink: &Name, id: Option<&str>) -> Result<SinkAttempts, BusError> {
        Ok(SinkAttempts(self.tail_stream(ATTEMPTS, vec![subject(sink, id)], Start::New).await?))
    }
}

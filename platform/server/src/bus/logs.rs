//! What functions say: one stream, a subject a function.

use super::{Attempt, Bus, BusError, LOGS, Start, Tail};
use nerve_core::{Name, function::LogLevel};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// One line of a function's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// When it was said.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// The function.
    pub function: Name,
    /// How bad it is.
    pub level: LogLevel,
    /// The text.
    pub message: String,
    /// For a failed attempt: the event's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// For a failed attempt: every attempt so far, this one last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
}

/// A function's log being read.
pub struct Logs {
    tail: Tail,
}

impl Logs {
    /// The next line; waits for it for ever.
    pub async fn next(&mut self) -> LogRecord {
        loop {
            let (message, ..) = self.tail.next_message().await;
            if let Ok(record) = serde_json::from_slice(&message.payload) {
                return record;
            }
        }
    }
}

fn filters(function: Option<&Name>) -> Vec<String> {
    match function {
        Some(name) => vec![format!("logs.{name}"), format!("logs.{name}.>")],
        None => vec!["logs.>".to_owned()],
    }
}

/// The subject of one event's failed attempts: the newest message on it holds them all.
fn attempts_subject(function: &Name, stream: &str, sequence: u64) -> String {
    format!("logs.{function}.{stream}.{sequence}")
}

impl Bus {
    /// Follows the log of one function, or of all.
    pub async fn follow_logs(&self, function: Option<&Name>, start: Start) -> Result<Logs, BusError> {
        Ok(Logs { tail: self.tail_stream(LOGS, filters(function), start).await? })
    }

    /// The lines since `start` that there are, oldest first, `limit` at most.
    pub async fn read_logs(
        &self,
        function: Option<&Name>,
        start: Start,
        limit: usize,
    ) -> Result<Vec<LogRecord>, BusError> {
        let found = self.read(LOGS, filters(function), start, limit).await?;
        Ok(found.iter().filter_map(|(message, ..)| serde_json::from_slice(&message.payload).ok()).collect())
    }

    /// Writes a line without waiting for it to be stored: a log never holds up what it tells of.
    pub(crate) async fn log(&self, record: &LogRecord) {
        let Ok(body) = serde_json::to_vec(record) else { return };
        if let Err(error) = self.client.publish(format!("logs.{}", record.function), body.into()).await {
            tracing::debug!(%error, "a log line was lost");
        }
    }

    /// The failed attempts at an event so far, by whichever worker.
    pub(crate) async fn attempts(&self, function: &Name, stream: &str, sequence: u64) -> Vec<Attempt> {
        let Ok(logs) = self.jetstream.get_stream_no_info(LOGS).await else { return Vec::new() };
        let last = logs.direct_get_last_for_subject(attempts_subject(function, stream, sequence)).await;
        let record = last.ok().and_then(|message| serde_json::from_slice::<LogRecord>(&message.payload).ok());
        record.map(|record| record.attempts).unwrap_or_default()
    }

    /// Remembers the attempts at an event; `record` holds them all.
    pub(crate) async fn log_attempts(&self, stream: &str, sequence: u64, record: &LogRecord) {
        let Ok(body) = serde_json::to_vec(record) else { return };
        let subject = attempts_subject(&record.function, stream, sequence);
        let stored = match self.jetstream.publish(subject, body.into()).await {
            Ok(acknowledgement) => acknowledgement.await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            tracing::warn!(%error, function = %record.function, sequence, "a failed attempt could not be written to the log");
        }
    }
}

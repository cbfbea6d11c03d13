//! What functions say: one stream, a subject a function.

use super::{Attempt, Bus, BusError, Delivery, LOGS, Start, Tail};
use nerve_core::{Name, function::LogLevel};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
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

impl Bus {
    /// Follows the log of one function, or of all.
    pub async fn follow_logs(&self, function: Option<&Name>, start: Start) -> Result<Logs, BusError> {
        Ok(Logs { tail: self.tail_stream(LOGS, filters(function), start).await? })
    }

    /// The last lines since `start` that there are, oldest first, `limit` at most.
    pub async fn read_logs(
        &self,
        function: Option<&Name>,
        start: Start,
        limit: usize,
    ) -> Result<Vec<LogRecord>, BusError> {
        let mut last = VecDeque::new();
        self.each(LOGS, filters(function), start, |message, _, _| {
            last.extend(serde_json::from_slice(&message.payload).ok());
            if last.len() > limit {
                last.pop_front();
            }
            true
        })
        .await?;
        Ok(last.into())
    }

    /// Writes a line without waiting for it to be stored: a log never holds up what it tells of.
    pub async fn log(&self, record: &LogRecord) {
        let Ok(body) = serde_json::to_vec(record) else { return };
        if let Err(error) = self.client.publish(format!("logs.{}", record.function), body.into()).await {
            tracing::debug!(%error, "a log line was lost");
        }
    }

    /// The failed attempts at an event that an older Nerve wrote down.
    pub(super) async fn old_attempts(&self, function: &Name, delivery: &Delivery) -> Vec<Attempt> {
        let Ok(logs) = self.jetstream.get_stream_no_info(LOGS).await else { return Vec::new() };
        let subject = format!("logs.{function}.{}.{}", delivery.stream, delivery.sequence);
        let last = logs.direct_get_last_for_subject(subject).await;
        let record = last.ok().and_then(|message| serde_json::from_slice::<LogRecord>(&message.payload).ok());
        record.map(|record| record.attempts).unwrap_or_default()
    }
}

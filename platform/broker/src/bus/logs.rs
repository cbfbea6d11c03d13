//! Logs of functions, in one stream, by the subject of the function.

use super::{Attempt, Bus, BusError, Delivery, LOGS, Start, Tail};
use nerve_core::{Name, function::LogLevel};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use time::OffsetDateTime;

/// One line of a function's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// The time of the line.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// The function.
    pub function: Name,
    /// The severity.
    pub level: LogLevel,
    /// The text.
    pub message: String,
    /// For a failed attempt: the event's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// For a failed attempt: all attempts so far, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
}

/// A live view of function logs.
pub struct Logs {
    tail: Tail,
}

impl Logs {
    /// Waits for the next line.
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

    /// Reads the last lines since `start`, oldest first, at most `limit`.
    pub async fn read_logs(
        &self,
        function: Option<&Name>,
        start: Start,
        limit: usize,
    ) -> Result<Vec<LogRecord>, BusError> {
        let mut last = VecDeque::new();
        self.for_each(LOGS, filters(function), start, |message, _, _| {
            last.extend(serde_json::from_slice(&message.payload).ok());
            if last.len() > limit {
                last.pop_front();
            }
            true
        })
        .await?;
        Ok(last.into())
    }

    /// Writes a line without waiting for its acknowledgement, so that logging never delays a function.
    pub async fn log(&self, record: &LogRecord) {
        let Ok(body) = serde_json::to_vec(record) else { return };
        if let Err(error) = self.client.publish(format!("logs.{}", record.function), body.into()).await {
            tracing::debug!(%error, "cannot write a log line");
        }
    }

    /// The failed attempts at an event that an earlier version of Nerve recorded.
    pub(super) async fn legacy_attempts(&self, function: &Name, delivery: &Delivery) -> Vec<Attempt> {
        let Ok(logs) = self.jetstream.get_stream_no_info(LOGS).await else { return Vec::new() };
        let subject = format!("logs.{function}.{}.{}", delivery.stream, delivery.sequence);
        let last = logs.direct_get_last_for_subject(subject).await;
        let record = last.ok().and_then(|message| serde_json::from_slice::<LogRecord>(&message.payload).ok());
        record.map(|record| record.attempts).unwrap_or_default()
    }
}

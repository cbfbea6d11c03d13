//! Reads an answer for one client.

use crate::{
    Gateway, OVERLOAD_RETRY_AFTER,
    api::sse::{self, Frame, Frames, HEARTBEAT, OpenStream, StreamSlot, Waited},
    http::problem::{HttpResult, Problem, ProblemType},
    publish::broker_problem,
};
use bytes::Bytes;
use nerve_broker::bus::{AnswerPart, AnswerParts, Bus, EndReason};
use nerve_core::answer::Part;
use serde_json::{Value, json};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::time::Instant;

/// Interval between attempts to end an answer that timed out.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The parts of an answer from a start position to the last one.
pub(crate) struct AnswerStream {
    pub(crate) id: String,
    parts: AnswerParts,
    bus: Bus,
    open: OpenStream,
    /// When the answer times out.
    deadline: Instant,
    timeout: Duration,
    ended: bool,
}

/// The next item of an answer.
pub(crate) enum Step {
    /// Expired parts: the first and the last sequence.
    Gap(u64, u64),
    /// A part.
    Part(Box<AnswerPart>),
    /// No part within the heartbeat interval.
    Idle,
}

impl AnswerStream {
    /// Reads from the beginning, or past the sequence `after`.
    pub(crate) async fn open(gateway: &Gateway, id: String, after: Option<u64>, slot: StreamSlot) -> HttpResult<Self> {
        let parts = gateway.bus().answer(&id, after).await.map_err(|error| broker_problem(&error))?;
        let timeout = gateway.config().answer_timeout;
        Ok(Self {
            id,
            parts,
            bus: gateway.bus().clone(),
            open: OpenStream::new(gateway, slot),
            deadline: Instant::now() + timeout,
            timeout,
            ended: false,
        })
    }

    /// Starts the timeout at `opened`. Returns whether time is left.
    pub(crate) fn start_timeout_at(&mut self, opened: OffsetDateTime) -> bool {
        let age = Duration::try_from(OffsetDateTime::now_utc() - opened).unwrap_or_default();
        self.deadline = Instant::now() + self.timeout.saturating_sub(age);
        age < self.timeout
    }

    /// The next item; `None` after the last part and at shutdown.
    pub(crate) async fn step(&mut self) -> Option<Step> {
        loop {
            if self.ended {
                return None;
            }
            if let Some((from, to)) = self.parts.take_gap() {
                return Some(Step::Gap(from, to));
            }
            tokio::select! {
                biased;
                waited = self.open.wait(self.parts.next()) => match waited? {
                    Waited::Idle => return Some(Step::Idle),
                    Waited::Item(part) if part.part == Part::Opened => {}
                    Waited::Item(part) => {
                        self.ended = part.part.is_last();
                        return Some(Step::Part(Box::new(part)));
                    }
                },
                () = tokio::time::sleep_until(self.deadline) => self.give_up().await,
            }
        }
    }

    /// Ends the answer with a timeout for all clients.
    async fn give_up(&mut self) {
        self.deadline = Instant::now() + self.timeout;
        if let Err(error) = self.bus.end_answer(&self.id, EndReason::Timeout).await {
            tracing::warn!(%error, answer = self.id, "an answer that timed out could not be ended");
            self.deadline = Instant::now() + RETRY_INTERVAL;
        }
    }

    /// Waits for the complete answer.
    ///
    /// # Errors
    /// A failed answer's problem, 503 at shutdown.
    pub(crate) async fn whole(mut self) -> HttpResult<Value> {
        while let Some(step) = self.step().await {
            let Step::Part(part) = step else { continue };
            match part.part {
                Part::Done => return Ok(with_id(&part.event.data, &self.id)),
                Part::Error => return Err(super::failure(&part.event.data)),
                _ => {}
            }
        }
        let detail = format!("the gateway is shutting down; the answer continues at /v1/answers/{}", self.id);
        Err(Problem::retry_after(ProblemType::NotServing, detail, OVERLOAD_RETRY_AFTER))
    }
}

/// The answer's parts as server-sent events.
impl Frames for AnswerStream {
    async fn next_frame(&mut self) -> Option<Bytes> {
        Some(match self.step().await? {
            Step::Idle => HEARTBEAT,
            Step::Gap(from, to) => sse::gap(from, to),
            Step::Part(part) => {
                let AnswerPart { sequence, part, event } = *part;
                let data = match part {
                    Part::Done => with_id(&event.data, &self.id).to_string(),
                    Part::Retrieved => retrieved(&event.data).to_string(),
                    _ => String::from_utf8_lossy(&event.data).into_owned(),
                };
                Frame { id: Some(sequence), name: Some(part.name()), data: &data }.to_bytes()
            }
        })
    }
}

/// The data of a part, with the answer's id.
fn with_id(data: &[u8], id: &str) -> Value {
    let mut value: Value = serde_json::from_slice(data).unwrap_or_default();
    match &mut value {
        Value::Object(fields) => {
            fields.insert("id".to_owned(), id.into());
            value
        }
        other => json!({"id": id, "answer": other}),
    }
}

/// The retrieved documents, without the fields of the question.
fn retrieved(data: &[u8]) -> Value {
    let mut value: Value = serde_json::from_slice(data).unwrap_or_default();
    json!({"documents": value.get_mut("documents").map(Value::take).unwrap_or_else(|| json!([]))})
}

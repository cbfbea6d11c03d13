//! Reads an answer for one client.

use crate::{
    Gateway,
    api::{
        sse::{Frame, HEARTBEAT},
        tail::{HEARTBEAT_INTERVAL, RETRY_FRAME, StreamSlot},
    },
    http::problem::{HttpResult, Problem},
    publish::broker_problem,
};
use bytes::Bytes;
use futures::Stream;
use http::StatusCode;
use nerve_broker::bus::{AnswerPart, AnswerParts, Bus, EndReason};
use nerve_core::answer::Part;
use serde_json::{Value, json};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Interval between attempts to end an answer that timed out.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The parts of an answer from a start position to the last one.
pub(crate) struct AnswerStream {
    pub(crate) id: String,
    parts: AnswerParts,
    bus: Bus,
    heartbeat: Interval,
    stop: CancellationToken,
    /// When the answer times out.
    deadline: Instant,
    timeout: Duration,
    has_greeted: bool,
    ended: bool,
    _slot: StreamSlot,
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
        let mut heartbeat = tokio::time::interval_at(Instant::now() + HEARTBEAT_INTERVAL, HEARTBEAT_INTERVAL);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let timeout = gateway.config().answer_timeout;
        Ok(Self {
            id,
            parts,
            bus: gateway.bus().clone(),
            heartbeat,
            stop: gateway.shutdown().clone(),
            deadline: Instant::now() + timeout,
            timeout,
            has_greeted: false,
            ended: false,
            _slot: slot,
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
                () = self.stop.cancelled() => return None,
                part = self.parts.next() => match part.part {
                    Part::Opened => {}
                    _ => {
                        self.ended = part.part.is_last();
                        return Some(Step::Part(Box::new(part)));
                    }
                },
                _ = self.heartbeat.tick() => return Some(Step::Idle),
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
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
    }

    /// The answer's parts as server-sent events.
    pub(crate) fn frames(self) -> impl Stream<Item = Bytes> + Send + 'static {
        futures::stream::unfold(self, |mut stream| async move {
            let frame = stream.frame().await?;
            Some((frame, stream))
        })
    }

    async fn frame(&mut self) -> Option<Bytes> {
        if !self.has_greeted {
            self.has_greeted = true;
            return Some(RETRY_FRAME);
        }
        Some(match self.step().await? {
            Step::Idle => HEARTBEAT,
            Step::Gap(from, to) => {
                let data = json!({"from": from, "to": to}).to_string();
                Frame { name: Some("gap"), data: &data, id: None }.to_bytes()
            }
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

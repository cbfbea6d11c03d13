//! One reader of one answer.

use super::super::{
    Gateway,
    problem::{Answer, Problem},
    publish::broker_problem,
    sse::{Frame, HEARTBEAT},
    tail::{HEARTBEAT_EVERY, RECONNECT, StreamSlot},
};
use bytes::Bytes;
use futures::Stream;
use http::StatusCode;
use nerve_broker::bus::{AnswerPart, AnswerParts, Bus, Ending};
use nerve_core::answer::Part;
use serde_json::{Value, json};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// The wait before an answer that could not be ended is ended again.
const AGAIN: Duration = Duration::from_secs(1);

/// A reader, from where it began until the answer's last part.
pub(super) struct Reading {
    pub(super) id: String,
    parts: AnswerParts,
    bus: Bus,
    heartbeat: Interval,
    stop: CancellationToken,
    /// When the answer is given up.
    deadline: Instant,
    patience: Duration,
    greeted: bool,
    ended: bool,
    _slot: StreamSlot,
}

/// What a reader meets next.
pub(super) enum Step {
    /// Parts that are gone: the first and the last sequence.
    Gap(u64, u64),
    /// A part.
    Part(Box<AnswerPart>),
    /// Nothing for a while.
    Silence,
}

impl Reading {
    /// Reads from the beginning, or past the sequence `after`.
    pub(super) async fn open(gateway: &Gateway, id: String, after: Option<u64>, slot: StreamSlot) -> Answer<Self> {
        let parts = gateway.bus().answer(&id, after).await.map_err(|error| broker_problem(&error))?;
        let mut heartbeat = tokio::time::interval_at(Instant::now() + HEARTBEAT_EVERY, HEARTBEAT_EVERY);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let patience = gateway.config().answer_timeout;
        Ok(Self {
            id,
            parts,
            bus: gateway.bus().clone(),
            heartbeat,
            stop: gateway.shutdown().clone(),
            deadline: Instant::now() + patience,
            patience,
            greeted: false,
            ended: false,
            _slot: slot,
        })
    }

    /// Counts the time that the answer may take from the moment it was opened; says whether any is left.
    pub(super) fn count_from(&mut self, opened: OffsetDateTime) -> bool {
        let age = Duration::try_from(OffsetDateTime::now_utc() - opened).unwrap_or_default();
        self.deadline = Instant::now() + self.patience.saturating_sub(age);
        age < self.patience
    }

    /// What comes next; none past the answer's last part, and when the gateway stops.
    pub(super) async fn step(&mut self) -> Option<Step> {
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
                _ = self.heartbeat.tick() => return Some(Step::Silence),
                () = tokio::time::sleep_until(self.deadline) => self.give_up().await,
            }
        }
    }

    /// Ends the answer for all its readers, this one among them.
    async fn give_up(&mut self) {
        self.deadline = Instant::now() + self.patience;
        if let Err(error) = self.bus.end_answer(&self.id, Ending::Timeout).await {
            tracing::warn!(%error, answer = self.id, "an answer that took too long could not be ended");
            self.deadline = Instant::now() + AGAIN;
        }
    }

    /// The answer when it is done.
    pub(super) async fn whole(mut self) -> Answer<Value> {
        while let Some(step) = self.step().await {
            let Step::Part(part) = step else { continue };
            match part.part {
                Part::Done => return Ok(with_id(&part.event.data, &self.id)),
                Part::Error => return Err(super::failure(&with_id(&part.event.data, &self.id))),
                _ => {}
            }
        }
        let detail = format!("this gateway is stopping; the answer goes on at /v1/answers/{}", self.id);
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
    }

    /// The answer's parts as server-sent events.
    pub(super) fn frames(self) -> impl Stream<Item = Bytes> + Send + 'static {
        futures::stream::unfold(self, |mut reading| async move {
            let frame = reading.frame().await?;
            Some((frame, reading))
        })
    }

    async fn frame(&mut self) -> Option<Bytes> {
        if !self.greeted {
            self.greeted = true;
            return Some(RECONNECT);
        }
        Some(match self.step().await? {
            Step::Silence => HEARTBEAT,
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

/// What was found, without what the question came with.
fn retrieved(data: &[u8]) -> Value {
    let mut value: Value = serde_json::from_slice(data).unwrap_or_default();
    json!({"documents": value.get_mut("documents").map(Value::take).unwrap_or_else(|| json!([]))})
}

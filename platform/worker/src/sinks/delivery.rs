//! One event, from its delivery to its verdict: wait, post, write the attempt down, then settle.

use super::{
    super::{Shared, failure},
    endpoint::{Endpoint, Post},
    gate::Gate,
    health::Health,
    signature::old_message_id,
    template::ComposeError,
    verdict::{Answer, Verdict, decide},
};
use nerve_broker::bus::{
    Attempt, BodyError, BusError, Delivery, RunHistory, SinkAttempt, SinkAttemptFilter, SinkOutcome, Start,
};
use nerve_core::{Event, Fault, FunctionError, Identity, Name, SinkSpec};
use std::{sync::Arc, time::Duration};
use time::OffsetDateTime;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Deliveries of one event beyond its attempts: what workers gave back at their end is no attempt, but it is bounded.
const MAX_UNFINISHED: u32 = 1000;
/// Attempts whose errors go with a dead letter.
const REMEMBERED: usize = 20;

/// Posts one revision of a sink.
pub(super) struct Poster {
    pub(super) shared: Shared,
    pub(super) name: Name,
    pub(super) revision: u64,
    pub(super) spec: SinkSpec,
    pub(super) endpoint: Endpoint,
    pub(super) gate: Gate,
    pub(super) health: Health,
    /// Posts at once, whichever intake they come by.
    pub(super) running: Semaphore,
    /// The end of this revision: what has not been posted yet is given back.
    pub(super) stop: CancellationToken,
}

/// What one attempt was, and how it is settled.
struct Attempted<'a> {
    delivery: &'a Delivery,
    event: &'a Event,
    id: String,
    number: u32,
    started: OffsetDateTime,
    took: Duration,
}

impl Poster {
    /// Takes a delivery to its end: it is settled, or left to come again.
    pub(super) async fn handle(self: Arc<Self>, mut delivery: Delivery, slot: OwnedSemaphorePermit) {
        let event = match delivery.event().await {
            Ok(event) => event,
            Err(BodyError::Gone(why)) => return self.hopeless(delivery, &why).await,
            Err(BodyError::Bus(error)) => {
                tracing::debug!(sink = %self.name, %error, "an event's body waits for the broker");
                return failure::give_back(delivery).await;
            }
        };
        let again = delivery.delivered > 1;
        let Some(failed) = self.failed(&delivery).await else { return failure::give_back(delivery).await };
        if delivery.delivered > self.spec.retry.attempts.saturating_add(MAX_UNFINISHED) {
            return self.hopeless(delivery, "its deliveries ended without a word: workers died with them").await;
        }
        let number = failed + 1;
        delivery.attempt = number;
        let id = webhook_id(&delivery, &event);
        let composed = self.shared.stops.work.run_until_cancelled(self.endpoint.post_of(&event, id)).await;
        let post = match composed {
            Some(Ok(post)) => post,
            Some(Err(ComposeError::Impossible(why))) => return self.impossible(delivery, &event, &why).await,
            Some(Err(ComposeError::Unavailable(why))) => {
                tracing::warn!(sink = %self.name, why, "an event is given back");
                return failure::give_back(delivery).await;
            }
            None => return failure::give_back(delivery).await,
        };
        let started = (OffsetDateTime::now_utc(), Instant::now());
        let Some((answer, started)) = self.post(&delivery, &post, started).await else {
            return failure::give_back(delivery).await;
        };
        let attempted = Attempted {
            delivery: &delivery,
            event: &event,
            id: post.id,
            number,
            started: started.0,
            took: started.1.elapsed(),
        };
        if delivery.is_sink_test() {
            let outcome = if answer.is_good() { SinkOutcome::Delivered } else { SinkOutcome::Failed };
            self.shared.bus.record_attempt(&self.record(&attempted, &answer, outcome, None)).await;
            self.acknowledge(delivery).await;
            return;
        }
        let jitter = |wait| failure::with_jitter(wait, delivery.sequence);
        let verdict = decide(&answer, number, &self.spec.retry, jitter);
        let (outcome, next) = match verdict {
            Verdict::Delivered => (SinkOutcome::Delivered, None),
            Verdict::RetryAfter(wait) => (SinkOutcome::Retry, Some(OffsetDateTime::now_utc() + wait)),
            Verdict::DeadLetter => (SinkOutcome::Dead, None),
        };
        self.count(outcome);
        let record = self.record(&attempted, &answer, outcome, next);
        self.shared.bus.record_attempt(&record).await;
        self.health.note(&answer).await;
        match verdict {
            Verdict::Delivered => {
                // A worker that died between putting it off and saying so has left a retry behind.
                if again && let Err(error) = delivery.delete_delayed_retry(&self.name).await {
                    tracing::debug!(sink = %self.name, %error, "an event may be posted once more");
                }
                self.acknowledge(delivery).await;
            }
            Verdict::RetryAfter(wait) => self.delay_until(delivery, wait, &record).await,
            Verdict::DeadLetter => self.bury(delivery, &record.id).await,
        }
        drop(slot);
    }

    /// Posts once the gate lets it; none if this revision ends first.
    async fn post(
        &self,
        delivery: &Delivery,
        post: &Post,
        started: (OffsetDateTime, Instant),
    ) -> Option<(Answer, (OffsetDateTime, Instant))> {
        let work = &self.shared.stops.work;
        if delivery.is_sink_test() {
            return Some((work.run_until_cancelled(self.endpoint.send(post)).await?, started));
        }
        let _running = self.stop.run_until_cancelled(self.running.acquire()).await?.ok()?;
        let pass = self.stop.run_until_cancelled(self.gate.pass()).await?;
        let started = (OffsetDateTime::now_utc(), Instant::now());
        let answer = work.run_until_cancelled(self.endpoint.send(post)).await?;
        metrics::histogram!("nerve_sink_seconds", "sink" => self.name.to_string()).record(started.1.elapsed());
        let pause = answer.retry_after.filter(|_| matches!(answer.status, Some(429 | 503)));
        pass.ended(answer.is_good(), pause);
        Some((answer, started))
    }

    /// Attempts that failed before; `None` where the broker does not say. A delayed copy says it itself; of one that keeps the
    /// order, they are recorded.
    async fn failed(&self, delivery: &Delivery) -> Option<u32> {
        if !self.waits_in_line(delivery) {
            return Some(delivery.attempts_made());
        }
        if delivery.delivered == 1 && !delivery.may_have_run {
            return Some(0);
        }
        match self.shared.bus.run_history(&self.name, delivery).await {
            Ok(history) => Some(history.failed),
            Err(error) => {
                tracing::debug!(sink = %self.name, error = &error as &dyn std::error::Error, "an event waits for the broker");
                None
            }
        }
    }

    /// Whether the event behind it waits for this one.
    fn waits_in_line(&self, delivery: &Delivery) -> bool {
        self.spec.order && !delivery.is_copy()
    }

    async fn acknowledge(&self, delivery: Delivery) {
        if let Err(error) = delivery.ack().await {
            tracing::warn!(sink = %self.name, %error, "an event is delivered and will be posted again");
        }
    }

    async fn delay_until(&self, delivery: Delivery, wait: Duration, attempt: &SinkAttempt) {
        let delayed = match self.waits_in_line(&delivery) {
            // It stays at the head, and the broker holds what is behind it.
            true => self.retry_in_order(delivery, wait, attempt).await,
            false => delivery.delay_until(&self.name, OffsetDateTime::now_utc() + wait, attempt.attempt).await,
        };
        if let Err(error) = delayed {
            tracing::warn!(sink = %self.name, %error, "a retry comes after the ack wait instead");
        }
    }

    async fn retry_in_order(&self, delivery: Delivery, wait: Duration, attempt: &SinkAttempt) -> Result<(), BusError> {
        let bus = &self.shared.bus;
        let mut history = match delivery.delivered {
            1 => RunHistory::default(),
            _ => bus.run_history(&self.name, &delivery).await?,
        };
        history.end_failed(&delivery, attempt_of(attempt).error);
        bus.record_run(&self.name, &delivery, &history).await?;
        delivery.retry_after(wait).await
    }

    /// Gives an event up that cannot be made into a post.
    async fn impossible(&self, delivery: Delivery, event: &Event, why: &str) {
        let attempted = Attempted {
            delivery: &delivery,
            event,
            id: webhook_id(&delivery, event),
            number: delivery.attempt,
            started: OffsetDateTime::now_utc(),
            took: Duration::ZERO,
        };
        let (error, body) = (Some(why.to_owned()), String::new());
        let answer = Answer { status: None, retry_after: None, error, timed_out: false, body };
        let outcome = if delivery.is_sink_test() { SinkOutcome::Failed } else { SinkOutcome::Dead };
        let record = self.record(&attempted, &answer, outcome, None);
        self.shared.bus.record_attempt(&record).await;
        self.count(outcome);
        match delivery.is_sink_test() {
            true => self.acknowledge(delivery).await,
            false => self.bury(delivery, &record.id).await,
        }
    }

    /// Gives an event up about which nothing more is known than this.
    async fn hopeless(&self, delivery: Delivery, why: &str) {
        let error = FunctionError::new(Fault::Invalid, why);
        let attempt = Attempt { attempt: delivery.attempt, time: OffsetDateTime::now_utc(), error };
        self.count(SinkOutcome::Dead);
        self.dead_letter(delivery, &[attempt]).await;
    }

    async fn bury(&self, delivery: Delivery, id: &str) {
        let which = SinkAttemptFilter { sink: &self.name, id: Some(id), since: Start::First, limit: REMEMBERED };
        let known = self.shared.bus.sink_attempts(which, |_| true).await;
        let known = known.unwrap_or_else(|error| {
            tracing::debug!(sink = %self.name, %error, "a dead letter goes without its attempts");
            Vec::new()
        });
        // An event that was sent again has attempts of more than one round.
        let last_round = known.iter().rposition(|attempt| attempt.attempt == 1).unwrap_or_default();
        let attempts: Vec<Attempt> = known.iter().skip(last_round).map(attempt_of).collect();
        self.dead_letter(delivery, &attempts).await;
    }

    async fn dead_letter(&self, delivery: Delivery, attempts: &[Attempt]) {
        match delivery.dead_letter(&self.name, self.revision, attempts).await {
            Ok(id) => {
                metrics::counter!("nerve_dead_letters_total", "function" => self.name.to_string()).increment(1);
                tracing::warn!(sink = %self.name, id, "an event could not be delivered: nerve dlq show {id}");
            }
            Err(error) => {
                tracing::error!(sink = %self.name, %error, "a dead letter could not be written; its event comes again");
            }
        }
    }

    fn record(
        &self,
        attempted: &Attempted<'_>,
        answer: &Answer,
        outcome: SinkOutcome,
        next: Option<OffsetDateTime>,
    ) -> SinkAttempt {
        let input = &attempted.delivery.provenance.input;
        SinkAttempt {
            sink: self.name.clone(),
            id: attempted.id.clone(),
            event: attempted.event.id.clone(),
            ty: attempted.event.ty.to_string(),
            stream: input.stream.to_string(),
            sequence: input.sequence,
            attempt: attempted.number,
            time: attempted.started,
            duration_ms: u64::try_from(attempted.took.as_millis()).unwrap_or(u64::MAX),
            status: answer.status,
            answer: answer.body.clone(),
            error: answer.error.clone(),
            timed_out: answer.timed_out,
            outcome,
            next,
        }
    }

    fn count(&self, outcome: SinkOutcome) {
        let outcome = match outcome {
            SinkOutcome::Delivered => "delivered",
            SinkOutcome::Retry => "retry",
            SinkOutcome::Dead => "dead",
            SinkOutcome::Failed => "failed",
        };
        metrics::counter!("nerve_sink_attempts_total", "sink" => self.name.to_string(), "outcome" => outcome)
            .increment(1);
    }
}

/// What the endpoint knows an event by. A copy that an older Nerve delayed keeps the id that the endpoint may have seen.
fn webhook_id(delivery: &Delivery, event: &Event) -> String {
    match &delivery.provenance.input {
        input if input.stored_ns == 0 => old_message_id(event),
        input => format!("msg_{}", Identity::of_webhook(input)),
    }
}

/// An attempt as a dead letter tells it.
fn attempt_of(attempt: &SinkAttempt) -> Attempt {
    let fault = match attempt.timed_out {
        true => Fault::Timeout,
        false => Fault::Retry { after: None },
    };
    let mut message = attempt.error.clone().unwrap_or_default();
    if !attempt.answer.is_empty() {
        message.push_str(": ");
        message.push_str(&attempt.answer);
    }
    Attempt { attempt: attempt.attempt, time: attempt.time, error: FunctionError::new(fault, message) }
}

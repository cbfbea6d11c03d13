//! One event, from its delivery to its verdict: wait, post, record the attempt, then acknowledge or retry.

use super::{
    super::{WorkerShared, failure},
    endpoint::{Endpoint, Post},
    health::Health,
    permit::SendLimiter,
    signature::old_message_id,
    template::ComposeError,
    verdict::{PostResult, Verdict, decide},
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
use tracing::{Instrument, Span};

/// Maximum deliveries of one event beyond its attempts. Deliveries that workers returned at shutdown are no attempts, but limited.
const MAX_UNFINISHED_DELIVERIES: u32 = 1000;
/// Maximum attempts whose errors a dead letter lists.
const MAX_LISTED_ATTEMPTS: usize = 20;

/// Posts the events of one revision of a sink.
pub(super) struct Dispatcher {
    pub(super) shared: WorkerShared,
    pub(super) name: Name,
    pub(super) revision: u64,
    pub(super) spec: SinkSpec,
    pub(super) endpoint: Endpoint,
    pub(super) limiter: SendLimiter,
    pub(super) health: Health,
    /// Limits concurrent posts over all intakes.
    pub(super) running: Semaphore,
    /// Cancelled at the end of this revision. Events that have not been posted are returned to the broker.
    pub(super) stop: CancellationToken,
}

/// The details of one attempt.
struct AttemptInfo<'a> {
    delivery: &'a Delivery,
    event: &'a Event,
    id: String,
    number: u32,
    started: OffsetDateTime,
    took: Duration,
}

impl Dispatcher {
    /// Processes a delivery. It is acknowledged, retried, or left for redelivery.
    pub(super) async fn handle(self: Arc<Self>, mut delivery: Delivery, slot: OwnedSemaphorePermit) {
        let event = match delivery.event().await {
            Ok(event) => event,
            Err(BodyError::Gone(why)) => return self.reject(delivery, &why).await,
            Err(BodyError::Bus(error)) => {
                tracing::debug!(sink = %self.name, %error, "event body waits for the broker");
                return failure::give_back(delivery).await;
            }
        };
        Span::current().record("event", event.id.as_str());
        let is_redelivery = delivery.delivered > 1;
        let Some(failed) = self.failed_attempts(&delivery).await else { return failure::give_back(delivery).await };
        if delivery.delivered > self.spec.retry.attempts.saturating_add(MAX_UNFINISHED_DELIVERIES) {
            return self.reject(delivery, "all deliveries ended with a worker crash").await;
        }
        let number = failed + 1;
        delivery.attempt = number;
        let id = webhook_id(&delivery, &event);
        let composed = self.shared.stops.work.run_until_cancelled(self.endpoint.post_of(&event, id)).await;
        let post = match composed {
            Some(Ok(post)) => post,
            Some(Err(ComposeError::Invalid(why))) => return self.reject_unrendered(delivery, &event, &why).await,
            Some(Err(ComposeError::Unavailable(why))) => {
                tracing::warn!(sink = %self.name, why, "body cannot be rendered now; returning the event");
                return failure::give_back(delivery).await;
            }
            None => return failure::give_back(delivery).await,
        };
        let started = (OffsetDateTime::now_utc(), Instant::now());
        let span = tracing::info_span!("post", id = post.id.as_str(), attempt = number);
        let Some((result, started)) = self.post(&delivery, &post, started).instrument(span).await else {
            return failure::give_back(delivery).await;
        };
        let info = AttemptInfo {
            delivery: &delivery,
            event: &event,
            id: post.id,
            number,
            started: started.0,
            took: started.1.elapsed(),
        };
        if delivery.is_sink_test() {
            let outcome = if result.is_success() { SinkOutcome::Delivered } else { SinkOutcome::Failed };
            self.shared.bus.record_attempt(&self.record(&info, &result, outcome, None)).await;
            self.acknowledge(delivery).await;
            return;
        }
        let jitter = |wait| failure::with_jitter(wait, delivery.sequence);
        let verdict = decide(&result, number, &self.spec.retry, jitter);
        let (outcome, next) = match verdict {
            Verdict::Delivered => (SinkOutcome::Delivered, None),
            Verdict::RetryAfter(wait) => (SinkOutcome::Retry, Some(OffsetDateTime::now_utc() + wait)),
            Verdict::DeadLetter => (SinkOutcome::Dead, None),
        };
        self.count(outcome);
        let record = self.record(&info, &result, outcome, next);
        self.shared.bus.record_attempt(&record).await;
        self.health.update(&result).await;
        match verdict {
            Verdict::Delivered => {
                // A worker that crashed after it scheduled a retry, and before it acknowledged, has left that retry.
                if is_redelivery && let Err(error) = delivery.delete_delayed_retry(&self.name).await {
                    tracing::debug!(sink = %self.name, %error, "delayed retry could not be deleted; the event may be posted again");
                }
                self.acknowledge(delivery).await;
            }
            Verdict::RetryAfter(wait) => self.schedule_retry(delivery, wait, &record).await,
            Verdict::DeadLetter => self.dead_letter_with_attempts(delivery, &record.id).await,
        }
        drop(slot);
    }

    /// Posts once it has a permit. Returns `None` if this revision ends first.
    async fn post(
        &self,
        delivery: &Delivery,
        post: &Post,
        started: (OffsetDateTime, Instant),
    ) -> Option<(PostResult, (OffsetDateTime, Instant))> {
        let work = &self.shared.stops.work;
        if delivery.is_sink_test() {
            return Some((work.run_until_cancelled(self.endpoint.send(post)).await?, started));
        }
        let _running = self.stop.run_until_cancelled(self.running.acquire()).await?.ok()?;
        let permit = self.stop.run_until_cancelled(self.limiter.acquire()).await?;
        let started = (OffsetDateTime::now_utc(), Instant::now());
        let result = work.run_until_cancelled(self.endpoint.send(post)).await?;
        metrics::histogram!("nerve_sink_seconds", "sink" => self.name.to_string()).record(started.1.elapsed());
        let pause = result.retry_after.filter(|_| matches!(result.status, Some(429 | 503)));
        permit.complete(result.is_success(), pause);
        Some((result, started))
    }

    /// Returns the count of failed attempts, or `None` if it cannot be read. A delayed copy carries it; with `order` it is
    /// recorded in RUNS.
    async fn failed_attempts(&self, delivery: &Delivery) -> Option<u32> {
        if !self.blocks_stream(delivery) {
            return Some(delivery.attempts_made());
        }
        if delivery.delivered == 1 && !delivery.may_have_run {
            return Some(0);
        }
        match self.shared.bus.run_history(&self.name, delivery).await {
            Ok(history) => Some(history.failed),
            Err(error) => {
                tracing::debug!(sink = %self.name, error = &error as &dyn std::error::Error, "event waits for the broker");
                None
            }
        }
    }

    /// Whether the next event of the stream waits for this one.
    fn blocks_stream(&self, delivery: &Delivery) -> bool {
        self.spec.order && !delivery.is_copy()
    }

    async fn acknowledge(&self, delivery: Delivery) {
        if let Err(error) = delivery.ack().await {
            tracing::warn!(sink = %self.name, %error, "ack failed; the delivered event will be posted again");
        }
    }

    async fn schedule_retry(&self, delivery: Delivery, wait: Duration, attempt: &SinkAttempt) {
        let scheduled = match self.blocks_stream(&delivery) {
            // The event stays at the head of the stream, and the broker holds the events behind it.
            true => self.retry_in_order(delivery, wait, attempt).await,
            false => delivery.delay_until(&self.name, OffsetDateTime::now_utc() + wait, attempt.attempt).await,
        };
        if let Err(error) = scheduled {
            tracing::warn!(sink = %self.name, %error, "retry could not be scheduled; the event is redelivered after the ack wait");
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

    /// Dead-letters an event whose body cannot be rendered.
    async fn reject_unrendered(&self, delivery: Delivery, event: &Event, why: &str) {
        let info = AttemptInfo {
            delivery: &delivery,
            event,
            id: webhook_id(&delivery, event),
            number: delivery.attempt,
            started: OffsetDateTime::now_utc(),
            took: Duration::ZERO,
        };
        let (error, body) = (Some(why.to_owned()), String::new());
        let result = PostResult { status: None, retry_after: None, error, timed_out: false, body };
        let outcome = if delivery.is_sink_test() { SinkOutcome::Failed } else { SinkOutcome::Dead };
        let record = self.record(&info, &result, outcome, None);
        self.shared.bus.record_attempt(&record).await;
        self.count(outcome);
        match delivery.is_sink_test() {
            true => self.acknowledge(delivery).await,
            false => self.dead_letter_with_attempts(delivery, &record.id).await,
        }
    }

    /// Dead-letters an event without its recorded attempts.
    async fn reject(&self, delivery: Delivery, why: &str) {
        let error = FunctionError::new(Fault::Invalid, why);
        let attempt = Attempt { attempt: delivery.attempt, time: OffsetDateTime::now_utc(), error };
        self.count(SinkOutcome::Dead);
        self.dead_letter(delivery, &[attempt]).await;
    }

    async fn dead_letter_with_attempts(&self, delivery: Delivery, id: &str) {
        let which =
            SinkAttemptFilter { sink: &self.name, id: Some(id), since: Start::First, limit: MAX_LISTED_ATTEMPTS };
        let known = self.shared.bus.sink_attempts(which, |_| true).await;
        let known = known.unwrap_or_else(|error| {
            tracing::debug!(sink = %self.name, %error, "attempts cannot be read; the dead letter has none");
            Vec::new()
        });
        // A redriven event has attempts of more than one round.
        let last_round = known.iter().rposition(|attempt| attempt.attempt == 1).unwrap_or_default();
        let attempts: Vec<Attempt> = known.iter().skip(last_round).map(attempt_of).collect();
        self.dead_letter(delivery, &attempts).await;
    }

    async fn dead_letter(&self, delivery: Delivery, attempts: &[Attempt]) {
        match delivery.dead_letter(&self.name, self.revision, attempts).await {
            Ok(id) => {
                metrics::counter!("nerve_dead_letters_total", "function" => self.name.to_string()).increment(1);
                tracing::warn!(sink = %self.name, id, "retries exhausted, event moved to the dead-letter queue: nerve dlq show {id}");
            }
            Err(error) => {
                tracing::error!(sink = %self.name, %error, "dead letter could not be stored; its event will be redelivered");
            }
        }
    }

    fn record(
        &self,
        info: &AttemptInfo<'_>,
        result: &PostResult,
        outcome: SinkOutcome,
        next: Option<OffsetDateTime>,
    ) -> SinkAttempt {
        let input = &info.delivery.provenance.input;
        SinkAttempt {
            sink: self.name.clone(),
            id: info.id.clone(),
            event: info.event.id.clone(),
            ty: info.event.ty.to_string(),
            stream: input.stream.to_string(),
            sequence: input.sequence,
            attempt: info.number,
            time: info.started,
            duration_ms: u64::try_from(info.took.as_millis()).unwrap_or(u64::MAX),
            status: result.status,
            answer: result.body.clone(),
            error: result.error.clone(),
            timed_out: result.timed_out,
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

/// Returns the `webhook-id` of an event. A copy that an older Nerve delayed keeps the id of its earlier posts.
fn webhook_id(delivery: &Delivery, event: &Event) -> String {
    match &delivery.provenance.input {
        input if input.stored_ns == 0 => old_message_id(event),
        input => format!("msg_{}", Identity::of_webhook(input)),
    }
}

/// Converts a sink attempt for a dead letter.
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

//! Failed events: attempt records, retries and dead letters.

use super::{
    WorkerShared,
    emission::{EmissionPolicy, publish},
    invocation::ActiveDelivery,
    log, tools,
};
use nerve_broker::bus::{AnswerFailure, Attempt, Delivery, LogRecord, RunHistory};
use nerve_core::{
    Fault, FunctionError, answer,
    function::LogLevel,
    verdict::{Verdict, decide},
};
use parking_lot::Mutex;
use std::time::{Duration, Instant};
use time::OffsetDateTime;

/// Minimum wait of an event in TIMERS. One with a shorter wait stays with its consumer, which may have 65,536 events in flight.
const MIN_TIMER_WAIT: Duration = Duration::from_secs(10);
/// Maximum retries of a function per worker that wait with its consumer. The others wait in TIMERS, so that
/// failing events do not delay new ones.
const MAX_WAITING_RETRIES: u32 = 2048;

/// Counts the retries of a function that wait with its consumer.
#[derive(Debug)]
pub(super) struct WaitingRetries(Mutex<Windows>);

/// Retry counts of the current and the previous window of [`MIN_TIMER_WAIT`]. Every counted wait is shorter than a window.
#[derive(Debug)]
struct Windows {
    began: Instant,
    current: u32,
    previous: u32,
}

impl Default for WaitingRetries {
    fn default() -> Self {
        Self(Mutex::new(Windows { began: Instant::now(), current: 0, previous: 0 }))
    }
}

impl WaitingRetries {
    /// Whether an event with this wait may stay with its consumer. If so, it is counted.
    fn may_stay(&self, wait: Duration) -> bool {
        wait < MIN_TIMER_WAIT && self.count_at(Instant::now())
    }

    fn count_at(&self, now: Instant) -> bool {
        let mut windows = self.0.lock();
        let passed = now.saturating_duration_since(windows.began);
        if passed >= MIN_TIMER_WAIT {
            let previous = if passed < MIN_TIMER_WAIT * 2 { windows.current } else { 0 };
            *windows = Windows { began: now, current: 0, previous };
        }
        let stays = windows.current.saturating_add(windows.previous) < MAX_WAITING_RETRIES;
        windows.current += u32::from(stays);
        stays
    }
}

/// Maximum bytes of a stored error message: several must fit into a dead letter's headers.
const MAX_ERROR_BYTES: usize = 2048;

/// Settles a failed delivery by its verdict.
pub(super) async fn settle(
    shared: &WorkerShared,
    policy: &EmissionPolicy,
    revision: u64,
    active: ActiveDelivery,
    error: FunctionError,
) {
    let ActiveDelivery { delivery, mut history, slot, .. } = active;
    let verdict = decide(Some(&error), delivery.attempt, &policy.spec.retry);
    if error.fault == Fault::Interrupted {
        return release_recorded(shared, policy, delivery, history).await;
    }
    let error = FunctionError { message: log::truncate(error.message, MAX_ERROR_BYTES), ..error };
    history.end_failed(&delivery, error);
    log::write(shared, &record(policy, &delivery, &history, &verdict)).await;
    match verdict {
        Verdict::DeadLetter => store_dead_letter(shared, policy, revision, delivery, &history.failures).await,
        Verdict::RetryAfter(wait) => {
            let function = &policy.function;
            let wait = with_jitter(wait, delivery.sequence);
            // A redriven event has a separate slot, and stays in DEAD until it is done.
            let delayed = !delivery.is_redriven() && !policy.retries.may_stay(wait);
            history.set_delayed(delayed);
            if let Err(error) = shared.bus.record_run(function, &delivery, &history).await {
                tracing::warn!(%function, %error, "failed attempt could not be recorded and does not count");
            }
            let settled = match delayed {
                true => delivery.delay_until(function, OffsetDateTime::now_utc() + wait, history.failed).await,
                false => delivery.retry_after(wait).await,
            };
            if let Err(error) = settled {
                tracing::warn!(%function, %error, "retry could not be scheduled; the event is redelivered after the ack wait");
            }
        }
        // A failure is never acknowledged.
        Verdict::Ack => {
            tracing::error!(function = %policy.function, "failure without a verdict; the event will be redelivered")
        }
    }
    drop(slot);
}

/// Dead-letters a delivery whose attempts are exhausted.
pub(super) async fn dead_letter(shared: &WorkerShared, policy: &EmissionPolicy, revision: u64, active: ActiveDelivery) {
    let ActiveDelivery { mut delivery, history, slot, .. } = active;
    delivery.attempt = history.failed;
    log::write(shared, &record(policy, &delivery, &history, &Verdict::DeadLetter)).await;
    store_dead_letter(shared, policy, revision, delivery, &history.failures).await;
    drop(slot);
}

/// Returns a delivery to the broker for immediate redelivery.
pub(super) async fn give_back(delivery: Delivery) {
    if let Err(error) = delivery.retry_after(Duration::ZERO).await {
        tracing::warn!(%error, "nak failed; the event is redelivered after the ack wait");
    }
}

/// Returns a delivery to the broker for immediate redelivery and records that this was no attempt.
pub(super) async fn release_recorded(
    shared: &WorkerShared,
    policy: &EmissionPolicy,
    delivery: Delivery,
    history: RunHistory,
) {
    if let Err(error) = shared.bus.release_recorded(&policy.function, delivery, history).await {
        tracing::warn!(%error, "nak failed; the event is redelivered after the ack wait");
    }
}

async fn store_dead_letter(
    shared: &WorkerShared,
    policy: &EmissionPolicy,
    revision: u64,
    delivery: Delivery,
    attempts: &[Attempt],
) {
    let function = &policy.function;
    let last = attempts.last().map(|attempt| &attempt.error);
    let why = last.map_or("it failed", |error| error.message.as_str());
    // An agent continues with the error of its tool, so its answer has not failed yet.
    let answer = match answer_call(shared, policy, &delivery, why).await {
        Ok(true) => None,
        Ok(false) => delivery.answer_id(),
        Err(error) => {
            tracing::error!(%function, %error, "tool failure could not be published to the agent; the call will be redelivered");
            return;
        }
    };
    match delivery.dead_letter(function, revision, attempts).await {
        Ok(id) => {
            metrics::counter!("nerve_dead_letters_total", "function" => function.to_string()).increment(1);
            tracing::warn!(%function, id, "retries exhausted, event moved to the dead-letter queue: nerve dlq show {id}");
        }
        Err(error) => {
            tracing::error!(%function, %error, "dead letter could not be stored; its event will be redelivered");
            return;
        }
    }
    let leads_on = shared.catalogue.borrow().leads_to(function, answer::GENERATED);
    let Some(answer) = answer.filter(|_| leads_on) else { return };
    let failure = AnswerFailure {
        function: function.as_str(),
        message: why,
        timeout: last.is_some_and(|error| error.fault == Fault::Timeout),
    };
    if let Err(error) = shared.bus.fail_answer(&answer, failure).await {
        tracing::warn!(%function, %error, answer, "failure of an answer could not be published to its readers");
    }
}

/// Publishes the error of a failed tool to the agent that called it. Returns whether the event was such a call.
async fn answer_call(
    shared: &WorkerShared,
    policy: &EmissionPolicy,
    delivery: &Delivery,
    why: &str,
) -> Result<bool, FunctionError> {
    if policy.spec.tool.is_none() {
        return Ok(false);
    }
    let Ok(event) = delivery.event().await else { return Ok(false) };
    let Some(emission) = tools::failed_result(&event, why).filter(|_| tools::is_call(&policy.spec, &event)) else {
        return Ok(false);
    };
    // A redriven call publishes another result, in another generation.
    let id = delivery.run(&policy.function).emission(emission.ty.as_str(), b"failed", 0);
    let answer = policy.event(&event, id, emission)?;
    publish(|| shared.bus.publish(&answer, id)).await.map(|_| true)
}

fn record(policy: &EmissionPolicy, delivery: &Delivery, history: &RunHistory, verdict: &Verdict) -> LogRecord {
    let next = match verdict {
        Verdict::Ack => "done".to_owned(),
        Verdict::RetryAfter(wait) => format!("next attempt in {}", humantime::format_duration(*wait)),
        Verdict::DeadLetter => "dead letter".to_owned(),
    };
    let last = history.failures.last().map(|attempt| attempt.error.message.as_str()).unwrap_or_default();
    let of = policy.spec.retry.attempts;
    let message = format!("attempt {} of {of} failed ({next}): {last}", delivery.attempt);
    let mut record = log::record(&policy.function, LogLevel::Error, message);
    record.event = Some(delivery.event_id());
    record.attempts.clone_from(&history.failures);
    record
}

/// Adds up to 10 % to a wait, by the event's sequence, so that events that failed together are not retried together.
pub(super) fn with_jitter(wait: Duration, sequence: u64) -> Duration {
    let spread = u32::try_from(sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54).unwrap_or_default();
    wait + wait / 10 * spread / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_waits_with_its_consumer_only_if_short_and_below_the_limit() {
        let retries = WaitingRetries::default();
        assert!(!retries.may_stay(MIN_TIMER_WAIT) && retries.may_stay(MIN_TIMER_WAIT - Duration::from_millis(1)));
        let now = Instant::now();
        let stay = |at: Instant| (0..2 * MAX_WAITING_RETRIES).filter(|_| retries.count_at(at)).count();
        let all = usize::try_from(MAX_WAITING_RETRIES).unwrap();
        assert_eq!([stay(now), stay(now + MIN_TIMER_WAIT)], [all - 1, 0], "retries of the previous window count");
        assert_eq!(stay(now + MIN_TIMER_WAIT * 3), all);
    }

    #[test]
    fn jitter_adds_at_most_a_tenth() {
        let wait = Duration::from_secs(10);
        let waits: Vec<_> = (0..100).map(|sequence| with_jitter(wait, sequence)).collect();
        assert!(waits.iter().all(|jittered| (wait..=wait + wait / 10).contains(jittered)));
        assert!(waits.iter().max() > waits.iter().min());
    }
}

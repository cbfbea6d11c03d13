//! What becomes of an event that failed, and what is remembered of it.

use super::{
    Shared,
    emission::{Outlet, publish},
    invocation::Taken,
    log, tools,
};
use nerve_broker::bus::{AnswerFailure, Attempt, Delivery, LogRecord, RunHistory};
use nerve_core::{
    Fault, FunctionError, answer,
    function::LogLevel,
    verdict::{Verdict, decide},
};
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use time::OffsetDateTime;

/// The wait from which on an event waits in TIMERS. A shorter one stays with its consumer, which may have 65,536 events in flight.
const DELAYED_FROM: Duration = Duration::from_secs(10);
/// The most events of a function that wait with its consumer, as far as one worker knows. The others wait in TIMERS, so that
/// events that fail hold up none that are new.
const MAX_WAITING_RETRIES: u32 = 2048;

/// How many retries of a function a worker has left with its consumer.
#[derive(Debug)]
pub(super) struct WaitingRetries(Mutex<Windows>);

/// Counts of the time that a short wait takes at most, and of as much before it: no wait is longer than both.
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
    /// Whether an event that waits so long may wait with its consumer; then it is counted.
    fn may_stay(&self, wait: Duration) -> bool {
        wait < DELAYED_FROM && self.count_at(Instant::now())
    }

    fn count_at(&self, now: Instant) -> bool {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(windows.began);
        if passed >= DELAYED_FROM {
            let previous = if passed < DELAYED_FROM * 2 { windows.current } else { 0 };
            *windows = Windows { began: now, current: 0, previous };
        }
        let stays = windows.current.saturating_add(windows.previous) < MAX_WAITING_RETRIES;
        windows.current += u32::from(stays);
        stays
    }
}

/// The longest error that is kept, in bytes: several must fit into a dead letter's headers.
const MAX_ERROR_BYTES: usize = 2048;

/// Settles a failed delivery by its verdict.
pub(super) async fn settle(shared: &Shared, outlet: &Outlet, revision: u64, taken: Taken, error: FunctionError) {
    let Taken { delivery, mut history, slot, .. } = taken;
    let verdict = decide(Some(&error), delivery.attempt, &outlet.spec.retry);
    if error.fault == Fault::Interrupted {
        return release_recorded(shared, outlet, delivery, history).await;
    }
    let error = FunctionError { message: log::truncate(error.message, MAX_ERROR_BYTES), ..error };
    history.end_failed(&delivery, error);
    log::write(shared, &record(outlet, &delivery, &history, &verdict)).await;
    match verdict {
        Verdict::DeadLetter => bury_with(shared, outlet, revision, delivery, &history.failures).await,
        Verdict::RetryAfter(wait) => {
            let function = &outlet.function;
            let wait = with_jitter(wait, delivery.sequence);
            // One that is redriven has a slot of its own, and stays listed in DEAD until it is done.
            let delayed = !delivery.is_redriven() && !outlet.retries.may_stay(wait);
            history.set_delayed(delayed);
            if let Err(error) = shared.bus.record_run(function, &delivery, &history).await {
                tracing::warn!(%function, %error, "a failed attempt is not recorded, and does not count");
            }
            let settled = match delayed {
                true => delivery.delay_until(function, OffsetDateTime::now_utc() + wait, history.failed).await,
                false => delivery.retry_after(wait).await,
            };
            if let Err(error) = settled {
                tracing::warn!(%function, %error, "a retry waits for the ack wait instead");
            }
        }
        // A failure is never acknowledged.
        Verdict::Ack => tracing::error!(function = %outlet.function, "a failure had no verdict; it will come again"),
    }
    drop(slot);
}

/// Dead-letters a delivery whose attempts have all failed before this one.
pub(super) async fn bury(shared: &Shared, outlet: &Outlet, revision: u64, taken: Taken) {
    let Taken { mut delivery, history, slot, .. } = taken;
    delivery.attempt = history.failed;
    log::write(shared, &record(outlet, &delivery, &history, &Verdict::DeadLetter)).await;
    bury_with(shared, outlet, revision, delivery, &history.failures).await;
    drop(slot);
}

/// Gives a delivery back at once: it was not its fault.
pub(super) async fn give_back(delivery: Delivery) {
    if let Err(error) = delivery.retry_after(Duration::ZERO).await {
        tracing::warn!(%error, "an event could not be given back and comes after the ack wait");
    }
}

/// Gives a delivery back at once, and records that this was no attempt.
pub(super) async fn release_recorded(shared: &Shared, outlet: &Outlet, delivery: Delivery, history: RunHistory) {
    if let Err(error) = shared.bus.release_recorded(&outlet.function, delivery, history).await {
        tracing::warn!(%error, "an event could not be given back and comes after the ack wait");
    }
}

async fn bury_with(shared: &Shared, outlet: &Outlet, revision: u64, delivery: Delivery, attempts: &[Attempt]) {
    let function = &outlet.function;
    let last = attempts.last().map(|attempt| &attempt.error);
    let why = last.map_or("it failed", |error| error.message.as_str());
    // An agent goes on with what its tools answer, so its answer has not failed yet.
    let answer = match answer_call(shared, outlet, &delivery, why).await {
        Ok(true) => None,
        Ok(false) => delivery.answer_id(),
        Err(error) => {
            tracing::error!(%function, %error, "an agent could not be told that its tool failed; the call comes again");
            return;
        }
    };
    match delivery.dead_letter(function, revision, attempts).await {
        Ok(id) => {
            metrics::counter!("nerve_dead_letters_total", "function" => function.to_string()).increment(1);
            tracing::warn!(%function, id, "an event failed for good: nerve dlq show {id}");
        }
        Err(error) => {
            tracing::error!(%function, %error, "a dead letter could not be written; its event comes again");
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
        tracing::warn!(%function, %error, answer, "the readers of an answer could not be told that there will be none");
    }
}

/// Tells an agent that the tool it called failed for good; says whether the event was such a call.
async fn answer_call(shared: &Shared, outlet: &Outlet, delivery: &Delivery, why: &str) -> Result<bool, FunctionError> {
    if outlet.spec.tool.is_none() {
        return Ok(false);
    }
    let Ok(event) = delivery.event().await else { return Ok(false) };
    let Some(emission) = tools::failed(&event, why).filter(|_| tools::is_call(&outlet.spec, &event)) else {
        return Ok(false);
    };
    // The call may be redriven, and then answers once more, in another generation.
    let id = delivery.run(&outlet.function).emission(emission.ty.as_str(), b"failed", 0);
    let answer = outlet.event(&event, id, emission)?;
    publish(|| shared.bus.publish(&answer, id)).await.map(|_| true)
}

fn record(outlet: &Outlet, delivery: &Delivery, history: &RunHistory, verdict: &Verdict) -> LogRecord {
    let next = match verdict {
        Verdict::Ack => "done".to_owned(),
        Verdict::RetryAfter(wait) => format!("next try in {}", humantime::format_duration(*wait)),
        Verdict::DeadLetter => "dead letter".to_owned(),
    };
    let last = history.failures.last().map(|attempt| attempt.error.message.as_str()).unwrap_or_default();
    let of = outlet.spec.retry.attempts;
    let message = format!("attempt {} of {of} failed ({next}): {last}", delivery.attempt);
    let mut record = log::record(&outlet.function, LogLevel::Error, message);
    record.event = Some(delivery.event_id());
    record.attempts.clone_from(&history.failures);
    record
}

/// Up to a tenth more, by the event's place: what failed together does not come back together.
pub(super) fn with_jitter(wait: Duration, sequence: u64) -> Duration {
    let spread = u32::try_from(sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54).unwrap_or_default();
    wait + wait / 10 * spread / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_retries_of_a_function_stay_with_its_consumer_and_none_for_long() {
        let retries = WaitingRetries::default();
        assert!(!retries.may_stay(DELAYED_FROM) && retries.may_stay(DELAYED_FROM - Duration::from_millis(1)));
        let now = Instant::now();
        let stay = |at: Instant| (0..2 * MAX_WAITING_RETRIES).filter(|_| retries.count_at(at)).count();
        let all = usize::try_from(MAX_WAITING_RETRIES).unwrap();
        assert_eq!([stay(now), stay(now + DELAYED_FROM)], [all - 1, 0], "the first ones may still wait");
        assert_eq!(stay(now + DELAYED_FROM * 3), all);
    }

    #[test]
    fn jitter_adds_a_tenth_at_most() {
        let wait = Duration::from_secs(10);
        let waits: Vec<_> = (0..100).map(|sequence| with_jitter(wait, sequence)).collect();
        assert!(waits.iter().all(|jittered| (wait..=wait + wait / 10).contains(jittered)));
        assert!(waits.iter().max() > waits.iter().min());
    }
}

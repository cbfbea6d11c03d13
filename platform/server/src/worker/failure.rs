//! What becomes of an event that failed, and what is remembered of it.

use super::{
    Shared,
    emission::{Outlet, publish},
    log, tools,
};
use crate::bus::{Attempt, Delivery, Failure, LogRecord};
use nerve_core::{
    Fault, FunctionError, answer,
    function::LogLevel,
    verdict::{Verdict, decide},
};
use std::time::Duration;
use time::OffsetDateTime;

/// Attempts whose errors are kept with an event.
const REMEMBERED: usize = 20;

/// The longest error that is kept, in bytes: several must fit into a dead letter's headers.
const LONGEST_ERROR: usize = 2048;

/// Settles a failed delivery by its verdict.
pub(super) async fn settle(shared: &Shared, outlet: &Outlet, revision: u64, delivery: Delivery, error: FunctionError) {
    let verdict = decide(Some(&error), delivery.attempt, &outlet.spec.retry);
    if error.fault == Fault::Interrupted {
        return give_back(delivery).await;
    }
    let attempts = attempts_with(shared, outlet, &delivery, error).await;
    let record = record(outlet, &delivery, &attempts, &verdict);
    match verdict {
        Verdict::DeadLetter => {
            shared.bus.log(&record).await;
            bury_with(shared, outlet, revision, delivery, &attempts).await;
        }
        Verdict::RetryAfter(wait) => {
            shared.bus.log_attempts(&delivery.stream, delivery.sequence, &record).await;
            let wait = with_jitter(wait, delivery.sequence);
            if let Err(error) = delivery.retry_after(wait).await {
                tracing::warn!(function = %outlet.function, %error, "a retry waits for the ack wait instead");
            }
        }
        // A failure is never acknowledged.
        Verdict::Ack => tracing::error!(function = %outlet.function, "a failure had no verdict; it will come again"),
    }
}

/// Dead-letters a delivery that has had all its tries before this one.
pub(super) async fn bury(shared: &Shared, outlet: &Outlet, revision: u64, delivery: Delivery) {
    let attempts = shared.bus.attempts(&outlet.function, &delivery.stream, delivery.sequence).await;
    let attempts = without_holes(attempts, delivery.attempt.saturating_sub(1));
    shared.bus.log(&record(outlet, &delivery, &attempts, &Verdict::DeadLetter)).await;
    bury_with(shared, outlet, revision, delivery, &attempts).await;
}

/// Gives a delivery back at once: it was not its fault.
pub(super) async fn give_back(delivery: Delivery) {
    if let Err(error) = delivery.retry_after(Duration::ZERO).await {
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
    let failure = Failure {
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
    let mut answer = outlet.event(&event, 0, emission)?;
    // The call may be tried again by hand, and then answers once more.
    answer.id.push_str("-failed");
    publish(&shared.bus, &answer).await.map(|()| true)
}

/// Every attempt so far, this one last.
async fn attempts_with(shared: &Shared, outlet: &Outlet, delivery: &Delivery, error: FunctionError) -> Vec<Attempt> {
    let before = match delivery.attempt {
        1 => Vec::new(),
        _ => shared.bus.attempts(&outlet.function, &delivery.stream, delivery.sequence).await,
    };
    let error = FunctionError { message: log::truncate(error.message, LONGEST_ERROR), ..error };
    let mut attempts = without_holes(before, delivery.attempt.saturating_sub(1));
    attempts.push(Attempt { attempt: delivery.attempt, time: OffsetDateTime::now_utc(), error });
    attempts.drain(..attempts.len().saturating_sub(REMEMBERED));
    attempts
}

/// Names the attempts that nobody wrote about: their worker ended with them, or gave them back.
fn without_holes(mut attempts: Vec<Attempt>, count: u32) -> Vec<Attempt> {
    let first = count.saturating_sub(u32::try_from(REMEMBERED).unwrap_or(u32::MAX)) + 1;
    for missing in first..=count {
        if !attempts.iter().any(|attempt| attempt.attempt == missing) {
            let message = "no word of this attempt: its worker was stopped or died while it ran";
            let error = FunctionError::new(Fault::Crash, message);
            attempts.push(Attempt { attempt: missing, time: OffsetDateTime::now_utc(), error });
        }
    }
    attempts.sort_by_key(|attempt| attempt.attempt);
    attempts
}

fn record(outlet: &Outlet, delivery: &Delivery, attempts: &[Attempt], verdict: &Verdict) -> LogRecord {
    let next = match verdict {
        Verdict::Ack => "done".to_owned(),
        Verdict::RetryAfter(wait) => format!("next try in {}", humantime::format_duration(*wait)),
        Verdict::DeadLetter => "dead letter".to_owned(),
    };
    let last = attempts.last().map(|attempt| attempt.error.message.as_str()).unwrap_or_default();
    let of = outlet.spec.retry.attempts;
    let message = format!("attempt {} of {of} failed ({next}): {last}", delivery.attempt);
    let mut record = log::record(&outlet.function, LogLevel::Error, message);
    record.event = Some(delivery.event_id());
    record.attempts = attempts.to_vec();
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
    fn attempts_that_nobody_wrote_about_are_named() {
        let written =
            Attempt { attempt: 2, time: OffsetDateTime::UNIX_EPOCH, error: FunctionError::new(Fault::Timeout, "slow") };
        let all = without_holes(vec![written], 3);
        assert_eq!(all.iter().map(|attempt| attempt.attempt).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(all[1].error.fault, Fault::Timeout);
        assert!(all[0].error.message.contains("died"));
        assert!(without_holes(Vec::new(), 0).is_empty());
        assert_eq!(without_holes(Vec::new(), 1000).len(), REMEMBERED);
    }

    #[test]
    fn jitter_adds_a_tenth_at_most() {
        let wait = Duration::from_secs(10);
        let waits: Vec<_> = (0..100).map(|sequence| with_jitter(wait, sequence)).collect();
        assert!(waits.iter().all(|jittered| (wait..=wait + wait / 10).contains(jittered)));
        assert!(waits.iter().max() > waits.iter().min());
    }
}

//! The history of unsuccessful runs: failures, released deliveries, crashes.
//!
//! JetStream counts deliveries, not their outcomes. Each unsuccessful delivery is therefore recorded in the
//! stream RUNS, the newest record per run. A delivery without a record ended with a crash of its worker or
//! a lost acknowledgement. Successful events have no record.

use super::error::ResultExt as _;
use super::{Attempt, Bus, BusError, Delivery, TIMERS, streams::RUNS};
use async_nats::{HeaderMap, jetstream::stream::LastRawMessageErrorKind};
use nerve_core::{Fault, FunctionError, Name};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// Maximum failures kept per run.
const MAX_FAILURES: usize = 20;

/// The known deliveries of one run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunHistory {
    /// Failed attempts.
    pub failed: u32,
    /// The newest failures, oldest first.
    pub failures: Vec<Attempt>,
    /// The consumer of the deliveries below, by its creation time in nanoseconds since 1970.
    consumer: i64,
    /// Deliveries with a known outcome, from the first on.
    accounted: u32,
    /// The delivery that was started alone in its worker.
    alone: Option<u32>,
    /// Whether a delivery ended without an outcome, and no later one with an outcome.
    suspect: bool,
    /// Releases because the worker was never idle.
    pub postponed: u32,
    /// Whether the last failure was to leave a copy in TIMERS.
    #[serde(default)]
    delayed: bool,
}

/// How to continue with a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumption {
    /// Run it normally.
    Run,
    /// Run it alone: it was in flight when a worker crashed, and another crash must be attributable.
    RunAlone,
    /// All attempts have failed.
    Exhausted,
}

impl RunHistory {
    /// Records the start of a delivery, and decides how to continue if `attempts` are allowed.
    ///
    /// Of the deliveries without an outcome, only one that ran alone counts as a failed attempt.
    pub fn resume(&mut self, delivery: &Delivery, attempts: u32) -> Resumption {
        self.resume_at(delivery.consumer_created, delivery.delivered, attempts)
    }

    fn resume_at(&mut self, consumer: i64, delivered: u32, attempts: u32) -> Resumption {
        let before = delivered.saturating_sub(1);
        if self.consumer != consumer {
            // A recreated consumer counts from 1. The last delivery of the old one has ended in some way.
            self.suspect |= self.alone.is_some();
            (self.consumer, self.accounted, self.alone) = (consumer, 0, None);
        }
        if before > self.accounted {
            if self.alone == Some(before) {
                let message = "the worker process crashed while it ran this event alone";
                self.fail(FunctionError::new(Fault::Crash, message));
            }
            self.suspect = true;
            self.accounted = before;
        }
        self.alone = None;
        match self.suspect {
            _ if self.failed >= attempts => Resumption::Exhausted,
            true => Resumption::RunAlone,
            false => Resumption::Run,
        }
    }

    /// Records that this delivery is started alone in its worker.
    pub fn start_alone(&mut self, delivery: &Delivery) {
        self.alone = Some(delivery.delivered);
    }

    /// Returns whether the delivery was started alone in its worker.
    pub fn is_alone(&self) -> bool {
        self.alone.is_some()
    }

    /// Records the failure of this delivery.
    pub fn end_failed(&mut self, delivery: &Delivery, error: FunctionError) {
        self.fail(error);
        self.end(delivery);
        self.suspect = false;
        self.postponed = 0;
    }

    /// Records whether its next attempt waits in TIMERS.
    pub fn set_delayed(&mut self, delayed: bool) {
        self.delayed = delayed;
    }

    /// Returns whether a worker that crashed before acknowledging this delivery may have left a copy in TIMERS.
    pub fn may_have_delayed_copy(&self, delivery: &Delivery) -> bool {
        // The first delivery from TIMERS is that copy.
        self.delayed && (delivery.stream.as_ref() != TIMERS || delivery.delivered > 1)
    }

    /// Records the release of this delivery, which is not an attempt.
    pub fn end_released(&mut self, delivery: &Delivery) {
        self.end(delivery);
    }

    fn end(&mut self, delivery: &Delivery) {
        (self.consumer, self.accounted, self.alone) = (delivery.consumer_created, delivery.delivered, None);
    }

    fn fail(&mut self, error: FunctionError) {
        self.failed = self.failed.saturating_add(1);
        self.failures.push(Attempt { attempt: self.failed, time: OffsetDateTime::now_utc(), error });
        let excess = self.failures.len().saturating_sub(MAX_FAILURES);
        self.failures.drain(..excess);
    }
}

impl Bus {
    /// The history of the run of `function` on a delivery.
    pub async fn run_history(&self, function: &Name, delivery: &Delivery) -> Result<RunHistory, BusError> {
        let subject = subject(function, delivery);
        let what = || format!("reading {subject}");
        // From the leader, since a follower may lag behind the last write.
        let stream = self.jetstream.get_stream_no_info(RUNS).await.unavailable(what)?;
        match stream.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => serde_json::from_slice(&message.payload).refused(what),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                Ok(self.legacy_history(function, delivery).await)
            }
            Err(error) => Err(BusError::unavailable(what(), error)),
        }
    }

    /// Records the history of a run.
    pub async fn record_run(&self, function: &Name, delivery: &Delivery, history: &RunHistory) -> Result<(), BusError> {
        let subject = subject(function, delivery);
        let what = || format!("writing {subject}");
        let body = serde_json::to_vec(history).refused(what)?;
        let sent = self
            .jetstream
            .publish_with_headers(subject.clone(), headers(delivery), body.into())
            .await
            .unavailable(what)?;
        sent.await.map(drop).unavailable(what)
    }

    /// Releases a delivery immediately, and records that this was not an attempt; waits for neither.
    pub async fn release_recorded(
        &self,
        function: &Name,
        delivery: Delivery,
        mut history: RunHistory,
    ) -> Result<(), BusError> {
        history.end_released(&delivery);
        if let Ok(body) = serde_json::to_vec(&history) {
            let subject = subject(function, &delivery);
            self.client
                .publish_with_headers(subject, headers(&delivery), body.into())
                .await
                .unavailable("giving back an event")?;
        }
        delivery.retry_after(std::time::Duration::ZERO).await
    }

    /// The failures that an earlier version of Nerve recorded in LOGS, by the event's position.
    async fn legacy_history(&self, function: &Name, delivery: &Delivery) -> RunHistory {
        let failures = self.legacy_attempts(function, delivery).await;
        let failed = failures.iter().map(|attempt| attempt.attempt).max().unwrap_or_default();
        let consumer = if failed > 0 { delivery.consumer_created } else { 0 };
        RunHistory { failed, failures, consumer, accounted: failed, ..RunHistory::default() }
    }
}

/// The event's attributes, by which an erasure of its workflow finds the record.
fn headers(delivery: &Delivery) -> HeaderMap {
    delivery.provenance.copied(delivery.message.headers.as_ref(), &delivery.message.subject)
}

fn subject(function: &Name, delivery: &Delivery) -> String {
    format!("runs.{function}.{}", delivery.run(function).attempts())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resumes deliveries in order, each of which ends without an outcome; the flag says whether it was started alone.
    fn resumed(history: &mut RunHistory, deliveries: impl IntoIterator<Item = (u32, bool)>) -> Vec<Resumption> {
        let resume = |(delivered, alone)| {
            let resumption = history.resume_at(1, delivered, 2);
            history.alone = Some(delivered).filter(|_| alone);
            resumption
        };
        deliveries.into_iter().map(resume).collect()
    }

    #[test]
    fn only_an_event_that_ran_alone_is_blamed_for_a_crash() {
        use Resumption::{Exhausted, Run, RunAlone};
        let mut history = RunHistory::default();
        let deliveries = [(1, false), (2, false), (3, true), (4, true), (5, false)];
        assert_eq!(resumed(&mut history, deliveries), [Run, RunAlone, RunAlone, RunAlone, Exhausted]);
        assert_eq!((history.failed, history.failures.len()), (2, 2));
        assert!(history.failures[1].error.message.contains("crashed"));
    }

    #[test]
    fn delivery_with_a_known_outcome_is_not_a_crash() {
        let mut history = RunHistory { accounted: 3, consumer: 1, ..RunHistory::default() };
        assert_eq!(history.resume_at(1, 4, 5), Resumption::Run);
        assert_eq!((history.failed, history.suspect), (0, false));
        // The consumer was recreated, and counts from 1; failures are kept.
        let mut history = RunHistory { accounted: 3, consumer: 1, failed: 4, ..RunHistory::default() };
        assert_eq!(history.resume_at(2, 1, 5), Resumption::Run);
        assert_eq!(history.resume_at(2, 2, 5), Resumption::RunAlone);
        assert_eq!(history.resume_at(2, 2, 4), Resumption::Exhausted);
    }

    #[test]
    fn number_of_failures_is_limited_to_the_newest() {
        let mut history = RunHistory::default();
        for n in 0..100 {
            history.fail(FunctionError::new(Fault::Timeout, n.to_string()));
        }
        assert_eq!((history.failed, history.failures.len()), (100, MAX_FAILURES));
        assert_eq!(history.failures.last().map(|attempt| attempt.attempt), Some(100));
    }
}

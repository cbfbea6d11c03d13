//! What is remembered of runs that did not end well: failures, deliveries that were given back, crashes.
//!
//! JetStream counts deliveries, and not what became of them. So each delivery that ends otherwise than well is written to the
//! stream RUNS, the newest record per run. A delivery that nothing is written about ended without a word: its worker died, or
//! its acknowledgement was lost. An event that goes well is never written about.

use super::{Attempt, Bus, BusError, Delivery, TIMERS, streams::RUNS};
use async_nats::{HeaderMap, jetstream::stream::LastRawMessageErrorKind};
use nerve_core::{Fault, FunctionError, Name};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// Failures that are kept with a run.
const MAX_FAILURES: usize = 20;

/// What is known of the deliveries of one run so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunHistory {
    /// Attempts that failed.
    pub failed: u32,
    /// The newest of them, oldest first.
    pub failures: Vec<Attempt>,
    /// Which consumer the deliveries below are of: when it was created, in nanoseconds since 1970.
    consumer: i64,
    /// Deliveries whose end is known, from the first on.
    accounted: u32,
    /// The delivery that was started while nothing else ran in its worker.
    alone: Option<u32>,
    /// Whether a delivery ended without a word, and none has ended with one since.
    suspect: bool,
    /// How often it was given back as its worker was never idle.
    pub postponed: u32,
    /// Whether the last failure was to leave a copy in TIMERS.
    #[serde(default)]
    delayed: bool,
}

/// How a delivery goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumption {
    /// It runs as any other.
    Run,
    /// It was in flight when a worker died: it runs while nothing else does, so that a crash is its own.
    RunAlone,
    /// All its attempts have failed.
    Exhausted,
}

impl RunHistory {
    /// Takes note of a delivery that begins, and says how it goes on if `attempts` are allowed.
    ///
    /// Of the deliveries that ended without a word only one that ran alone counts as a failed attempt.
    pub fn resume(&mut self, delivery: &Delivery, attempts: u32) -> Resumption {
        self.resume_at(delivery.consumer_created, delivery.delivered, attempts)
    }

    fn resume_at(&mut self, consumer: i64, delivered: u32, attempts: u32) -> Resumption {
        let before = delivered.saturating_sub(1);
        if self.consumer != consumer {
            // A consumer that is made again counts from 1. What the old one delivered last has ended somehow.
            self.suspect |= self.alone.is_some();
            (self.consumer, self.accounted, self.alone) = (consumer, 0, None);
        }
        if before > self.accounted {
            if self.alone == Some(before) {
                let message = "the worker process died while it ran this event, and no other";
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

    /// Takes note that this delivery is started while nothing else runs in its worker.
    pub fn start_alone(&mut self, delivery: &Delivery) {
        self.alone = Some(delivery.delivered);
    }

    /// Whether the delivery was started while nothing else ran in its worker.
    pub fn is_alone(&self) -> bool {
        self.alone.is_some()
    }

    /// Takes note that this delivery failed.
    pub fn end_failed(&mut self, delivery: &Delivery, error: FunctionError) {
        self.fail(error);
        self.end(delivery);
        self.suspect = false;
        self.postponed = 0;
    }

    /// Takes note of whether its next attempt waits in TIMERS.
    pub fn set_delayed(&mut self, delayed: bool) {
        self.delayed = delayed;
    }

    /// Whether a worker that ended before it acknowledged this delivery may have left a copy of it in TIMERS.
    pub fn may_wait_beside(&self, delivery: &Delivery) -> bool {
        // The first delivery from TIMERS is that copy.
        self.delayed && (delivery.stream.as_ref() != TIMERS || delivery.delivered > 1)
    }

    /// Takes note that this delivery was given back, which is no attempt.
    pub fn end_given_back(&mut self, delivery: &Delivery) {
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
    /// What is remembered of the run of `function` on a delivery.
    pub async fn run_history(&self, function: &Name, delivery: &Delivery) -> Result<RunHistory, BusError> {
        let subject = subject(function, delivery);
        let what = || format!("reading {subject}");
        // From the leader, as a follower may not have yet what was written a moment ago.
        let stream = self.jetstream.get_stream_no_info(RUNS).await;
        let stream = stream.map_err(|error| BusError::unavailable(what(), error))?;
        match stream.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => serde_json::from_slice(&message.payload).map_err(|error| BusError::refused(what(), error)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                Ok(self.old_history(function, delivery).await)
            }
            Err(error) => Err(BusError::unavailable(what(), error)),
        }
    }

    /// Writes down what is known of a run.
    pub async fn record_run(&self, function: &Name, delivery: &Delivery, history: &RunHistory) -> Result<(), BusError> {
        let subject = subject(function, delivery);
        let what = || format!("writing {subject}");
        let body = serde_json::to_vec(history).map_err(|error| BusError::refused(what(), error))?;
        let sent = self.jetstream.publish_with_headers(subject.clone(), headers(delivery), body.into()).await;
        let sent = sent.map_err(|error| BusError::unavailable(what(), error))?;
        sent.await.map(drop).map_err(|error| BusError::unavailable(what(), error))
    }

    /// Gives a delivery back at once, and writes down that this was no attempt; neither is waited for.
    pub async fn give_back_recorded(
        &self,
        function: &Name,
        delivery: Delivery,
        mut history: RunHistory,
    ) -> Result<(), BusError> {
        history.end_given_back(&delivery);
        if let Ok(body) = serde_json::to_vec(&history) {
            let subject = subject(function, &delivery);
            let sent = self.client.publish_with_headers(subject, headers(&delivery), body.into()).await;
            sent.map_err(|error| BusError::unavailable("giving back an event", error))?;
        }
        delivery.retry_after(std::time::Duration::ZERO).await
    }

    /// The failures that an older Nerve wrote to LOGS, by the event's place.
    async fn old_history(&self, function: &Name, delivery: &Delivery) -> RunHistory {
        let failures = self.old_attempts(function, delivery).await;
        let failed = failures.iter().map(|attempt| attempt.attempt).max().unwrap_or_default();
        let consumer = if failed > 0 { delivery.consumer_created } else { 0 };
        RunHistory { failed, failures, consumer, accounted: failed, ..RunHistory::default() }
    }
}

/// What the event says of itself: by that a record is found whose workflow is erased.
fn headers(delivery: &Delivery) -> HeaderMap {
    delivery.provenance.copied(delivery.message.headers.as_ref(), &delivery.message.subject)
}

fn subject(function: &Name, delivery: &Delivery) -> String {
    format!("runs.{function}.{}", delivery.run(function).attempts())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resumes deliveries one after the other, each of which ends without a word unless `alone` says that it was started alone.
    fn resumed(history: &mut RunHistory, deliveries: impl IntoIterator<Item = (u32, bool)>) -> Vec<Resumption> {
        let resume = |(delivered, alone)| {
            let resumption = history.resume_at(1, delivered, 2);
            history.alone = Some(delivered).filter(|_| alone);
            resumption
        };
        deliveries.into_iter().map(resume).collect()
    }

    #[test]
    fn only_an_event_that_ran_alone_pays_for_a_crash() {
        use Resumption::{Exhausted, Run, RunAlone};
        let mut history = RunHistory::default();
        let deliveries = [(1, false), (2, false), (3, true), (4, true), (5, false)];
        assert_eq!(resumed(&mut history, deliveries), [Run, RunAlone, RunAlone, RunAlone, Exhausted]);
        assert_eq!((history.failed, history.failures.len()), (2, 2));
        assert!(history.failures[1].error.message.contains("died"));
    }

    #[test]
    fn delivery_with_a_known_end_is_no_crash() {
        let mut history = RunHistory { accounted: 3, consumer: 1, ..RunHistory::default() };
        assert_eq!(history.resume_at(1, 4, 5), Resumption::Run);
        assert_eq!((history.failed, history.suspect), (0, false));
        // The consumer was made again, and counts anew; failures stay.
        let mut history = RunHistory { accounted: 3, consumer: 1, failed: 4, ..RunHistory::default() };
        assert_eq!(history.resume_at(2, 1, 5), Resumption::Run);
        assert_eq!(history.resume_at(2, 2, 5), Resumption::RunAlone);
        assert_eq!(history.resume_at(2, 2, 4), Resumption::Exhausted);
    }

    #[test]
    fn failures_are_bounded_and_the_newest_are_kept() {
        let mut history = RunHistory::default();
        for n in 0..100 {
            history.fail(FunctionError::new(Fault::Timeout, n.to_string()));
        }
        assert_eq!((history.failed, history.failures.len()), (100, MAX_FAILURES));
        assert_eq!(history.failures.last().map(|attempt| attempt.attempt), Some(100));
    }
}

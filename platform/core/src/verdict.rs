//! What becomes of an event after a function has had it.

use crate::{
    function::{Fault, FunctionError},
    limits,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How often an event is tried, and how long to wait between two tries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Tries in all, the first one counted in; at least 1.
    pub attempts: u32,
    /// The wait after the first, second, … try; the last one repeats.
    #[serde(with = "crate::manifest::millis::list")]
    pub backoff: Vec<Duration>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 5, backoff: [1, 5, 30, 120].map(Duration::from_secs).to_vec() }
    }
}

impl RetryPolicy {
    /// The wait after try number `attempt` (from 1).
    pub fn wait_after(&self, attempt: u32) -> Duration {
        let index = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        self.backoff.get(index).or(self.backoff.last()).copied().unwrap_or_default()
    }

    /// Whether an event delivered for the `attempt`-th time has had all its tries before this one.
    ///
    /// That happens only when a try ended without a verdict: the worker died with it.
    pub fn exhausted_before(&self, attempt: u32) -> bool {
        attempt > self.attempts
    }
}

/// How a delivery is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Done: acknowledge it.
    Ack,
    /// Deliver it again after this long.
    RetryAfter(Duration),
    /// Failed for good: copy it to the dead letters, then terminate it.
    DeadLetter,
}

/// Decides what becomes of an event whose `attempt`-th try (from 1) ended with `failure`, or well.
pub fn decide(failure: Option<&FunctionError>, attempt: u32, policy: &RetryPolicy) -> Verdict {
    let Some(failure) = failure else { return Verdict::Ack };
    match failure.fault {
        Fault::Invalid => Verdict::DeadLetter,
        Fault::Interrupted => Verdict::RetryAfter(Duration::ZERO),
        _ if attempt >= policy.attempts => Verdict::DeadLetter,
        Fault::Retry { after: Some(after) } => Verdict::RetryAfter(limits::wait(after)),
        Fault::Retry { after: None } | Fault::Timeout | Fault::Crash => Verdict::RetryAfter(policy.wait_after(attempt)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_table() {
        let seconds = Duration::from_secs;
        let policy = RetryPolicy { attempts: 3, backoff: vec![seconds(1), seconds(5)] };
        let later = Fault::Retry { after: Some(seconds(60)) };
        let again = Fault::Retry { after: None };
        let table = [
            (None, 1, Verdict::Ack),
            (None, 9, Verdict::Ack),
            (Some(Fault::Invalid), 1, Verdict::DeadLetter),
            (Some(Fault::Interrupted), 1, Verdict::RetryAfter(Duration::ZERO)),
            (Some(Fault::Interrupted), 3, Verdict::RetryAfter(Duration::ZERO)),
            (Some(again), 1, Verdict::RetryAfter(seconds(1))),
            (Some(again), 2, Verdict::RetryAfter(seconds(5))),
            (Some(again), 3, Verdict::DeadLetter),
            (Some(later), 1, Verdict::RetryAfter(seconds(60))),
            (Some(later), 3, Verdict::DeadLetter),
            (Some(Fault::Retry { after: Some(Duration::MAX) }), 1, Verdict::RetryAfter(limits::MAX_WAIT)),
            (Some(Fault::Timeout), 1, Verdict::RetryAfter(seconds(1))),
            (Some(Fault::Timeout), 3, Verdict::DeadLetter),
            (Some(Fault::Crash), 2, Verdict::RetryAfter(seconds(5))),
            (Some(Fault::Crash), 4, Verdict::DeadLetter),
        ];
        for (fault, attempt, expected) in table {
            let failure = fault.map(|fault| FunctionError { fault, message: String::new() });
            assert_eq!(decide(failure.as_ref(), attempt, &policy), expected, "{fault:?} at {attempt}");
        }
    }

    #[test]
    fn the_last_backoff_repeats_and_none_is_no_wait() {
        let policy = RetryPolicy { attempts: 9, backoff: vec![Duration::from_secs(1), Duration::from_secs(2)] };
        assert_eq!(policy.wait_after(7), Duration::from_secs(2));
        assert_eq!(RetryPolicy { attempts: 2, backoff: vec![] }.wait_after(1), Duration::ZERO);
        assert!(policy.exhausted_before(10) && !policy.exhausted_before(9));
    }
}

//! Decides between ack, retry and dead letter after an attempt.

use crate::{
    function::{Fault, FunctionError},
    limits,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Maximum attempts and the waits between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Maximum attempts, including the first; at least 1.
    pub attempts: u32,
    /// The wait after the first, second, … attempt; the last one repeats.
    #[serde(with = "crate::manifest::millis::list")]
    pub backoff: Vec<Duration>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 5, backoff: [1, 5, 30, 120].map(Duration::from_secs).to_vec() }
    }
}

impl RetryPolicy {
    /// Returns the wait after attempt number `attempt` (from 1).
    pub fn wait_after(&self, attempt: u32) -> Duration {
        let index = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        self.backoff.get(index).or(self.backoff.last()).copied().unwrap_or_default()
    }

    /// Whether the attempts were exhausted before attempt number `attempt`.
    ///
    /// That happens only if an attempt ended without a verdict, because the worker crashed.
    pub fn exhausted_before(&self, attempt: u32) -> bool {
        attempt > self.attempts
    }
}

/// The decision on a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Acknowledge it.
    Ack,
    /// Redeliver it after this wait.
    RetryAfter(Duration),
    /// Retries exhausted: copy it to the dead-letter stream, then terminate it.
    DeadLetter,
}

/// Decides on an event whose attempt number `attempt` (from 1) failed with `failure`, or succeeded.
pub fn decide(failure: Option<&FunctionError>, attempt: u32, policy: &RetryPolicy) -> Verdict {
    let Some(failure) = failure else { return Verdict::Ack };
    match failure.fault {
        Fault::Invalid => Verdict::DeadLetter,
        Fault::Interrupted => Verdict::RetryAfter(Duration::ZERO),
        _ if attempt >= policy.attempts => Verdict::DeadLetter,
        Fault::Retry { after: Some(after) } => Verdict::RetryAfter(limits::clamp_wait(after)),
        Fault::Retry { after: None } | Fault::Timeout | Fault::Crash => Verdict::RetryAfter(policy.wait_after(attempt)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdict_follows_fault_and_attempt() {
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
    fn last_backoff_repeats_and_empty_backoff_is_no_wait() {
        let policy = RetryPolicy { attempts: 9, backoff: vec![Duration::from_secs(1), Duration::from_secs(2)] };
        assert_eq!(policy.wait_after(7), Duration::from_secs(2));
        assert_eq!(RetryPolicy { attempts: 2, backoff: vec![] }.wait_after(1), Duration::ZERO);
        assert!(policy.exhausted_before(10) && !policy.exhausted_before(9));
    }
}

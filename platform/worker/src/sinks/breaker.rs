//! A circuit breaker: after repeated failures it opens for a while, then probes the endpoint with one event.
//!
//! While it is open nothing is posted, so no attempt is consumed, and waiting events stay in the broker.

use std::time::Duration;
use tokio::time::Instant;

/// Consecutive failures that open the breaker.
const FAILURE_THRESHOLD: u32 = 10;
/// The first open interval. Each failed probe doubles it.
const OPEN_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum open interval.
const MAX_OPEN_INTERVAL: Duration = Duration::from_secs(300);

/// The decision about one post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Post now.
    Allowed,
    /// Post at this time or later.
    NotBefore(Instant),
    /// Wait for the end of the running probe.
    AfterProbe,
}

/// The breaker of one endpoint in one worker.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// Consecutive failures.
    failures: u32,
    /// The current open interval; `None` while the breaker is closed.
    open_interval: Option<Duration>,
    not_before: Option<Instant>,
    is_probing: bool,
}

impl Breaker {
    /// Requests one post. The outcome of an [`Allowed`](Admission::Allowed) post must be reported.
    pub(super) fn admit(&mut self, now: Instant) -> Admission {
        if let Some(at) = self.not_before.filter(|at| *at > now) {
            return Admission::NotBefore(at);
        }
        match (self.open_interval, self.is_probing) {
            (None, _) => Admission::Allowed,
            (Some(_), true) => Admission::AfterProbe,
            (Some(_), false) => {
                self.is_probing = true;
                Admission::Allowed
            }
        }
    }

    /// Reports a successful post.
    pub(super) fn succeeded(&mut self) {
        *self = Self { not_before: self.not_before, ..Self::default() };
    }

    /// Reports a failed post.
    pub(super) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURE_THRESHOLD {
            return;
        }
        // Of posts that were sent concurrently before it opened, only the first failure opens it.
        if self.open_interval.is_none() || self.is_probing {
            let interval = self.open_interval.map_or(OPEN_INTERVAL, |interval| (interval * 2).min(MAX_OPEN_INTERVAL));
            self.open_interval = Some(interval);
            self.hold(now + interval);
        }
        self.is_probing = false;
    }

    /// Reports a post that was dropped before its response.
    pub(super) fn abandoned(&mut self) {
        self.is_probing = false;
    }

    /// Holds all posts until a time, as the endpoint requested.
    pub(super) fn hold(&mut self, until: Instant) {
        self.not_before = self.not_before.max(Some(until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaker_opens_probes_once_and_closes() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for _ in 1..FAILURE_THRESHOLD {
            assert_eq!(breaker.admit(start), Admission::Allowed);
            breaker.failed(start);
        }
        assert_eq!(breaker.admit(start), Admission::Allowed);
        breaker.failed(start);
        // Late failures of posts that were sent before it opened change nothing.
        breaker.failed(start);
        assert_eq!(breaker.admit(at(9)), Admission::NotBefore(at(10)));
        assert_eq!(breaker.admit(at(10)), Admission::Allowed);
        assert_eq!(breaker.admit(at(10)), Admission::AfterProbe);
        breaker.failed(at(11));
        assert_eq!(breaker.admit(at(12)), Admission::NotBefore(at(31)));
        assert_eq!(breaker.admit(at(31)), Admission::Allowed);
        breaker.abandoned();
        assert_eq!(breaker.admit(at(31)), Admission::Allowed);
        breaker.succeeded();
        assert_eq!((breaker.admit(at(31)), breaker.admit(at(31))), (Admission::Allowed, Admission::Allowed));
    }

    #[test]
    fn open_interval_has_a_maximum_and_is_reset_by_a_success() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        for _ in 0..FAILURE_THRESHOLD + 20 {
            if let Admission::NotBefore(at) = breaker.admit(now) {
                assert!(at - now <= MAX_OPEN_INTERVAL);
                now = at;
                assert_eq!(breaker.admit(now), Admission::Allowed);
            }
            breaker.failed(now);
        }
        assert_eq!(breaker.admit(now), Admission::NotBefore(now + MAX_OPEN_INTERVAL));
        assert_eq!(breaker.admit(now + MAX_OPEN_INTERVAL), Admission::Allowed);
        breaker.succeeded();
        breaker.failed(now);
        assert_eq!(breaker.admit(now + MAX_OPEN_INTERVAL), Admission::Allowed);
    }

    #[test]
    fn requested_pause_holds_all_posts() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        breaker.hold(now + Duration::from_secs(5));
        breaker.hold(now + Duration::from_secs(3));
        assert_eq!(breaker.admit(now), Admission::NotBefore(now + Duration::from_secs(5)));
        assert_eq!(breaker.admit(now + Duration::from_secs(5)), Admission::Allowed);
    }
}

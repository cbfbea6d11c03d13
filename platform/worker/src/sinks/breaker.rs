//! A circuit breaker: an endpoint that only fails is left alone for a while, and then tried with one event.
//!
//! Nothing is posted meanwhile, so no attempt is spent, and what waits stays in the broker.

use std::time::Duration;
use tokio::time::Instant;

/// Failures in a row after which an endpoint is left alone.
const FAILURES: u32 = 10;
/// How long at first, and at most: each failed trial doubles it.
const REST: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// Whether a post may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Now.
    Go,
    /// Not before this moment.
    At(Instant),
    /// Once the trial that is under way has ended.
    AfterTrial,
}

/// What is known of one endpoint by one worker.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// In a row.
    failures: u32,
    /// The rest that it has now, if it has one.
    rest: Option<Duration>,
    not_before: Option<Instant>,
    trying: bool,
}

impl Breaker {
    /// Asks for one post; a [`Go`](Admission::Go) must be told how it ended.
    pub(super) fn admit(&mut self, now: Instant) -> Admission {
        if let Some(at) = self.not_before.filter(|at| *at > now) {
            return Admission::At(at);
        }
        match (self.rest, self.trying) {
            (None, _) => Admission::Go,
            (Some(_), true) => Admission::AfterTrial,
            (Some(_), false) => {
                self.trying = true;
                Admission::Go
            }
        }
    }

    /// A post went well.
    pub(super) fn succeeded(&mut self) {
        *self = Self { not_before: self.not_before, ..Self::default() };
    }

    /// A post failed.
    pub(super) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILURES {
            return;
        }
        // Of posts that went out together before the rest began, only the first begins it.
        if self.rest.is_none() || self.trying {
            let rest = self.rest.map_or(REST.0, |rest| (rest * 2).min(REST.1));
            self.rest = Some(rest);
            self.hold(now + rest);
        }
        self.trying = false;
    }

    /// A post was dropped before it had an answer.
    pub(super) fn abandoned(&mut self) {
        self.trying = false;
    }

    /// The endpoint asked for a pause until then.
    pub(super) fn hold(&mut self, until: Instant) {
        self.not_before = self.not_before.max(Some(until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_tries_one_and_closes() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for _ in 1..FAILURES {
            assert_eq!(breaker.admit(start), Admission::Go);
            breaker.failed(start);
        }
        assert_eq!(breaker.admit(start), Admission::Go);
        breaker.failed(start);
        // Late failures of what went out before change nothing.
        breaker.failed(start);
        assert_eq!(breaker.admit(at(9)), Admission::At(at(10)));
        assert_eq!(breaker.admit(at(10)), Admission::Go);
        assert_eq!(breaker.admit(at(10)), Admission::AfterTrial);
        breaker.failed(at(11));
        assert_eq!(breaker.admit(at(12)), Admission::At(at(31)));
        assert_eq!(breaker.admit(at(31)), Admission::Go);
        breaker.abandoned();
        assert_eq!(breaker.admit(at(31)), Admission::Go);
        breaker.succeeded();
        assert_eq!((breaker.admit(at(31)), breaker.admit(at(31))), (Admission::Go, Admission::Go));
    }

    #[test]
    fn a_rest_has_a_longest_and_a_success_starts_anew() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        for _ in 0..FAILURES + 20 {
            if let Admission::At(at) = breaker.admit(now) {
                assert!(at - now <= REST.1);
                now = at;
                assert_eq!(breaker.admit(now), Admission::Go);
            }
            breaker.failed(now);
        }
        assert_eq!(breaker.admit(now), Admission::At(now + REST.1));
        assert_eq!(breaker.admit(now + REST.1), Admission::Go);
        breaker.succeeded();
        breaker.failed(now);
        assert_eq!(breaker.admit(now + REST.1), Admission::Go);
    }

    #[test]
    fn a_pause_that_was_asked_for_holds_all() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        breaker.hold(now + Duration::from_secs(5));
        breaker.hold(now + Duration::from_secs(3));
        assert_eq!(breaker.admit(now), Admission::At(now + Duration::from_secs(5)));
        assert_eq!(breaker.admit(now + Duration::from_secs(5)), Admission::Go);
    }
}

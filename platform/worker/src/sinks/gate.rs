//! What a post waits for before it goes: the breaker, and the sink's rate.

use super::breaker::{Admission, Breaker};
use nerve_core::{manifest::Rate, rate_limit::RateLimiter};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// The longest pause of all posts that one answer may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// One endpoint's gate, on one worker.
pub(super) struct Gate {
    breaker: Mutex<Breaker>,
    limiter: Option<RateLimiter>,
    /// A post has ended.
    ended: Notify,
}

/// The right to post once; told how it ended, or abandoned.
pub(super) struct Pass<'g> {
    gate: &'g Gate,
    told: bool,
}

impl Gate {
    pub(super) fn new(rate: Option<Rate>) -> Self {
        Self {
            breaker: Mutex::default(),
            limiter: rate.map(|rate| RateLimiter::even(rate, Instant::now().into_std())),
            ended: Notify::new(),
        }
    }

    /// Waits until a post may go.
    pub(super) async fn pass(&self) -> Pass<'_> {
        loop {
            let ended = self.ended.notified();
            let admission = self.lock().admit(Instant::now());
            match admission {
                Admission::Go => break,
                Admission::At(at) => tokio::time::sleep_until(at).await,
                Admission::AfterTrial => ended.await,
            }
        }
        let pass = Pass { gate: self, told: false };
        if let Some(limiter) = &self.limiter {
            let reserved = limiter.reserve(Instant::now().into_std());
            tokio::time::sleep_until(reserved.into()).await;
        }
        pass
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// The post was answered, well or not, and `pause` was asked for.
    pub(super) fn ended(mut self, good: bool, pause: Option<Duration>) {
        self.told = true;
        let now = Instant::now();
        let mut breaker = self.gate.lock();
        match good {
            true => breaker.succeeded(),
            false => breaker.failed(now),
        }
        if let Some(pause) = pause {
            breaker.hold(now + pause.min(PAUSE_MAX));
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.gate.lock().abandoned();
        }
        self.gate.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_only_fails_is_left_alone() {
        let gate = Gate::new(None);
        let start = Instant::now();
        for _ in 0..10 {
            gate.pass().await.ended(false, None);
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        let trial = gate.pass().await;
        assert!(start.elapsed() >= Duration::from_secs(10));
        // While it is tried nobody else goes; once it is well all go.
        assert!(tokio::time::timeout(Duration::from_secs(60), gate.pass()).await.is_err());
        trial.ended(true, None);
        gate.pass().await.ended(true, Some(Duration::from_secs(7)));
        let paused = Instant::now();
        gate.pass().await.ended(true, None);
        assert_eq!(paused.elapsed(), Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn posts_keep_to_the_rate() {
        let gate = Gate::new(Some("90/h".parse().unwrap()));
        let start = Instant::now();
        for _ in 0..4 {
            gate.pass().await.ended(true, None);
        }
        assert_eq!(start.elapsed(), Duration::from_secs(120));
        // What was not used is not saved up.
        tokio::time::advance(Duration::from_secs(3600)).await;
        let later = Instant::now();
        for _ in 0..3 {
            gate.pass().await.ended(true, None);
        }
        assert_eq!(later.elapsed(), Duration::from_secs(80));
    }
}

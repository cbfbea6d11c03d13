//! Send permits: a post waits for the circuit breaker and for the sink's rate limit.

use super::breaker::{Admission, Breaker};
use nerve_core::{manifest::Rate, rate_limit::RateLimiter};
use parking_lot::Mutex;
use std::time::Duration;
use tokio::{sync::Notify, time::Instant};

/// Maximum pause of all posts that one response may request.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// The send limiter of one endpoint in one worker.
pub(super) struct SendLimiter {
    breaker: Mutex<Breaker>,
    rate: Option<RateLimiter>,
    /// Notified when a post ends.
    ended: Notify,
}

/// The permit for one post. Its outcome is reported by [`complete`](Self::complete), or it counts as abandoned.
pub(super) struct SendPermit<'l> {
    limiter: &'l SendLimiter,
    is_complete: bool,
}

impl SendLimiter {
    pub(super) fn new(rate: Option<Rate>) -> Self {
        Self {
            breaker: Mutex::default(),
            rate: rate.map(|rate| RateLimiter::even(rate, Instant::now().into_std())),
            ended: Notify::new(),
        }
    }

    /// Waits until a post is allowed.
    pub(super) async fn acquire(&self) -> SendPermit<'_> {
        loop {
            let ended = self.ended.notified();
            let admission = self.breaker.lock().admit(Instant::now());
            match admission {
                Admission::Allowed => break,
                Admission::NotBefore(at) => tokio::time::sleep_until(at).await,
                Admission::AfterProbe => ended.await,
            }
        }
        let permit = SendPermit { limiter: self, is_complete: false };
        if let Some(rate) = &self.rate {
            let reserved = rate.reserve(Instant::now().into_std());
            tokio::time::sleep_until(reserved.into()).await;
        }
        permit
    }
}

impl SendPermit<'_> {
    /// Reports the outcome of the post, and the pause that the endpoint requested.
    pub(super) fn complete(mut self, success: bool, pause: Option<Duration>) {
        self.is_complete = true;
        let now = Instant::now();
        let mut breaker = self.limiter.breaker.lock();
        match success {
            true => breaker.succeeded(),
            false => breaker.failed(now),
        }
        if let Some(pause) = pause {
            breaker.hold(now + pause.min(MAX_PAUSE));
        }
    }
}

impl Drop for SendPermit<'_> {
    fn drop(&mut self) {
        if !self.is_complete {
            self.limiter.breaker.lock().abandoned();
        }
        self.limiter.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failing_endpoint_gets_one_probe_after_a_pause() {
        let limiter = SendLimiter::new(None);
        let start = Instant::now();
        for _ in 0..10 {
            limiter.acquire().await.complete(false, None);
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        let probe = limiter.acquire().await;
        assert!(start.elapsed() >= Duration::from_secs(10));
        // No other post is allowed during the probe; all are allowed after its success.
        assert!(tokio::time::timeout(Duration::from_secs(60), limiter.acquire()).await.is_err());
        probe.complete(true, None);
        limiter.acquire().await.complete(true, Some(Duration::from_secs(7)));
        let paused = Instant::now();
        limiter.acquire().await.complete(true, None);
        assert_eq!(paused.elapsed(), Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn posts_respect_the_rate_limit() {
        let limiter = SendLimiter::new(Some("90/h".parse().unwrap()));
        let start = Instant::now();
        for _ in 0..4 {
            limiter.acquire().await.complete(true, None);
        }
        assert_eq!(start.elapsed(), Duration::from_secs(120));
        // Unused permits do not accumulate.
        tokio::time::advance(Duration::from_secs(3600)).await;
        let later = Instant::now();
        for _ in 0..3 {
            limiter.acquire().await.complete(true, None);
        }
        assert_eq!(later.elapsed(), Duration::from_secs(80));
    }
}

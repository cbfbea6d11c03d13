//! A rate limiter, for sinks, webhook sources and API keys.
//!
//! It stores one instant: when the next event is due if events are evenly spread (the generic cell rate algorithm, ITU-T I.371).
//! A limiter with a burst may run ahead of that by what its rate allows in one period.

use crate::manifest::Rate;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// A rate, and the part of it that is used.
#[derive(Debug)]
pub struct RateLimiter {
    interval: Duration,
    burst: Duration,
    next: Mutex<Instant>,
}

impl RateLimiter {
    /// A limiter without a burst: events are spread evenly over each second.
    pub fn even(rate: Rate, now: Instant) -> Self {
        Self { interval: rate.per / rate.count, burst: Duration::ZERO, next: Mutex::new(now) }
    }

    /// A limiter with a burst of one period: a token bucket of that size, full at first.
    pub fn bursting(rate: Rate, now: Instant) -> Self {
        let interval = rate.per / rate.count;
        Self { burst: rate.per.saturating_sub(interval), ..Self::even(rate, now) }
    }

    /// Reserves the next free instant and returns it.
    pub fn reserve(&self, now: Instant) -> Instant {
        let mut next = self.next.lock();
        let reserved = now.max(*next);
        *next = reserved + self.interval;
        reserved
    }

    /// Admits one event at `now`.
    ///
    /// # Errors
    /// The time until the next one is admitted. A refused event does not count.
    pub fn try_admit(&self, now: Instant) -> Result<(), Duration> {
        let mut next = self.next.lock();
        match next.saturating_duration_since(now).checked_sub(self.burst) {
            None | Some(Duration::ZERO) => {
                *next = now.max(*next) + self.interval;
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_is_one_period_and_then_the_rate_holds() {
        let start = Instant::now();
        let limiter = RateLimiter::bursting("4/s".parse().unwrap(), start);
        for _ in 0..4 {
            limiter.try_admit(start).unwrap();
        }
        assert_eq!(limiter.try_admit(start), Err(Duration::from_millis(250)));
        let later = start + Duration::from_millis(250);
        limiter.try_admit(later).unwrap();
        assert_eq!(limiter.try_admit(later), Err(Duration::from_millis(250)), "a refused event does not count");
        let hour_later = later + Duration::from_secs(3600);
        assert_eq!(
            (0..9).filter(|_| limiter.try_admit(hour_later).is_ok()).count(),
            4,
            "an idle hour saves up one period"
        );
    }

    #[test]
    fn even_rate_saves_nothing_up() {
        let start = Instant::now();
        let limiter = RateLimiter::even("2/s".parse().unwrap(), start);
        let later = start + Duration::from_secs(60);
        limiter.try_admit(later).unwrap();
        assert_eq!(limiter.try_admit(later), Err(Duration::from_millis(500)));
        assert_eq!(limiter.reserve(later), later + Duration::from_millis(500));
    }
}

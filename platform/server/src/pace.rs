//! Keeps to a rate: for sinks, which wait their turn, and for webhook sources, whose senders are told to come back.
//!
//! One moment is all there is to remember: when the next one would be due if they came evenly spread (the generic cell
//! rate algorithm). A source may run ahead of that by what its rate allows in one period, a sink not at all.

use nerve_core::manifest::Rate;
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// A rate, and how much of it is used.
#[derive(Debug)]
pub(crate) struct Pace {
    apart: Duration,
    ahead: Duration,
    next: Mutex<Instant>,
}

impl Pace {
    /// Evenly spread: what may go in a second does not go at its beginning.
    pub(crate) fn even(rate: Rate) -> Self {
        Self { apart: rate.per / rate.count, ahead: Duration::ZERO, next: Mutex::new(Instant::now()) }
    }

    /// What may go in one period may go at once, if nothing did before: a token bucket of that size.
    pub(crate) fn bursting(rate: Rate) -> Self {
        let apart = rate.per / rate.count;
        Self { ahead: rate.per.saturating_sub(apart), ..Self::even(rate) }
    }

    /// When the next one may go; it is taken, so that the one after it comes later.
    pub(crate) fn take(&self) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = Instant::now().max(*next);
        *next = taken + self.apart;
        taken
    }

    /// Takes the next one if it may go now; otherwise, says how long that will take.
    pub(crate) fn try_take(&self) -> Result<(), Duration> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match next.saturating_duration_since(now).checked_sub(self.ahead) {
            None | Some(Duration::ZERO) => {
                *next = now.max(*next) + self.apart;
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_what_one_period_allows_and_then_the_rate_holds() {
        let pace = Pace::bursting("4/s".parse().unwrap());
        for _ in 0..4 {
            pace.try_take().unwrap();
        }
        assert_eq!(pace.try_take(), Err(Duration::from_millis(250)));
        tokio::time::advance(Duration::from_millis(250)).await;
        pace.try_take().unwrap();
        assert_eq!(pace.try_take(), Err(Duration::from_millis(250)), "what is refused is not counted");
        // However long nothing came, no more is saved up than one period's.
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!((0..9).filter(|_| pace.try_take().is_ok()).count(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn an_even_pace_saves_nothing_up() {
        let pace = Pace::even("2/s".parse().unwrap());
        tokio::time::advance(Duration::from_secs(60)).await;
        pace.try_take().unwrap();
        assert_eq!(pace.try_take(), Err(Duration::from_millis(500)));
        assert_eq!(pace.take(), Instant::now() + Duration::from_millis(500));
    }
}

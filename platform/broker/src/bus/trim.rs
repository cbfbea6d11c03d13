//! Keeps EVENTS within its size limit: removes finished events first, and reports when nothing more can be removed.
//!
//! The broker would drop the oldest events regardless of their state, so it has no limit (except with `events_full = "refuse"`). Instead
//! a server checks the stream once a second, and immediately when a publisher needs space. Above [`TRIM_ABOVE_PERCENT`] it removes,
//! oldest first, the events that all durable consumers have finished, Nerve's and others', down to [`TRIM_TO_PERCENT`]. Above
//! [`ACCEPT_BELOW_PERCENT`] the rest is unfinished work, and intake stops until some of it is finished. Finished events behind
//! an unfinished one are removed as well ([`interior`]).
//!
//! Any number of servers can trim concurrently: what one has removed is gone for the others.

mod interior;

pub use interior::Returns;

use super::error::ResultExt as _;
use super::{
    Bus, BusError, EVENTS,
    durables::DurableConsumer,
    expiry::Expiry,
    stream_full::{StreamFull, StreamFullReason},
};
use crate::streams::{EventsFull, StreamsConfig};
use async_nats::jetstream::stream::{Info, Stream};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Interval of the check.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum interval between requested checks.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Share of the limit above which events are removed.
const TRIM_ABOVE_PERCENT: u64 = 90;
/// Share of the limit down to which events are removed.
const TRIM_TO_PERCENT: u64 = 75;
/// Share of the limit above which no external events are accepted; the rest is reserved for results of functions.
const ACCEPT_BELOW_PERCENT: u64 = 95;
/// Minimum interval between trims behind unfinished events, if the last one removed nothing.
const INTERIOR_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum purges per check: each estimates the number of events from their average size.
const MAX_PURGES: usize = 8;

/// Keeps EVENTS within its limit, and counts expired events.
pub struct Trimmer {
    bus: Bus,
    /// The limit in bytes; not enforced by the broker if an earlier version created the stream.
    limit: Option<u64>,
    when_full: EventsFull,
    returns: Returns,
    /// The time of the last interior trim that removed nothing.
    last_futile_trim: Option<Instant>,
    expiry: Expiry,
}

/// The consumer that prevents events from being removed.
struct BlockingConsumer {
    consumer: String,
    unfinished: u64,
    first: u64,
}

impl Trimmer {
    /// A trimmer; `returns` provides the output types of functions.
    pub fn new(bus: &Bus, config: &StreamsConfig, returns: Returns) -> Self {
        let limit = u64::try_from(config.events_max_bytes).ok();
        let (when_full, expiry) = (config.events_full, Expiry::default());
        Self { bus: bus.clone(), limit, when_full, returns, last_futile_trim: None, expiry }
    }

    /// Checks the stream until `end`.
    pub async fn run(mut self, end: CancellationToken) {
        let mut ticks = tokio::time::interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let bus = self.bus.clone();
        while !end.is_cancelled() {
            let due = async {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = bus.space().wanted() => {}
                }
            };
            if end.run_until_cancelled(due).await.is_none() {
                return;
            }
            let began = Instant::now();
            if let Some(Err(error)) = end.run_until_cancelled(self.check()).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot check EVENTS; retrying");
            }
            end.run_until_cancelled(tokio::time::sleep_until(began + MIN_CHECK_INTERVAL)).await;
        }
    }

    async fn check(&mut self) -> Result<(), BusError> {
        let what = || format!("checking {EVENTS}");
        if !self.bus.connected() {
            return Ok(());
        }
        let stream = self.bus.stream(EVENTS, what).await?;
        let info = stream.cached_info().clone();
        match self.limit {
            Some(limit) => self.enforce_limit(&stream, info.clone(), limit).await?,
            None => self.bus.space().report(None, None),
        }
        self.expiry.check(&self.bus, &stream, &info).await
    }

    /// Removes what is possible, and reports the capacity.
    async fn enforce_limit(&mut self, stream: &Stream, info: Info, limit: u64) -> Result<(), BusError> {
        let mut used = info.state.bytes;
        let mut reason = StreamFullReason::Unknown;
        if self.when_full == EventsFull::Refuse {
            reason = StreamFullReason::NeverTrimmed;
        } else if used > percentage(limit, TRIM_ABOVE_PERCENT) {
            let (left, blocking) = self.trim(stream, info, percentage(limit, TRIM_TO_PERCENT)).await?;
            used = left;
            if let Some(BlockingConsumer { consumer, unfinished, first }) = blocking {
                reason = StreamFullReason::Held { consumer, unfinished, first };
            }
        }
        let capacity = percentage(limit, ACCEPT_BELOW_PERCENT).saturating_sub(used);
        let full = (capacity == 0).then_some(StreamFull { max_bytes: Some(limit), reason });
        if let Some(full) = &full
            && self.bus.space().full().is_none()
        {
            tracing::warn!("rejecting external events with 503: {full}");
        } else if full.is_none() && self.bus.space().full().is_some() {
            tracing::info!("the stream {EVENTS} has space again");
        }
        self.bus.space().report(Some(capacity), full);
        Ok(())
    }

    /// Removes finished events down to `target` bytes, from the front and then behind unfinished ones. Returns the remaining bytes,
    /// and the consumer that blocks the rest.
    async fn trim(
        &mut self,
        stream: &Stream,
        mut info: Info,
        target: u64,
    ) -> Result<(u64, Option<BlockingConsumer>), BusError> {
        let what = || format!("trimming {EVENTS}");
        let mut consumers = self.bus.durables(EVENTS).await?;
        // Consumers with unfinished events first: they limit the cut.
        consumers.sort_by_key(|consumer| (consumer.unfinished() == 0, consumer.floor()));
        let mut blocking = None;
        for _ in 0..MAX_PURGES {
            let state = &info.state;
            if state.bytes <= target || state.messages == 0 {
                break;
            }
            // Assumes that all events have the same size.
            let surplus = (state.bytes - target).div_ceil((state.bytes / state.messages).max(1));
            let wanted = (state.first_sequence + surplus).min(state.last_sequence + 1);
            let (cut, by) = finished_before(&consumers, stream, wanted, state.first_sequence).await?;
            blocking = by;
            if cut <= state.first_sequence {
                break;
            }
            let purged = stream.purge().sequence(cut).await.unavailable(what)?;
            metrics::counter!("nerve_events_trimmed_total").increment(purged.purged);
            tracing::debug!(events = purged.purged, before = cut, "removed finished events");
            info = stream.get_info().await.unavailable(what)?;
            if blocking.is_some() {
                break;
            }
        }
        let mut left = info.state.bytes;
        let idle = self.last_futile_trim.is_none_or(|last| last.elapsed() >= INTERIOR_INTERVAL);
        if blocking.is_some() && left > target && idle {
            let before = left;
            left = interior::trim_interior(&self.bus, stream, (&consumers, &self.returns), target).await?;
            self.last_futile_trim = (left >= before).then(Instant::now);
        }
        Ok((left, blocking))
    }
}

/// The sequence below which every consumer has finished all, at most `wanted`; and the consumer that limits it. The search ends
/// at `first`, the first sequence of the stream.
async fn finished_before(
    consumers: &[DurableConsumer],
    stream: &Stream,
    wanted: u64,
    first: u64,
) -> Result<(u64, Option<BlockingConsumer>), BusError> {
    let (mut cut, mut blocking) = (wanted, None);
    for consumer in consumers {
        if consumer.floor() >= cut {
            continue;
        }
        let next = consumer.next_from(stream, consumer.floor()).await?;
        if let Some(next) = next.filter(|next| next.sequence < cut) {
            cut = next.sequence;
            let consumer = (consumer.name().to_owned(), consumer.unfinished());
            blocking = Some(BlockingConsumer { consumer: consumer.0, unfinished: consumer.1, first: next.sequence });
        }
        if cut <= first {
            break;
        }
    }
    Ok((cut, blocking))
}

fn percentage(limit: u64, percent: u64) -> u64 {
    u64::try_from(u128::from(limit) * u128::from(percent) / 100).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentage_does_not_overflow() {
        assert_eq!(percentage(1000, TRIM_TO_PERCENT), 750);
        assert_eq!(percentage(u64::MAX, 100), u64::MAX);
    }
}

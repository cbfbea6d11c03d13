//! EVENTS at its bound in bytes: gives up first what every consumer has finished, and says when nothing more can go.
//!
//! The broker would drop the oldest events, whatever they are, so it knows no bound (but with `events_full = "refuse"`). Instead
//! a server looks at it once a second, and at once when a publisher asks for room. Above [`TRIM_ABOVE`] it removes from the
//! front, oldest first, what all durable consumers have finished, Nerve's and others', down to [`TRIM_TO`]. What is left above
//! [`TAKE_IN_BELOW`] is work, and intake stops until some of it is finished. Where an unfinished event at the front keeps
//! what is finished behind it, that goes too ([`within`]).
//!
//! Any number of servers do this side by side: what one has removed the others find removed.

mod within;

pub use within::Returns;

use super::{
    Bus, BusError, EVENTS,
    durables::Durable,
    expiry::Expiry,
    full::{Full, FullReason},
};
use crate::streams::{EventsFull, StreamsConfig};
use async_nats::jetstream::stream::{Info, Stream};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// How often the stream is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The least time between two looks, whoever asks for them.
const MIN_PAUSE: Duration = Duration::from_millis(20);
/// The part of the bound above which something is removed, in percent.
const TRIM_ABOVE: u64 = 90;
/// The part down to which it is.
const TRIM_TO: u64 = 75;
/// The part above which nothing is taken in from outside; the rest is for what functions return.
const TAKE_IN_BELOW: u64 = 95;
/// The least time between two looks behind unfinished events, where the last one found nothing to remove.
const WITHIN_INTERVAL: Duration = Duration::from_secs(10);
/// Removals in one look: each is a guess of how many events make up the bytes.
const MAX_PURGES: usize = 8;

/// Keeps EVENTS within its bound, and counts what its age removes.
pub struct Trimmer {
    bus: Bus,
    /// In bytes; the broker knows none where an older Nerve made the stream.
    bound: Option<u64>,
    when_full: EventsFull,
    returns: Returns,
    /// When a look behind unfinished events found nothing.
    in_vain: Option<Instant>,
    expiry: Expiry,
}

/// What keeps events from being removed.
struct Holder {
    consumer: String,
    unfinished: u64,
    first: u64,
}

impl Trimmer {
    /// `returns` says what functions may return.
    pub fn new(bus: &Bus, config: &StreamsConfig, returns: Returns) -> Self {
        let bound = u64::try_from(config.events_max_bytes).ok();
        let (when_full, expiry) = (config.events_full, Expiry::default());
        Self { bus: bus.clone(), bound, when_full, returns, in_vain: None, expiry }
    }

    /// Looks at the stream until `end`.
    pub async fn run(mut self, end: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
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
            if let Some(Err(error)) = end.run_until_cancelled(self.look()).await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "EVENTS was not looked at; again in a moment"
                );
            }
            end.run_until_cancelled(tokio::time::sleep_until(began + MIN_PAUSE)).await;
        }
    }

    async fn look(&mut self) -> Result<(), BusError> {
        let what = || format!("looking at {EVENTS}");
        if !self.bus.connected() {
            return Ok(());
        }
        let stream = self.bus.stream(EVENTS, what).await?;
        let info = stream.cached_info().clone();
        match self.bound {
            Some(bound) => self.keep_within(&stream, info.clone(), bound).await?,
            None => self.bus.space().report(None, None),
        }
        self.expiry.look(&self.bus, &stream, &info).await
    }

    /// Removes what may go, and reports what room there is.
    async fn keep_within(&mut self, stream: &Stream, info: Info, bound: u64) -> Result<(), BusError> {
        let mut used = info.state.bytes;
        let mut reason = FullReason::Unknown;
        if self.when_full == EventsFull::Refuse {
            reason = FullReason::NeverTrimmed;
        } else if used > part(bound, TRIM_ABOVE) {
            let (left, holder) = self.trim(stream, info, part(bound, TRIM_TO)).await?;
            used = left;
            if let Some(Holder { consumer, unfinished, first }) = holder {
                reason = FullReason::Held { consumer, unfinished, first };
            }
        }
        let room = part(bound, TAKE_IN_BELOW).saturating_sub(used);
        let full = (room == 0).then_some(Full { max_bytes: Some(bound), reason });
        if let Some(full) = &full
            && self.bus.space().full().is_none()
        {
            tracing::warn!("events from outside are answered 503: {full}");
        } else if full.is_none() && self.bus.space().full().is_some() {
            tracing::info!("the stream {EVENTS} has room again");
        }
        self.bus.space().report(Some(room), full);
        Ok(())
    }

    /// Removes down to `target` bytes what all consumers have finished, from the front and then behind what is not; tells how many bytes are left,
    /// and who keeps the rest.
    async fn trim(&mut self, stream: &Stream, mut info: Info, target: u64) -> Result<(u64, Option<Holder>), BusError> {
        let what = || format!("trimming {EVENTS}");
        let mut consumers = self.bus.durables(EVENTS).await?;
        // Those who have something left first: they are the ones to stop it.
        consumers.sort_by_key(|consumer| (consumer.unfinished() == 0, consumer.floor()));
        let mut holder = None;
        for _ in 0..MAX_PURGES {
            let state = &info.state;
            if state.bytes <= target || state.messages == 0 {
                break;
            }
            // As if all events were of one size.
            let surplus = (state.bytes - target).div_ceil((state.bytes / state.messages).max(1));
            let wanted = (state.first_sequence + surplus).min(state.last_sequence + 1);
            let (cut, by) = finished_before(&consumers, stream, wanted, state.first_sequence).await?;
            holder = by;
            if cut <= state.first_sequence {
                break;
            }
            let purged = stream.purge().sequence(cut).await.map_err(|error| BusError::unavailable(what(), error))?;
            metrics::counter!("nerve_events_trimmed_total").increment(purged.purged);
            tracing::debug!(
                events = purged.purged,
                before = cut,
                "events that all consumers have finished are removed"
            );
            info = stream.get_info().await.map_err(|error| BusError::unavailable(what(), error))?;
            if holder.is_some() {
                break;
            }
        }
        let mut left = info.state.bytes;
        let idle = self.in_vain.is_none_or(|last| last.elapsed() >= WITHIN_INTERVAL);
        if holder.is_some() && left > target && idle {
            let before = left;
            left = within::trim_within(&self.bus, stream, (&consumers, &self.returns), target).await?;
            self.in_vain = (left >= before).then(Instant::now);
        }
        Ok((left, holder))
    }
}

/// The sequence before which every consumer has finished all, at most `wanted`; and the consumer that stops it there. It ends
/// at `first`, below which there is nothing.
async fn finished_before(
    consumers: &[Durable],
    stream: &Stream,
    wanted: u64,
    first: u64,
) -> Result<(u64, Option<Holder>), BusError> {
    let (mut cut, mut holder) = (wanted, None);
    for consumer in consumers {
        if consumer.floor() >= cut {
            continue;
        }
        let next = consumer.next_from(stream, consumer.floor()).await?;
        if let Some(next) = next.filter(|next| next.sequence < cut) {
            cut = next.sequence;
            let consumer = (consumer.name().to_owned(), consumer.unfinished());
            holder = Some(Holder { consumer: consumer.0, unfinished: consumer.1, first: next.sequence });
        }
        if cut <= first {
            break;
        }
    }
    Ok((cut, holder))
}

fn part(bound: u64, percent: u64) -> u64 {
    u64::try_from(u128::from(bound) * u128::from(percent) / 100).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_bound_do_not_overflow() {
        assert_eq!(part(1000, TRIM_TO), 750);
        assert_eq!(part(u64::MAX, 100), u64::MAX);
    }
}

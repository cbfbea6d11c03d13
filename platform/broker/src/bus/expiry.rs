//! Counts and logs events that reach `streams.events_max_age` before their function received them.
//!
//! The broker removes them silently, and a consumer's counts only decrease. So while undelivered events of a
//! function are about to expire, their number is recorded; those that are missing at the next
//! check, and were not delivered meanwhile, have expired. Redeliveries count as delivered, and expiry while no server runs
//! is not noticed: the count is a lower bound.

use super::error::ResultExt as _;
use super::{
    Bus, BusError, EVENTS,
    durables::{DurableConsumer, MessagePosition},
    resolve::filters_of,
};
use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, pull},
    stream::{Info, Stream},
};
use std::{collections::HashMap, time::Duration};
use time::OffsetDateTime;
use tokio::time::Instant;

/// Minimum and maximum interval between checks; between these, a tenth of the age.
const CHECK_INTERVALS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Interval between log lines about one function.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Lifetime of a counting consumer that was not deleted.
const COUNTER_LIFETIME: Duration = Duration::from_secs(30);
/// Prefix of the consumers of functions and sinks.
const CONSUMER_PREFIX: &str = "nerve-";

/// The events about to expire at the last check, and the unreported losses.
#[derive(Default)]
pub(super) struct Expiry {
    last: Option<Instant>,
    at_risk: HashMap<String, AtRisk>,
    unreported: HashMap<String, UnreportedLoss>,
}

/// Undelivered events of one function that may expire.
struct AtRisk {
    created: OffsetDateTime,
    /// Deliveries so far, including redeliveries.
    deliveries: u64,
    /// The last sequence of the stream at that time.
    last: u64,
    /// Undelivered events up to that sequence.
    undelivered: u64,
}

/// Expired events since the last log line.
#[derive(Default)]
struct UnreportedLoss {
    events: u64,
    logged: Option<Instant>,
}

impl Expiry {
    /// Counts the events that expired since the last check, and records those that may expire before the next.
    pub(super) async fn check(&mut self, bus: &Bus, stream: &Stream, info: &Info) -> Result<(), BusError> {
        let age = info.config.max_age;
        let interval = (age / 10).clamp(CHECK_INTERVALS.0, CHECK_INTERVALS.1);
        if age.is_zero() || self.last.is_some_and(|last| last.elapsed() < interval) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        // Events that reach that age before the check after next.
        let horizon = OffsetDateTime::now_utc() - age + interval * 2;
        if self.at_risk.is_empty() && (info.state.messages == 0 || info.state.first_timestamp > horizon) {
            return Ok(());
        }
        let consumers = bus.durables(EVENTS).await?;
        let mut before = std::mem::take(&mut self.at_risk);
        for consumer in &consumers {
            let Some(function) = consumer.name().strip_prefix(CONSUMER_PREFIX) else { continue };
            if let Some(before) = before.remove(function) {
                let expired = expired(stream, consumer, &before).await?;
                self.count(function, expired);
            }
            let undelivered = consumer.info.delivered.stream_sequence + 1;
            if consumer.info.num_pending == 0 {
                continue;
            }
            let next = consumer.next_from(stream, undelivered).await?;
            if next.is_some_and(|MessagePosition { stored_at, .. }| stored_at <= horizon) {
                let last = info.state.last_sequence;
                let from = count_from(stream, consumer, undelivered).await?;
                let beyond = count_from(stream, consumer, last + 1).await?;
                let noted = AtRisk {
                    created: consumer.info.created,
                    deliveries: consumer.info.delivered.consumer_sequence,
                    last,
                    undelivered: from.saturating_sub(beyond),
                };
                self.at_risk.insert(function.to_owned(), noted);
            }
        }
        self.log_losses();
        Ok(())
    }

    fn count(&mut self, function: &str, events: u64) {
        if events > 0 {
            metrics::counter!("nerve_events_expired_total", "function" => function.to_owned()).increment(events);
            self.unreported.entry(function.to_owned()).or_default().events += events;
        }
    }

    fn log_losses(&mut self) {
        for (function, unreported) in &mut self.unreported {
            if unreported.events > 0 && unreported.logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL) {
                tracing::warn!(
                    function,
                    "at least {} events were removed before this function received them: they reached `streams.events_max_age`, or \
                     were purged",
                    unreported.events
                );
                *unreported = UnreportedLoss { events: 0, logged: Some(Instant::now()) };
            }
        }
        // Functions without recent losses require no entry.
        self.unreported.retain(|_, unreported| {
            unreported.events > 0 || unreported.logged.is_some_and(|logged| logged.elapsed() < LOG_INTERVAL)
        });
    }
}

/// Events that were undelivered at the last check and are neither stored nor delivered now.
async fn expired(stream: &Stream, consumer: &DurableConsumer, before: &AtRisk) -> Result<u64, BusError> {
    if consumer.info.created != before.created {
        return Ok(0);
    }
    let undelivered = consumer.info.delivered.stream_sequence + 1;
    let delivered = consumer.info.delivered.consumer_sequence.saturating_sub(before.deliveries);
    // In this order, so that concurrent changes make the count smaller.
    let left = match undelivered <= before.last {
        true => {
            let beyond = count_from(stream, consumer, before.last + 1).await?;
            count_from(stream, consumer, undelivered).await?.saturating_sub(beyond)
        }
        false => 0,
    };
    Ok(before.undelivered.saturating_sub(left).saturating_sub(delivered))
}

/// Counts a consumer's messages from a sequence on.
async fn count_from(stream: &Stream, consumer: &DurableConsumer, start_sequence: u64) -> Result<u64, BusError> {
    let what = || format!("counting the events of {}", consumer.name());
    let config = pull::Config {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
        ack_policy: AckPolicy::None,
        filter_subjects: filters_of(&consumer.info.config),
        headers_only: true,
        memory_storage: true,
        num_replicas: 1,
        inactive_threshold: COUNTER_LIFETIME,
        ..<_>::default()
    };
    let made = stream.create_consumer(config).await.unavailable(what)?;
    let count = made.cached_info().num_pending;
    if let Err(error) = stream.delete_consumer(&made.cached_info().name).await {
        tracing::debug!(%error, "cannot delete a counting consumer; it expires");
    }
    Ok(count)
}

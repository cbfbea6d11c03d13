//! Events that reach `streams.events_max_age` before a function had them: counted, and said.
//!
//! The broker removes them by itself, and tells nobody; a consumer's counts only become smaller. So while events that a
//! function has not been given are about to expire, it is noted how many there are; what is missing of these at the next
//! look, and was not delivered meanwhile, has expired. Redeliveries count as delivered, and what expires while no server runs
//! is not seen: the count is a lower bound.

use super::{
    Bus, BusError, EVENTS,
    durables::{Durable, Place},
    resolve::filters_of,
};
use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, pull},
    stream::{Info, Stream},
};
use std::{collections::HashMap, time::Duration};
use time::OffsetDateTime;
use tokio::time::Instant;

/// The most and the least time between two looks; within these, a tenth of the age.
const INTERVALS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The time between two log lines about one function.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// How long the broker keeps the consumer that only counts, if it is not deleted.
const COUNTER_LIFETIME: Duration = Duration::from_secs(30);
/// How the consumers of functions and sinks begin.
const DEPLOYED: &str = "nerve-";

/// What was about to expire at the last look, and what has.
#[derive(Default)]
pub(super) struct Expiry {
    last: Option<Instant>,
    at_risk: HashMap<String, AtRisk>,
    unsaid: HashMap<String, Unsaid>,
}

/// Events of one function that may expire before it has them.
struct AtRisk {
    created: OffsetDateTime,
    /// Deliveries until then, with redeliveries.
    deliveries: u64,
    /// The last event of the stream then.
    last: u64,
    /// Events up to that one which were not delivered.
    undelivered: u64,
}

/// Events that have expired, and when that was last said.
#[derive(Default)]
struct Unsaid {
    events: u64,
    said: Option<Instant>,
}

impl Expiry {
    /// Counts what has expired since the last look, and notes what may before the next.
    pub(super) async fn look(&mut self, bus: &Bus, stream: &Stream, info: &Info) -> Result<(), BusError> {
        let age = info.config.max_age;
        let interval = (age / 10).clamp(INTERVALS.0, INTERVALS.1);
        if age.is_zero() || self.last.is_some_and(|last| last.elapsed() < interval) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        // What comes to that age until the look after the next.
        let horizon = OffsetDateTime::now_utc() - age + interval * 2;
        if self.at_risk.is_empty() && (info.state.messages == 0 || info.state.first_timestamp > horizon) {
            return Ok(());
        }
        let consumers = bus.durables(EVENTS).await?;
        let mut before = std::mem::take(&mut self.at_risk);
        for consumer in &consumers {
            let Some(function) = consumer.name().strip_prefix(DEPLOYED) else { continue };
            if let Some(before) = before.remove(function) {
                let expired = expired(stream, consumer, &before).await?;
                self.count(function, expired);
            }
            let undelivered = consumer.info.delivered.stream_sequence + 1;
            if consumer.info.num_pending == 0 {
                continue;
            }
            let next = consumer.next_from(stream, undelivered).await?;
            if next.is_some_and(|Place { stored_at, .. }| stored_at <= horizon) {
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
        self.say();
        Ok(())
    }

    fn count(&mut self, function: &str, events: u64) {
        if events > 0 {
            metrics::counter!("nerve_events_expired_total", "function" => function.to_owned()).increment(events);
            self.unsaid.entry(function.to_owned()).or_default().events += events;
        }
    }

    fn say(&mut self) {
        for (function, unsaid) in &mut self.unsaid {
            if unsaid.events > 0 && unsaid.said.is_none_or(|said| said.elapsed() >= LOG_INTERVAL) {
                tracing::warn!(
                    function,
                    "at least {} events are gone that this function had not had: they reached `streams.events_max_age`, or \
                     were purged",
                    unsaid.events
                );
                *unsaid = Unsaid { events: 0, said: Some(Instant::now()) };
            }
        }
        // Those that have not expired anything for long need no entry.
        self.unsaid
            .retain(|_, unsaid| unsaid.events > 0 || unsaid.said.is_some_and(|said| said.elapsed() < LOG_INTERVAL));
    }
}

/// Events that were undelivered at the last look and are neither there nor delivered now.
async fn expired(stream: &Stream, consumer: &Durable, before: &AtRisk) -> Result<u64, BusError> {
    if consumer.info.created != before.created {
        return Ok(0);
    }
    let undelivered = consumer.info.delivered.stream_sequence + 1;
    let delivered = consumer.info.delivered.consumer_sequence.saturating_sub(before.deliveries);
    // In this order, so that what comes in between makes the count smaller.
    let left = match undelivered <= before.last {
        true => {
            let beyond = count_from(stream, consumer, before.last + 1).await?;
            count_from(stream, consumer, undelivered).await?.saturating_sub(beyond)
        }
        false => 0,
    };
    Ok(before.undelivered.saturating_sub(left).saturating_sub(delivered))
}

/// How many messages for a consumer there are from a sequence on.
async fn count_from(stream: &Stream, consumer: &Durable, start_sequence: u64) -> Result<u64, BusError> {
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
    let made = stream.create_consumer(config).await.map_err(|error| BusError::unavailable(what(), error))?;
    let count = made.cached_info().num_pending;
    if let Err(error) = stream.delete_consumer(&made.cached_info().name).await {
        tracing::debug!(%error, "a consumer that only counted goes by itself");
    }
    Ok(count)
}

//! Reads a stream in order from any position, across reconnects, each message once.

use super::error::ResultExt as _;
use super::{Bus, BusError, delivery::event_of};
use async_nats::jetstream::{
    self,
    consumer::{Consumer, DeliverPolicy, pull},
};
use futures::StreamExt;
use nerve_core::{Event, Pattern};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::watch;

/// The start position of a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// New messages only.
    New,
    /// The oldest message.
    First,
    /// The message with this sequence.
    Sequence(u64),
    /// The first message since this time.
    Time(OffsetDateTime),
}

impl Start {
    /// The delivery policy for reading the existing messages.
    pub(super) fn policy(self) -> DeliverPolicy {
        match self {
            Self::First | Self::New => DeliverPolicy::All,
            Self::Sequence(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
            Self::Time(start_time) => DeliverPolicy::ByStartTime { start_time },
        }
    }
}

/// An event and its position in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TailedEvent {
    /// Its sequence in EVENTS.
    pub sequence: u64,
    /// The time of storage.
    pub time: OffsetDateTime,
    /// The event; a large body stays a reference (`dataref`).
    pub event: Event,
}

/// A reader of one stream. Slow readers do not affect others: messages wait in the stream.
pub struct Tail {
    bus: Bus,
    stream: String,
    filters: Vec<String>,
    policy: DeliverPolicy,
    last: u64,
    gap: Option<(u64, u64)>,
    messages: Option<pull::Ordered>,
    reconnects: watch::Receiver<u64>,
}

/// Delay before a failed reader is reopened.
const REOPEN_INTERVAL: Duration = Duration::from_millis(250);

impl Bus {
    /// Follows the events that match `pattern`.
    pub async fn tail(&self, pattern: &Pattern, start: Start) -> Result<Tail, BusError> {
        self.tail_stream(super::EVENTS, vec![pattern.to_string()], start).await
    }

    pub(super) async fn tail_stream(&self, stream: &str, filters: Vec<String>, start: Start) -> Result<Tail, BusError> {
        let what = || format!("reading {stream}");
        let handle = self.jetstream.get_stream(stream).await.unavailable(what)?;
        let state = &handle.cached_info().state;
        let (first, end) = (state.first_sequence.max(1), state.last_sequence + 1);
        let mut gap = None;
        let policy = match start {
            Start::First => DeliverPolicy::ByStartSequence { start_sequence: first },
            // Positioned by sequence, so that a reconnect before the first message skips nothing.
            Start::New => DeliverPolicy::ByStartSequence { start_sequence: end },
            Start::Time(moment) => DeliverPolicy::ByStartTime { start_time: moment },
            Start::Sequence(wanted) if wanted < first => {
                gap = Some((wanted, first - 1));
                DeliverPolicy::ByStartSequence { start_sequence: first }
            }
            // The log is newer than the reader: its sequences restarted.
            Start::Sequence(wanted) if wanted > end => {
                gap = Some((wanted, wanted));
                DeliverPolicy::ByStartSequence { start_sequence: first }
            }
            Start::Sequence(wanted) => DeliverPolicy::ByStartSequence { start_sequence: wanted },
        };
        let mut tail = Tail {
            bus: self.clone(),
            stream: stream.to_owned(),
            filters,
            policy,
            last: 0,
            gap,
            messages: None,
            reconnects: self.reconnects(),
        };
        tail.open().await?;
        Ok(tail)
    }
}

impl Tail {
    /// The first and last requested sequence that are no longer stored, if any; reported once.
    pub fn take_gap(&mut self) -> Option<(u64, u64)> {
        self.gap.take()
    }

    pub(super) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Waits for the next event. Cancel-safe.
    pub async fn next(&mut self) -> TailedEvent {
        let (message, sequence, time) = self.next_message().await;
        TailedEvent { sequence, time, event: event_of(&message, &self.stream, sequence) }
    }

    pub(super) async fn next_message(&mut self) -> (async_nats::Message, u64, OffsetDateTime) {
        loop {
            let Some(messages) = &mut self.messages else {
                tokio::time::sleep(REOPEN_INTERVAL).await;
                if let Err(error) = self.open().await {
                    tracing::debug!(%error, "the broker is unavailable; the reader will retry");
                }
                continue;
            };
            let next = tokio::select! {
                biased;
                next = messages.next() => next,
                // The reader's consumer was in the old server's memory; detecting that by heartbeats takes 15 s.
                Ok(()) = self.reconnects.changed() => None,
            };
            match next {
                Some(Ok(message)) => {
                    if let Some(taken) = self.take(message) {
                        return taken;
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, stream = self.stream, "reopening a reader");
                    self.messages = None;
                }
                None => self.messages = None,
            }
        }
    }

    fn take(&mut self, message: jetstream::Message) -> Option<(async_nats::Message, u64, OffsetDateTime)> {
        let (sequence, time) = message.info().map(|info| (info.stream_sequence, info.published)).ok()?;
        if sequence <= self.last {
            return None;
        }
        self.last = sequence;
        Some((message.message, sequence, time))
    }

    async fn open(&mut self) -> Result<(), BusError> {
        self.reconnects.mark_unchanged();
        let what = || format!("reading {}", self.stream);
        let deliver_policy = match self.last {
            0 => self.policy,
            last => DeliverPolicy::ByStartSequence { start_sequence: last + 1 },
        };
        let config = pull::OrderedConfig { deliver_policy, filter_subjects: self.filters.clone(), ..<_>::default() };
        let consumer: jetstream::consumer::Consumer<pull::OrderedConfig> =
            self.bus.jetstream.create_consumer_on_stream(config, self.stream.as_str()).await.unavailable(what)?;
        let messages = consumer.messages().await.unavailable(what)?;
        self.messages = Some(messages);
        Ok(())
    }
}

impl Bus {
    /// Reads the existing messages of a stream, oldest first, at most `limit`.
    pub(super) async fn read(
        &self,
        stream: &str,
        filters: Vec<String>,
        start: Start,
        limit: usize,
    ) -> Result<Vec<(async_nats::Message, u64, OffsetDateTime)>, BusError> {
        let mut found = Vec::new();
        if limit > 0 {
            let keep = |message, sequence, time| {
                found.push((message, sequence, time));
                found.len() < limit
            };
            self.for_each(stream, filters, start, keep).await?;
        }
        Ok(found)
    }

    /// Calls `show` for each existing message of a stream, oldest first, until it returns `false`.
    pub(super) async fn for_each(
        &self,
        stream: &str,
        filters: Vec<String>,
        start: Start,
        show: impl FnMut(async_nats::Message, u64, OffsetDateTime) -> bool,
    ) -> Result<(), BusError> {
        let config = pull::OrderedConfig { deliver_policy: start.policy(), filter_subjects: filters, ..<_>::default() };
        self.each_of(stream, config, show).await
    }

    /// The same, with the headers of each message only.
    pub(super) async fn for_each_header(
        &self,
        stream: &str,
        filter_subjects: Vec<String>,
        start: Start,
        show: impl FnMut(async_nats::Message, u64, OffsetDateTime) -> bool,
    ) -> Result<(), BusError> {
        let deliver_policy = start.policy();
        let config = pull::OrderedConfig { deliver_policy, filter_subjects, headers_only: true, ..<_>::default() };
        self.each_of(stream, config, show).await
    }

    async fn each_of(
        &self,
        stream: &str,
        config: pull::OrderedConfig,
        show: impl FnMut(async_nats::Message, u64, OffsetDateTime) -> bool,
    ) -> Result<(), BusError> {
        let what = || format!("reading {stream}");
        let handle = self.jetstream.get_stream(stream).await.unavailable(what)?;
        let consumer = handle.create_consumer(config).await.unavailable(what)?;
        let name = consumer.cached_info().name.clone();
        let read = self.each_message(stream, consumer, show).await;
        // The broker would keep it for a while, and a stream allows a thousand.
        if let Err(error) = handle.delete_consumer(&name).await {
            tracing::debug!(%error, stream, "cannot delete the consumer of a reader; it expires");
        }
        read
    }

    async fn each_message(
        &self,
        stream: &str,
        consumer: Consumer<pull::OrderedConfig>,
        mut show: impl FnMut(async_nats::Message, u64, OffsetDateTime) -> bool,
    ) -> Result<(), BusError> {
        let what = || format!("reading {stream}");
        let reconnects = self.reconnects();
        let mut left = consumer.cached_info().num_pending;
        let mut messages = consumer.messages().await.unavailable(what)?;
        while left > 0 {
            let next = tokio::time::timeout(super::REQUEST_TIMEOUT, messages.next()).await;
            let message = match next {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return Err(BusError::unavailable(what(), error)),
                Ok(None) => break,
                Err(_) if !self.connected() || reconnects.has_changed().unwrap_or(true) => {
                    return Err(BusError::unavailable(what(), "the connection was lost meanwhile"));
                }
                // A responsive broker that sends no more has deleted some of the counted messages.
                Err(_) => {
                    let answer = self.jetstream.get_stream(stream).await;
                    return answer.map(drop).unavailable(what);
                }
            };
            let place = message.info().map(|info| (info.stream_sequence, info.published, info.pending));
            let (sequence, time, pending) = place.unavailable(what)?;
            if !show(message.message, sequence, time) {
                break;
            }
            left = (left - 1).min(pending);
        }
        Ok(())
    }
}

//! A stream read in order from anywhere, over reconnects, each message once.

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

/// Where a reader starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With what comes from now on.
    New,
    /// With the oldest that there is.
    First,
    /// With this sequence.
    Sequence(u64),
    /// With the first since this moment.
    Time(OffsetDateTime),
}

impl Start {
    /// For a reader of what is there now.
    pub(super) fn policy(self) -> DeliverPolicy {
        match self {
            Self::First | Self::New => DeliverPolicy::All,
            Self::Sequence(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
            Self::Time(start_time) => DeliverPolicy::ByStartTime { start_time },
        }
    }
}

/// An event and its place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tailed {
    /// Its sequence in EVENTS.
    pub sequence: u64,
    /// When it was stored.
    pub time: OffsetDateTime,
    /// The event; a body too large for a message stays a reference (`dataref`).
    pub event: Event,
}

/// A reader of one stream. Slow readers slow nobody else: messages wait in the stream.
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

/// The wait before a broken reader is opened again.
const REOPEN: Duration = Duration::from_millis(250);

impl Bus {
    /// Reads the events on `pattern`.
    pub async fn tail(&self, pattern: &Pattern, start: Start) -> Result<Tail, BusError> {
        self.tail_stream(super::EVENTS, vec![pattern.to_string()], start).await
    }

    pub(super) async fn tail_stream(&self, stream: &str, filters: Vec<String>, start: Start) -> Result<Tail, BusError> {
        let what = || format!("reading {stream}");
        let handle = self.jetstream.get_stream(stream).await.map_err(|error| BusError::unavailable(what(), error))?;
        let state = &handle.cached_info().state;
        let (first, end) = (state.first_sequence.max(1), state.last_sequence + 1);
        let mut gap = None;
        let policy = match start {
            Start::First => DeliverPolicy::ByStartSequence { start_sequence: first },
            // Named by its sequence, so that a reconnect before the first message skips nothing.
            Start::New => DeliverPolicy::ByStartSequence { start_sequence: end },
            Start::Time(moment) => DeliverPolicy::ByStartTime { start_time: moment },
            Start::Sequence(wanted) if wanted < first => {
                gap = Some((wanted, first - 1));
                DeliverPolicy::ByStartSequence { start_sequence: first }
            }
            // The log is younger than the reader: its sequences began anew.
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
    /// The first and last sequence that were asked for and are gone, if any; told once.
    pub fn take_gap(&mut self) -> Option<(u64, u64)> {
        self.gap.take()
    }

    pub(super) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The next event; waits for it for ever. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Tailed {
        let (message, sequence, time) = self.next_message().await;
        Tailed { sequence, time, event: event_of(&message, &self.stream, sequence) }
    }

    pub(super) async fn next_message(&mut self) -> (async_nats::Message, u64, OffsetDateTime) {
        loop {
            let Some(messages) = &mut self.messages else {
                tokio::time::sleep(REOPEN).await;
                if let Err(error) = self.open().await {
                    tracing::debug!(%error, "a reader waits for the broker");
                }
                continue;
            };
            let next = tokio::select! {
                biased;
                next = messages.next() => next,
                // The reader's consumer lived in the old server's memory; left alone, its heartbeats take 15 s to miss.
                Ok(()) = self.reconnects.changed() => None,
            };
            match next {
                Some(Ok(message)) => {
                    if let Some(taken) = self.take(message) {
                        return taken;
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, stream = self.stream, "a reader is opened again");
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
        let consumer: jetstream::consumer::Consumer<pull::OrderedConfig> = self
            .bus
            .jetstream
            .create_consumer_on_stream(config, self.stream.as_str())
            .await
            .map_err(|error| BusError::unavailable(what(), error))?;
        let messages = consumer.messages().await.map_err(|error| BusError::unavailable(what(), error))?;
        self.messages = Some(messages);
        Ok(())
    }
}

impl Bus {
    /// The messages of a stream that are there now, oldest first, `limit` at most.
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
            self.each(stream, filters, start, keep).await?;
        }
        Ok(found)
    }

    /// Shows each message of a stream that is there now, oldest first, for as long as `show` says to go on.
    pub(super) async fn each(
        &self,
        stream: &str,
        filters: Vec<String>,
        start: Start,
        show: impl FnMut(async_nats::Message, u64, OffsetDateTime) -> bool,
    ) -> Result<(), BusError> {
        let config = pull::OrderedConfig { deliver_policy: start.policy(), filter_subjects: filters, ..<_>::default() };
        self.each_of(stream, config, show).await
    }

    /// The same, but of each message only what is in its headers.
    pub(super) async fn each_head(
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
        let handle = self.jetstream.get_stream(stream).await.map_err(|error| BusError::unavailable(what(), error))?;
        let consumer = handle.create_consumer(config).await.map_err(|error| BusError::unavailable(what(), error))?;
        let name = consumer.cached_info().name.clone();
        let read = self.each_message(stream, consumer, show).await;
        // The broker would keep it for a while, and a stream has a thousand at most.
        if let Err(error) = handle.delete_consumer(&name).await {
            tracing::debug!(%error, stream, "the consumer of a reader is left to the broker");
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
        let mut messages = consumer.messages().await.map_err(|error| BusError::unavailable(what(), error))?;
        while left > 0 {
            let next = tokio::time::timeout(super::REQUEST_TIMEOUT, messages.next()).await;
            let message = match next {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return Err(BusError::unavailable(what(), error)),
                Ok(None) => break,
                Err(_) if !self.connected() || reconnects.has_changed().unwrap_or(true) => {
                    return Err(BusError::unavailable(what(), "the connection was lost on the way"));
                }
                // A broker that answers and sends no more has deleted since what was counted.
                Err(_) => {
                    let answer = self.jetstream.get_stream(stream).await;
                    return answer.map(drop).map_err(|error| BusError::unavailable(what(), error));
                }
            };
            let place = message.info().map(|info| (info.stream_sequence, info.published, info.pending));
            let (sequence, time, pending) = place.map_err(|error| BusError::unavailable(what(), error))?;
            if !show(message.message, sequence, time) {
                break;
            }
            left = (left - 1).min(pending);
        }
        Ok(())
    }
}

//! Duplicates that were dropped, counted by where and why.
//!
//! Each drop is counted in this process's metrics (`nerve_duplicates_total`) and, in a moment, in the stream DROPS: one subject
//! per counter, to which JetStream adds (ADR-49), so that any number of processes write the same counters and the command line
//! reads them.
//!
//! A count is a lower bound. What a process counted within [`WRITE_INTERVAL`] before it is killed is not in DROPS, and JetStream
//! does not say how many messages of a batch it dropped.

use super::{Bus, BusError, PublishError, Published, streams::lacks_storage};
use crate::streams::StreamsConfig;
use async_nats::{
    HeaderMap, header,
    jetstream::{
        self,
        stream::{DirectGetErrorKind, DiscardPolicy, StorageType},
    },
};
use bytes::Bytes;
use futures::TryStreamExt;
use nerve_core::{Event, Origin};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

/// Stream: the counters.
pub(super) const DROPS: &str = "DROPS";
const PREFIX: &str = "drops.";
/// What JetStream is to add.
const INCREMENT: &str = "Nats-Incr";
/// How long counts are gathered before they are written.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// The wait before a failed write is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// How long a process that stops waits for its last counts to be written.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Counters that wait to be written at most; what is counted beyond that is in the metrics only.
const MAX_WAITING_COUNTERS: usize = 4096;
/// Counters in DROPS at most; those that were added to least recently are deleted first.
const MAX_COUNTERS: i64 = 1 << 16;
/// Bytes that they may take.
const DROPS_BYTES: i64 = 16 << 20;
/// What stands in a subject's token as it is.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// What dropped a duplicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropScope {
    /// A webhook source.
    Source,
    /// A function.
    Function,
    /// The API, for a caller.
    Caller,
}

impl DropScope {
    fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Function => "function",
            Self::Caller => "caller",
        }
    }
}

/// Why something was dropped as a duplicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropReason {
    /// Its id was accepted before; where ids are reused, with the same body.
    Id,
    /// It has no id, and the same bytes were accepted before.
    Body,
    /// The same signed bytes were accepted before, under another id.
    Signed,
    /// JetStream had its message id within the dedupe window.
    Window,
    /// The results of an earlier attempt at the same event stand.
    Result,
    /// The same request was done before under its `Idempotency-Key`.
    Key,
}

impl DropReason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Body => "body",
            Self::Signed => "signed",
            Self::Window => "window",
            Self::Result => "result",
            Self::Key => "key",
        }
    }
}

/// What was dropped, by reason.
pub type DropCounts = BTreeMap<String, u64>;

/// The counters of a process; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Drops {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    unwritten: Mutex<Unwritten>,
    counted: Notify,
}

#[derive(Debug, Default)]
struct Unwritten {
    counts: BTreeMap<Counter, u64>,
    /// What is being written; written again under the same message id until it is acknowledged.
    writing: Option<Increment>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Counter {
    scope: DropScope,
    name: String,
    reason: DropReason,
}

impl fmt::Display for Counter {
    /// The counter's subject.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}.{}.{}", self.scope.as_str(), token(&self.name), self.reason.as_str())
    }
}

#[derive(Debug, Clone)]
struct Increment {
    counter: Counter,
    number: u64,
    message_id: String,
}

/// The body that JetStream gives a counter's message.
#[derive(Deserialize)]
struct Total {
    val: String,
}

fn token(name: &str) -> String {
    utf8_percent_encode(name, ENCODED).to_string()
}

/// The name and the reason in a counter's subject.
fn parts_of(subject: &str) -> Option<(String, &str)> {
    let mut tokens = subject.strip_prefix(PREFIX)?.split('.').skip(1);
    let (name, reason) = (tokens.next()?, tokens.next()?);
    Some((percent_decode_str(name).decode_utf8_lossy().into_owned(), reason))
}

impl Drops {
    /// Counts what was dropped as duplicates by a source, a function or for a caller.
    pub fn count(&self, scope: DropScope, name: &str, reason: DropReason, number: usize) {
        let number = u64::try_from(number).unwrap_or(u64::MAX);
        if number == 0 {
            return;
        }
        let labels = [(scope.as_str(), name.to_owned()), ("reason", reason.as_str().to_owned())];
        metrics::counter!("nerve_duplicates_total", &labels).increment(number);
        let mut unwritten = self.unwritten();
        let counter = Counter { scope, name: name.to_owned(), reason };
        if unwritten.counts.len() < MAX_WAITING_COUNTERS || unwritten.counts.contains_key(&counter) {
            *unwritten.counts.entry(counter).or_default() += number;
        }
        drop(unwritten);
        self.shared.counted.notify_one();
    }

    fn unwritten(&self) -> MutexGuard<'_, Unwritten> {
        // A panic elsewhere leaves no count half added.
        self.shared.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be written next.
    fn next(&self) -> Option<Increment> {
        let mut unwritten = self.unwritten();
        if unwritten.writing.is_none() {
            let (counter, number) = unwritten.counts.pop_first()?;
            unwritten.writing = Some(Increment { counter, number, message_id: Uuid::now_v7().to_string() });
        }
        unwritten.writing.clone()
    }

    async fn write_until(self, bus: Bus, end: CancellationToken) {
        let writing = async {
            loop {
                self.shared.counted.notified().await;
                tokio::time::sleep(WRITE_INTERVAL).await;
                while let Err(error) = self.write(&bus).await {
                    tracing::debug!(%error, "counts of dropped duplicates wait for the broker");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
        };
        end.run_until_cancelled(writing).await;
        if !matches!(tokio::time::timeout(LAST_WRITE_TIMEOUT, self.write(&bus)).await, Ok(Ok(()))) {
            tracing::warn!("the last counts of dropped duplicates were not written: those in DROPS are too low");
        }
    }

    async fn write(&self, bus: &Bus) -> Result<(), BusError> {
        while let Some(increment) = self.next() {
            increment.publish(bus).await?;
            self.unwritten().writing = None;
        }
        Ok(())
    }
}

impl Increment {
    async fn publish(self, bus: &Bus) -> Result<(), BusError> {
        let unavailable = |error: async_nats::Error| BusError::unavailable("counting dropped duplicates", error);
        if !bus.connected() {
            return Err(unavailable("there is no connection".into()));
        }
        let mut headers = HeaderMap::new();
        headers.insert(INCREMENT, format!("+{}", self.number));
        headers.insert(header::NATS_MESSAGE_ID, self.message_id);
        let sent = bus.jetstream().publish_with_headers(self.counter.to_string(), headers, Bytes::new());
        let sent = sent.await.map_err(|error| unavailable(error.into()))?;
        sent.await.map_err(|error| unavailable(error.into()))?;
        Ok(())
    }
}

impl Bus {
    /// The counters of this process.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    /// Publishes an event of the command line; one that is dropped as a duplicate is counted.
    ///
    /// # Errors
    /// [`PublishError::Unavailable`] where it is not known whether it is stored: publish it again.
    pub async fn publish_of_cli(&self, event: &Event) -> Result<Published, PublishError> {
        let published = self.publish(event, Origin::cli().identify(event)).await?;
        if published.duplicate {
            self.drops.count(DropScope::Caller, "cli", DropReason::Window, 1);
            if let Err(error) = self.drops.write(self).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "a dropped duplicate is not counted");
            }
        }
        Ok(published)
    }

    /// Writes the counters of this process, until `end`.
    pub fn write_drops(&self, end: CancellationToken, tasks: &TaskTracker) {
        tasks.spawn(self.drops.clone().write_until(self.clone(), end));
    }

    /// Makes the stream of the counters; one that is there keeps what it has counted.
    pub(super) async fn ensure_drops(&self, config: &StreamsConfig) -> Result<(), BusError> {
        match self.set_drops(config, DROPS_BYTES).await {
            // The broker has not so many bytes to set aside; the number of counters bounds it, too.
            Err(error) if lacks_storage(&error) => self.set_drops(config, -1).await,
            set => set,
        }
    }

    async fn set_drops(&self, config: &StreamsConfig, max_bytes: i64) -> Result<(), BusError> {
        let what = || format!("making the stream {DROPS}");
        let wanted = jetstream::stream::Config {
            name: DROPS.to_owned(),
            subjects: vec![format!("{PREFIX}>")],
            max_messages: MAX_COUNTERS,
            max_bytes,
            max_messages_per_subject: 1,
            num_replicas: config.replicas,
            duplicate_window: config.dedupe_window,
            allow_direct: true,
            allow_message_counter: true,
            storage: StorageType::File,
            discard: DiscardPolicy::Old,
            ..<_>::default()
        };
        match self.jetstream.get_stream(DROPS).await {
            Ok(existing) => {
                let current = existing.cached_info().config.clone();
                let jetstream::stream::Config { num_replicas, duplicate_window, .. } = wanted;
                let migrated =
                    jetstream::stream::Config { num_replicas, duplicate_window, max_bytes, ..current.clone() };
                if migrated == current {
                    return Ok(());
                }
                let updated = self.jetstream.update_stream(migrated).await;
                updated.map(drop).map_err(|error| BusError::of_jetstream(what(), error))
            }
            Err(_) => {
                let made = self.jetstream.get_or_create_stream(wanted).await;
                made.map(drop).map_err(|error| BusError::of_jetstream(what(), error))
            }
        }
    }

    /// What was dropped as duplicates in all, by source, function or caller, and by reason. These are lower bounds.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub async fn dropped(&self, scope: DropScope) -> Result<BTreeMap<String, DropCounts>, BusError> {
        self.counters(format!("{PREFIX}{}.>", scope.as_str())).await
    }

    /// The same of one source, function or caller.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub async fn dropped_by(&self, scope: DropScope, name: &str) -> Result<DropCounts, BusError> {
        let counters = self.counters(format!("{PREFIX}{}.{}.*", scope.as_str(), token(name))).await?;
        Ok(counters.into_values().next().unwrap_or_default())
    }

    async fn counters(&self, filter: String) -> Result<BTreeMap<String, DropCounts>, BusError> {
        let what = "reading what was dropped as duplicates";
        let mut found: BTreeMap<String, DropCounts> = BTreeMap::new();
        let stream = match self.stream(DROPS, || what.to_owned()).await {
            Ok(stream) => stream,
            // No server that counts has run here.
            Err(BusError::NotFound(_)) => return Ok(found),
            Err(error) => return Err(error),
        };
        let subjects = stream.info_with_subjects(filter).await.map_err(|error| BusError::unavailable(what, error))?;
        let subjects: Vec<(String, usize)> =
            subjects.try_collect().await.map_err(|error| BusError::unavailable(what, error))?;
        for (subject, _) in subjects {
            let Some((name, reason)) = parts_of(&subject) else { continue };
            let message = match stream.direct_get_last_for_subject(subject.as_str()).await {
                Ok(message) => message,
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => continue,
                Err(error) => return Err(BusError::unavailable(what, error)),
            };
            let total: Option<Total> = serde_json::from_slice(&message.payload).ok();
            let total = total.and_then(|total| total.val.parse().ok()).unwrap_or_default();
            found.entry(name).or_default().insert(reason.to_owned(), total);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests;

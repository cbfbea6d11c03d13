//! Counts dropped duplicates by owner and reason.
//!
//! Each dropped duplicate is counted in this process's metrics (`nerve_duplicates_total`) and shortly afterwards in the stream DROPS:
//! one subject per counter, which JetStream increments (ADR-49), so that all processes share the counters and the command line
//! reads them.
//!
//! A count is a lower bound. A killed process loses what it counted within the last [`WRITE_INTERVAL`], and JetStream
//! does not report how many messages of a batch it dropped.

use super::error::ResultExt as _;
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
use parking_lot::{Mutex, MutexGuard};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

/// Stream: the counters.
pub(super) const DROPS: &str = "DROPS";
const PREFIX: &str = "drops.";
/// The header with JetStream's counter increment.
const INCREMENT: &str = "Nats-Incr";
/// Time for which counts are aggregated before they are written.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between attempts of a failed write.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Timeout of the last write at shutdown.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum counters that wait to be written; further drops are counted in the metrics only.
const MAX_WAITING_COUNTERS: usize = 4096;
/// Maximum counters in DROPS; the least recently incremented are deleted first.
const MAX_COUNTERS: i64 = 1 << 16;
/// Maximum size of DROPS.
const DROPS_BYTES: i64 = 16 << 20;
/// Characters that are not encoded in a subject token.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// The kind of owner of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DuplicateScope {
    /// A webhook source.
    Source,
    /// A function.
    Function,
    /// A caller of the API.
    Caller,
}

impl DuplicateScope {
    fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Function => "function",
            Self::Caller => "caller",
        }
    }
}

/// The reason why a duplicate was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DuplicateReason {
    /// Its id was accepted before; for reused ids also with the same body.
    Id,
    /// It has no id, and the same body was accepted before.
    Body,
    /// The same signed bytes were accepted before, under another id.
    Signed,
    /// JetStream knew its message id (dedupe window).
    Window,
    /// An earlier attempt at the same event has committed its results.
    Result,
    /// A request with the same `Idempotency-Key` was completed before.
    Key,
}

impl DuplicateReason {
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

/// Dropped duplicates by reason.
pub type DuplicateCounts = BTreeMap<String, u64>;

/// The duplicate counters of this process; clones share them.
#[derive(Debug, Clone, Default)]
pub struct DuplicateCounters {
    shared: Arc<SharedCounters>,
}

#[derive(Debug, Default)]
struct SharedCounters {
    unwritten: Mutex<PendingCounts>,
    counted: Notify,
}

#[derive(Debug, Default)]
struct PendingCounts {
    counts: BTreeMap<Counter, u64>,
    /// The increment in flight; resent under the same message id until it is acknowledged.
    writing: Option<Increment>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Counter {
    scope: DuplicateScope,
    name: String,
    reason: DuplicateReason,
}

impl fmt::Display for Counter {
    /// The counter's subject.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}.{}.{}", self.scope.as_str(), token(&self.name), self.reason.as_str())
    }
}

/// One counter increment.
#[derive(Debug, Clone)]
struct Increment {
    counter: Counter,
    number: u64,
    message_id: String,
}

/// The body of a counter message, written by JetStream.
#[derive(Deserialize)]
struct Total {
    val: String,
}

fn token(name: &str) -> String {
    utf8_percent_encode(name, ENCODED).to_string()
}

/// Parses name and reason from a counter's subject.
fn parts_of(subject: &str) -> Option<(String, &str)> {
    let mut tokens = subject.strip_prefix(PREFIX)?.split('.').skip(1);
    let (name, reason) = (tokens.next()?, tokens.next()?);
    Some((percent_decode_str(name).decode_utf8_lossy().into_owned(), reason))
}

impl DuplicateCounters {
    /// Counts duplicates dropped by a source, by a function or for a caller.
    pub fn count(&self, scope: DuplicateScope, name: &str, reason: DuplicateReason, number: usize) {
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

    fn unwritten(&self) -> MutexGuard<'_, PendingCounts> {
        // A panic elsewhere leaves every count complete.
        self.shared.unwritten.lock()
    }

    /// The next increment to write.
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
                    tracing::debug!(%error, "cannot write duplicate counts; retrying");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
        };
        end.run_until_cancelled(writing).await;
        if !matches!(tokio::time::timeout(LAST_WRITE_TIMEOUT, self.write(&bus)).await, Ok(Ok(()))) {
            tracing::warn!("the last duplicate counts were not written; DROPS is too low");
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
            return Err(unavailable("not connected to NATS".into()));
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
    /// The duplicate counters of this process.
    pub fn drops(&self) -> &DuplicateCounters {
        &self.drops
    }

    /// Publishes an event of the command line, and counts it if it is a duplicate.
    ///
    /// # Errors
    /// [`PublishError::Unavailable`] if it is unknown whether the event is stored: publish it again.
    pub async fn publish_from_cli(&self, event: &Event) -> Result<Published, PublishError> {
        let published = self.publish(event, Origin::cli().identify(event)).await?;
        if published.duplicate {
            self.drops.count(DuplicateScope::Caller, "cli", DuplicateReason::Window, 1);
            if let Err(error) = self.drops.write(self).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot count a dropped duplicate");
            }
        }
        Ok(published)
    }

    /// Writes the counters of this process until `end`.
    pub fn write_drops(&self, end: CancellationToken, tasks: &TaskTracker) {
        tasks.spawn(self.drops.clone().write_until(self.clone(), end));
    }

    /// Creates the stream of the counters; an existing one keeps its counts.
    pub(super) async fn ensure_drops(&self, config: &StreamsConfig) -> Result<(), BusError> {
        match self.set_drops(config, DROPS_BYTES).await {
            // The broker cannot reserve as many bytes; the number of counters is a limit, too.
            Err(error) if lacks_storage(&error) => self.set_drops(config, -1).await,
            set => set,
        }
    }

    async fn set_drops(&self, config: &StreamsConfig, max_bytes: i64) -> Result<(), BusError> {
        let what = || format!("creating the stream {DROPS}");
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

    /// All dropped duplicates by owner and reason. These are lower bounds.
    ///
    /// # Errors
    /// If the broker cannot be reached.
    pub async fn dropped(&self, scope: DuplicateScope) -> Result<BTreeMap<String, DuplicateCounts>, BusError> {
        self.counters(format!("{PREFIX}{}.>", scope.as_str())).await
    }

    /// The dropped duplicates of one owner.
    ///
    /// # Errors
    /// If the broker cannot be reached.
    pub async fn dropped_by(&self, scope: DuplicateScope, name: &str) -> Result<DuplicateCounts, BusError> {
        let counters = self.counters(format!("{PREFIX}{}.{}.*", scope.as_str(), token(name))).await?;
        Ok(counters.into_values().next().unwrap_or_default())
    }

    async fn counters(&self, filter: String) -> Result<BTreeMap<String, DuplicateCounts>, BusError> {
        let what = "reading duplicate counts";
        let mut found: BTreeMap<String, DuplicateCounts> = BTreeMap::new();
        let stream = match self.stream(DROPS, || what.to_owned()).await {
            Ok(stream) => stream,
            // No server has counted yet.
            Err(BusError::NotFound(_)) => return Ok(found),
            Err(error) => return Err(error),
        };
        let subjects = stream.info_with_subjects(filter).await.unavailable(what)?;
        let subjects: Vec<(String, usize)> = subjects.try_collect().await.unavailable(what)?;
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

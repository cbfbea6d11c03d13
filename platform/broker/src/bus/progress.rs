//! The progress of each durable consumer, stored beyond the consumer's lifetime.
//!
//! Progress is a document in the KV bucket `places`: the sequence up to which one incarnation of a stream is finished, and the
//! generations that events run in. Workers store it every [`REFRESH_INTERVAL`] while they process events.
//! A deleted consumer is recreated at its progress; a recreated stream is recognized by its creation
//! time, and read from its beginning.

use super::error::ResultExt as _;
use super::{Bus, BusError, buckets::Bucket, streams::PLACES};
use crate::streams::StreamsConfig;
use async_nats::jetstream::{
    consumer::Info,
    kv::{self, CreateErrorKind, UpdateErrorKind},
};
use nerve_core::Generation;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use time::OffsetDateTime;
use tokio::time::MissedTickBehavior;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

/// Interval at which a worker stores progress. After the deletion of a consumer, as much may run again.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);
/// The key of the time of the upgrade from an earlier version of Nerve, in seconds since 1970.
pub(super) const UPDATED_KEY: &str = "updated";
/// Maximum generations of replays; the oldest ones are merged into the next.
const MAX_GENERATIONS: usize = 64;
/// Attempts to write progress that other processes write concurrently.
const MAX_TRIES: usize = 5;

/// The progress of a function's, sink's or task's consumers on one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConsumerProgress {
    /// The creation time of the stream.
    #[serde(with = "time::serde::rfc3339")]
    pub(super) stream_created: OffsetDateTime,
    /// The sequence up to which every event is finished.
    pub(super) done: u64,
    /// The suffix of the consumer's name. Each replay and each restoration creates a consumer of its own, so that a delivery's
    /// consumer determines its generation.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) consumer: String,
    /// The generations of events: each applies from its sequence on, in ascending order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) generations: Vec<(u64, Generation)>,
    /// The sequence up to which a deleted consumer may have delivered events.
    #[serde(default)]
    pub(super) delivered_before: u64,
    /// The sequence up to which an earlier version of Nerve may have delivered events, and stored results under its own ids.
    #[serde(default)]
    pub(super) delivered_by_older: u64,
    /// The last restoration of the consumer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<RestoredConsumer>,
}

/// The restoration of a deleted consumer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredConsumer {
    /// The time of the restoration.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// The sequence at which it continues.
    pub from: u64,
    /// The reason.
    pub reason: String,
}

impl ConsumerProgress {
    /// Progress with everything before `next` finished.
    pub(super) fn before(next: u64, stream_created: OffsetDateTime) -> Self {
        Self {
            stream_created,
            done: next.saturating_sub(1),
            consumer: String::new(),
            generations: Vec::new(),
            delivered_before: 0,
            delivered_by_older: 0,
            restored: None,
        }
    }

    /// Continues at `from` with a recreated consumer. It has a new name, because nats-server may still be deleting the
    /// files of the old one, and would delete those of a new consumer of the same name.
    pub(super) fn restored(self, from: u64, last: u64, reason: &str) -> Self {
        let restored = RestoredConsumer { time: OffsetDateTime::now_utc(), from, reason: reason.to_owned() };
        let consumer = Uuid::now_v7().simple().to_string();
        Self { done: from.saturating_sub(1), delivered_before: last, consumer, restored: Some(restored), ..self }
    }

    /// Moves back to `from`, with a consumer of its own; events from `asked` on run in `generation`.
    pub(super) fn replayed(
        self,
        (from, asked): (u64, u64),
        last: u64,
        consumer: String,
        generation: Generation,
    ) -> Self {
        let mut generations = self.generations;
        generations.retain(|(start, _)| *start < asked);
        generations.push((asked, generation));
        let excess = generations.len().saturating_sub(MAX_GENERATIONS);
        generations.drain(..excess);
        Self { done: from.saturating_sub(1), consumer, generations, delivered_before: last, ..self }
    }

    /// The generation of the event at `sequence`.
    fn generation(&self, sequence: u64) -> Generation {
        let newest = self.generations.iter().rev().find(|(start, _)| *start <= sequence);
        newest.map(|(_, generation)| generation.clone()).unwrap_or_default()
    }
}

/// A consumer to pull from, and the generations of its deliveries.
#[derive(Debug, Clone)]
pub struct BoundConsumer {
    pub(super) stream: Arc<str>,
    /// The consumer's name without its suffix.
    pub(super) base: String,
    /// Its creation time, in nanoseconds since 1970.
    pub(super) created: i64,
    progress: ConsumerProgress,
}

impl BoundConsumer {
    pub(super) fn new(stream: &str, base: &str, progress: ConsumerProgress, created: OffsetDateTime) -> Self {
        let created = i64::try_from(created.unix_timestamp_nanos()).unwrap_or_default();
        Self { stream: stream.into(), base: base.to_owned(), created, progress }
    }

    /// The consumer's name.
    pub(super) fn consumer(&self) -> String {
        name_of(&self.base, &self.progress.consumer)
    }

    /// The generation of the event at `sequence`.
    pub(super) fn generation(&self, sequence: u64) -> Generation {
        self.progress.generation(sequence)
    }

    /// Returns whether an earlier version of Nerve may have delivered the event at `sequence`.
    pub(super) fn may_be_legacy(&self, sequence: u64) -> bool {
        sequence <= self.progress.delivered_by_older
    }

    /// Returns whether a deleted consumer may have delivered the event at `sequence`.
    pub(super) fn may_be_redelivery(&self, sequence: u64) -> bool {
        sequence <= self.progress.delivered_before
    }
}

/// The name of a consumer. Names of functions and sinks contain no `~`.
pub(super) fn name_of(base: &str, suffix: &str) -> String {
    if suffix.is_empty() { base.to_owned() } else { format!("{base}~{suffix}") }
}

fn key(stream: &str, base: &str) -> String {
    format!("{stream}.{base}")
}

impl Bus {
    pub(super) async fn places(&self) -> Result<&kv::Store, BusError> {
        let open = async { self.jetstream.get_key_value(PLACES).await.unavailable("opening the bucket places") };
        self.places.get_or_try_init(|| open).await
    }

    /// Creates the bucket. If an earlier version of Nerve has used this broker, without the bucket, the time of the upgrade is recorded.
    pub(super) async fn ensure_progress_bucket(&self, config: &StreamsConfig) -> Result<(), BusError> {
        let is_new = self.jetstream.get_key_value(PLACES).await.is_err();
        let older = is_new
            && self
                .jetstream
                .get_stream(super::EVENTS)
                .await
                .is_ok_and(|events| events.cached_info().state.messages > 0);
        let bucket = Bucket { name: PLACES, history: 1, max_age: Duration::ZERO, config, disk: None };
        self.ensure_bucket(bucket).await?;
        if older {
            let now = OffsetDateTime::now_utc().unix_timestamp().to_string();
            // Another starting process may have recorded it.
            self.places().await?.create(UPDATED_KEY, now.into()).await.ok();
        }
        Ok(())
    }

    /// The progress of a consumer, and the revision of the document.
    pub(super) async fn progress(&self, stream: &str, base: &str) -> Result<Option<(ConsumerProgress, u64)>, BusError> {
        let key = key(stream, base);
        let what = || format!("reading the progress {key}");
        let entry = self.places().await?.entry(&key).await.unavailable(what)?;
        let Some(entry) = entry.filter(|entry| entry.operation == kv::Operation::Put) else { return Ok(None) };
        let progress = serde_json::from_slice(&entry.value).refused(what)?;
        Ok(Some((progress, entry.revision)))
    }

    /// Writes progress over the revision `after`, or a new document; returns `false` if another process wrote it meanwhile.
    pub(super) async fn put_progress(
        &self,
        (stream, base): (&str, &str),
        progress: &ConsumerProgress,
        after: Option<u64>,
    ) -> Result<bool, BusError> {
        let key = key(stream, base);
        let what = || format!("writing the progress {key}");
        let body = serde_json::to_vec(progress).refused(what)?;
        let store = self.places().await?;
        match after {
            Some(revision) => match store.update(&key, body.into(), revision).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
                Err(error) => Err(BusError::of_bucket(PLACES, what(), error)),
            },
            None => match store.create(&key, body.into()).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(BusError::of_bucket(PLACES, what(), error)),
            },
        }
    }

    /// Deletes the progress of a removed consumer.
    pub(super) async fn delete_progress(&self, stream: &str, base: &str) -> Result<(), BusError> {
        self.places()
            .await?
            .delete(key(stream, base))
            .await
            .unavailable(|| format!("deleting the progress of {base} on {stream}"))
    }

    /// When and why the consumer of a function or sink was last restored, if ever.
    pub async fn restored(&self, stream: &str, base: &str) -> Result<Option<RestoredConsumer>, BusError> {
        Ok(self.progress(stream, base).await?.and_then(|(progress, _)| progress.restored))
    }

    /// Stores the current progress of a consumer.
    async fn refresh_progress(&self, stream: &str, base: &str) -> Result<(), BusError> {
        for _ in 0..MAX_TRIES {
            let Some((progress, revision)) = self.progress(stream, base).await? else { return Ok(()) };
            let what = || format!("refreshing the progress of {base} on {stream}");
            let handle = self.stream(stream, what).await?;
            let name = name_of(base, &progress.consumer);
            let Some(info) = super::consumer::consumer_of(&handle, &name, what).await? else { return Ok(()) };
            let done = finished_up_to(&info);
            if handle.cached_info().created != progress.stream_created || done <= progress.done {
                return Ok(());
            }
            if self.put_progress((stream, base), &ConsumerProgress { done, ..progress }, Some(revision)).await? {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The sequence up to which a consumer has finished everything.
pub(super) fn finished_up_to(info: &Info) -> u64 {
    let idle = info.num_ack_pending == 0 && info.num_pending == 0;
    // Only events of other subjects may follow the last acknowledgement.
    if idle {
        info.ack_floor.stream_sequence.max(info.delivered.stream_sequence)
    } else {
        info.ack_floor.stream_sequence
    }
}

/// Stores the progress of the consumers that this process pulls from.
#[derive(Debug, Clone, Default)]
pub struct ProgressRecorder {
    watched: Arc<Mutex<Watched>>,
}

/// By stream and consumer: whether events were received or acknowledged since the last refresh.
type Watched = HashMap<(Arc<str>, String), Arc<AtomicBool>>;

impl ProgressRecorder {
    /// Starts refreshing until `stop`, with a last refresh at the end.
    pub fn start(bus: &Bus, stop: CancellationToken, tasks: &TaskTracker) -> Self {
        let places = Self::default();
        let (bus, refreshed) = (bus.clone(), places.clone());
        tasks.spawn(async move {
            let mut ticks = tokio::time::interval(REFRESH_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                refreshed.refresh(&bus).await;
            }
            tokio::time::timeout(REFRESH_INTERVAL, refreshed.refresh(&bus)).await.ok();
        });
        places
    }

    /// The flag to set when an event is received or acknowledged.
    pub(super) fn watch(&self, bound: &BoundConsumer) -> Arc<AtomicBool> {
        let mut watched = self.watched.lock();
        Arc::clone(watched.entry((bound.stream.clone(), bound.base.clone())).or_default())
    }

    async fn refresh(&self, bus: &Bus) {
        let changed: Vec<_> = {
            let watched = self.watched.lock();
            let changed = watched.iter().filter(|(_, changed)| changed.load(Ordering::Relaxed));
            changed.map(|(key, changed)| (key.clone(), Arc::clone(changed))).collect()
        };
        for ((stream, base), changed) in changed {
            changed.store(false, Ordering::Relaxed);
            if let Err(error) = bus.refresh_progress(&stream, &base).await {
                // The next refresh includes received events again.
                changed.store(true, Ordering::Relaxed);
                tracing::debug!(error = &error as &dyn std::error::Error, %stream, consumer = base, "cannot store consumer progress");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(replay: &str) -> Generation {
        Generation::replayed(replay)
    }

    #[test]
    fn replay_applies_its_generation_from_the_requested_event_on() {
        let progress = ConsumerProgress::before(100, OffsetDateTime::UNIX_EPOCH);
        assert_eq!((progress.done, progress.generation(1)), (99, Generation::first()));
        // Requested from 50 on; earlier events are unfinished, and continue in their own generation.
        let progress = progress.replayed((30, 50), 120, "a".into(), generation("a"));
        assert_eq!(
            (progress.done, progress.generation(49), progress.generation(50)),
            (29, Generation::first(), generation("a"))
        );
        let progress = progress.replayed((70, 70), 120, "b".into(), generation("b"));
        assert_eq!((progress.generation(69), progress.generation(70)), (generation("a"), generation("b")));
        let progress = progress.replayed((60, 60), 120, "c".into(), generation("c"));
        let all = [49, 50, 59, 60, 200].map(|sequence| progress.generation(sequence));
        let [first, a, c] = [Generation::first(), generation("a"), generation("c")];
        assert_eq!(all, [first, a.clone(), a, c.clone(), c]);
        let bound = BoundConsumer::new("EVENTS", "nerve-f", progress, OffsetDateTime::UNIX_EPOCH);
        assert_eq!(bound.consumer(), "nerve-f~c");
        assert!(bound.may_be_redelivery(120) && !bound.may_be_redelivery(121));
    }

    #[test]
    fn number_of_generations_is_limited() {
        let mut progress = ConsumerProgress::before(1, OffsetDateTime::UNIX_EPOCH);
        for n in 1..=100 {
            progress = progress.replayed((n, n), 0, String::new(), generation(&n.to_string()));
        }
        assert_eq!((progress.generations.len(), progress.generation(100)), (MAX_GENERATIONS, generation("100")));
    }
}

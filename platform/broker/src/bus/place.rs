//! How far each durable consumer is, remembered beyond the consumer's life.
//!
//! A place is a document of the KV bucket `places`: everything up to a sequence of one incarnation of a stream is done, and from
//! which sequence on events are run for which generation. Workers refresh it every [`REFRESH_INTERVAL`] while they take events.
//! A consumer that somebody deletes is made again where its place says; a stream that is made again is known by its creation
//! time, and read from its beginning.

use super::{Bus, BusError, buckets::Bucket, streams::PLACES};
use crate::streams::StreamsConfig;
use async_nats::jetstream::{
    consumer::Info,
    kv::{self, CreateErrorKind, UpdateErrorKind},
};
use nerve_core::Generation;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use time::OffsetDateTime;
use tokio::time::MissedTickBehavior;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

/// How often a worker writes down how far its consumers are: as much may be run again when one is deleted.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);
/// The key of the moment at which the streams of an older Nerve were taken over, in seconds since 1970.
pub(super) const UPDATED: &str = "updated";
/// Replays whose generations are told apart; of more, the oldest are one with the next.
const MAX_GENERATIONS: usize = 64;
/// How often a place is written that others write at the same time.
const MAX_TRIES: usize = 5;

/// How far the consumers of one function, sink or task are on one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// When the stream was created.
    #[serde(with = "time::serde::rfc3339")]
    pub(super) stream_created: OffsetDateTime,
    /// Every event up to this sequence is done.
    pub(super) done: u64,
    /// What the consumer's name ends with. Each replay makes a consumer of its own, so that a delivery's consumer tells its
    /// generation; so does each restoration.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) consumer: String,
    /// The generations that events are run for, each from a sequence on, in ascending order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) generations: Vec<(u64, Generation)>,
    /// Up to this sequence a consumer that is gone may have delivered events.
    #[serde(default)]
    pub(super) delivered_before: u64,
    /// Up to this sequence an older Nerve may have delivered events, and stored results under ids of its own.
    #[serde(default)]
    pub(super) delivered_by_older: u64,
    /// When and why the consumer was made again last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
}

/// A consumer that was made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// The sequence that it goes on from.
    pub from: u64,
    /// Why.
    pub reason: String,
}

impl Place {
    /// A place at which everything before `next` is done.
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

    /// This place with the consumer made again to go on from `from`. It gets another name: nats-server may still be deleting the
    /// files of the old one, and would delete those of a new one of the same name.
    pub(super) fn restored(self, from: u64, last: u64, reason: &str) -> Self {
        let restored = Restored { time: OffsetDateTime::now_utc(), from, reason: reason.to_owned() };
        let consumer = Uuid::now_v7().simple().to_string();
        Self { done: from.saturating_sub(1), delivered_before: last, consumer, restored: Some(restored), ..self }
    }

    /// This place sent back to `from`, by a consumer of its own; events from `asked` on are run for `generation`.
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

    /// The generation that the event at `sequence` is run for.
    fn generation(&self, sequence: u64) -> Generation {
        let newest = self.generations.iter().rev().find(|(start, _)| *start <= sequence);
        newest.map(|(_, generation)| generation.clone()).unwrap_or_default()
    }
}

/// A consumer to pull from, and what its deliveries are run for.
#[derive(Debug, Clone)]
pub struct Bound {
    pub(super) stream: Arc<str>,
    /// The consumer's name without what its place adds.
    pub(super) base: String,
    /// When it was created, in nanoseconds since 1970.
    pub(super) created: i64,
    place: Place,
}

impl Bound {
    pub(super) fn new(stream: &str, base: &str, place: Place, created: OffsetDateTime) -> Self {
        let created = i64::try_from(created.unix_timestamp_nanos()).unwrap_or_default();
        Self { stream: stream.into(), base: base.to_owned(), created, place }
    }

    /// The consumer's name.
    pub(super) fn consumer(&self) -> String {
        name_of(&self.base, &self.place.consumer)
    }

    /// The generation that the event at `sequence` is run for.
    pub(super) fn generation(&self, sequence: u64) -> Generation {
        self.place.generation(sequence)
    }

    /// Whether an older Nerve may have delivered the event at `sequence`.
    pub(super) fn may_be_of_older(&self, sequence: u64) -> bool {
        sequence <= self.place.delivered_by_older
    }

    /// Whether a consumer that is gone may have delivered the event at `sequence`.
    pub(super) fn may_have_delivered(&self, sequence: u64) -> bool {
        sequence <= self.place.delivered_before
    }
}

/// The name of a consumer. No name of a function or sink holds a `~`.
pub(super) fn name_of(base: &str, suffix: &str) -> String {
    if suffix.is_empty() { base.to_owned() } else { format!("{base}~{suffix}") }
}

fn key(stream: &str, base: &str) -> String {
    format!("{stream}.{base}")
}

impl Bus {
    pub(super) async fn places(&self) -> Result<&kv::Store, BusError> {
        let open = async {
            let opened = self.jetstream.get_key_value(PLACES).await;
            opened.map_err(|error| BusError::unavailable("opening the bucket places", error))
        };
        self.places.get_or_try_init(|| open).await
    }

    /// Makes the bucket. Where an older Nerve has served this broker, which had none, it is noted when that ended.
    pub(super) async fn ensure_places(&self, config: &StreamsConfig) -> Result<(), BusError> {
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
            // Another process that starts at this moment may have noted it.
            self.places().await?.create(UPDATED, now.into()).await.ok();
        }
        Ok(())
    }

    /// The place of a consumer, and the revision of the document.
    pub(super) async fn place(&self, stream: &str, base: &str) -> Result<Option<(Place, u64)>, BusError> {
        let key = key(stream, base);
        let what = || format!("reading the place {key}");
        let entry = self.places().await?.entry(&key).await.map_err(|error| BusError::unavailable(what(), error))?;
        let Some(entry) = entry.filter(|entry| entry.operation == kv::Operation::Put) else { return Ok(None) };
        let place = serde_json::from_slice(&entry.value).map_err(|error| BusError::refused(what(), error))?;
        Ok(Some((place, entry.revision)))
    }

    /// Writes a place over the revision `after`, or where there is none; `false` if another process wrote it meanwhile.
    pub(super) async fn put_place(
        &self,
        (stream, base): (&str, &str),
        place: &Place,
        after: Option<u64>,
    ) -> Result<bool, BusError> {
        let key = key(stream, base);
        let what = || format!("writing the place {key}");
        let body = serde_json::to_vec(place).map_err(|error| BusError::refused(what(), error))?;
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

    /// Forgets the place of a consumer that is removed for good.
    pub(super) async fn forget_place(&self, stream: &str, base: &str) -> Result<(), BusError> {
        let deleted = self.places().await?.delete(key(stream, base)).await;
        deleted.map_err(|error| BusError::unavailable(format!("deleting the place of {base} on {stream}"), error))
    }

    /// When and why the consumer of a function or sink was made again last, if it ever was.
    pub async fn restored(&self, stream: &str, base: &str) -> Result<Option<Restored>, BusError> {
        Ok(self.place(stream, base).await?.and_then(|(place, _)| place.restored))
    }

    /// Writes down how far a consumer is.
    async fn refresh_place(&self, stream: &str, base: &str) -> Result<(), BusError> {
        for _ in 0..MAX_TRIES {
            let Some((place, revision)) = self.place(stream, base).await? else { return Ok(()) };
            let what = || format!("refreshing the place of {base} on {stream}");
            let handle = self.stream(stream, what).await?;
            let name = name_of(base, &place.consumer);
            let Some(info) = super::consumer::consumer_of(&handle, &name, what).await? else { return Ok(()) };
            let done = done_by(&info);
            if handle.cached_info().created != place.stream_created || done <= place.done {
                return Ok(());
            }
            if self.put_place((stream, base), &Place { done, ..place }, Some(revision)).await? {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The sequence up to which a consumer has finished everything.
pub(super) fn done_by(info: &Info) -> u64 {
    let idle = info.num_ack_pending == 0 && info.num_pending == 0;
    // Behind the last acknowledgement there may be events of other subjects only.
    if idle {
        info.ack_floor.stream_sequence.max(info.delivered.stream_sequence)
    } else {
        info.ack_floor.stream_sequence
    }
}

/// Refreshes the places of the consumers that this process pulls from.
#[derive(Debug, Clone, Default)]
pub struct Places {
    watched: Arc<Mutex<Watched>>,
}

/// By stream and consumer: whether events were taken or settled since the last refresh.
type Watched = HashMap<(Arc<str>, String), Arc<AtomicBool>>;

impl Places {
    /// Starts refreshing, until `stop`, and once more then.
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

    /// The flag that is raised when an event is taken or settled.
    pub(super) fn watch(&self, bound: &Bound) -> Arc<AtomicBool> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(watched.entry((bound.stream.clone(), bound.base.clone())).or_default())
    }

    async fn refresh(&self, bus: &Bus) {
        let moved: Vec<_> = {
            let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            let moved = watched.iter().filter(|(_, moved)| moved.load(Ordering::Relaxed));
            moved.map(|(key, moved)| (key.clone(), Arc::clone(moved))).collect()
        };
        for ((stream, base), moved) in moved {
            moved.store(false, Ordering::Relaxed);
            if let Err(error) = bus.refresh_place(&stream, &base).await {
                // What was taken is looked at again with the next refresh.
                moved.store(true, Ordering::Relaxed);
                tracing::debug!(error = &error as &dyn std::error::Error, %stream, consumer = base, "a place is not refreshed");
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
    fn replay_gives_a_generation_to_what_was_asked_for_only() {
        let place = Place::before(100, OffsetDateTime::UNIX_EPOCH);
        assert_eq!((place.done, place.generation(1)), (99, Generation::first()));
        // Asked for from 50 on; what is before is unfinished, and goes on in its own generation.
        let place = place.replayed((30, 50), 120, "a".into(), generation("a"));
        assert_eq!(
            (place.done, place.generation(49), place.generation(50)),
            (29, Generation::first(), generation("a"))
        );
        let place = place.replayed((70, 70), 120, "b".into(), generation("b"));
        assert_eq!((place.generation(69), place.generation(70)), (generation("a"), generation("b")));
        let place = place.replayed((60, 60), 120, "c".into(), generation("c"));
        let all = [49, 50, 59, 60, 200].map(|sequence| place.generation(sequence));
        let [first, a, c] = [Generation::first(), generation("a"), generation("c")];
        assert_eq!(all, [first, a.clone(), a, c.clone(), c]);
        let bound = Bound::new("EVENTS", "nerve-f", place, OffsetDateTime::UNIX_EPOCH);
        assert_eq!(bound.consumer(), "nerve-f~c");
        assert!(bound.may_have_delivered(120) && !bound.may_have_delivered(121));
    }

    #[test]
    fn generations_are_bounded() {
        let mut place = Place::before(1, OffsetDateTime::UNIX_EPOCH);
        for n in 1..=100 {
            place = place.replayed((n, n), 0, String::new(), generation(&n.to_string()));
        }
        assert_eq!((place.generations.len(), place.generation(100)), (MAX_GENERATIONS, generation("100")));
    }
}

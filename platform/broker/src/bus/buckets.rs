//! The buckets and object stores: made where they are missing, each with a bound in bytes, and what it means that one is full.
//!
//! The broker refuses what does not fit in a bucket (`discard = new`) and removes nothing. A bucket that holds more than its bound
//! when that is set, as after an upgrade, is bounded by what it holds: it is full, and nothing of it goes.
//!
//! The broker would set the bytes of object stores aside at once, which are more than a shared one has to spare. So their bound is
//! in the metadata of their streams, and servers look before they write: what several write at the same moment may pass it.

use super::{
    Bus, BusError,
    requests::REQUESTS,
    streams::{ARTIFACTS, BODIES, FUNCTIONS, PLACES, SECRETS, VIEWS, lacks_storage},
};
use crate::streams::StreamsConfig;
use async_nats::jetstream::{kv, object_store, stream};
use std::{fmt, time::Duration};
use tokio_util::sync::CancellationToken;

/// Bytes that manifests may take, with their history.
const FUNCTIONS_BYTES: i64 = 256 << 20;
/// Bytes that encrypted secrets may take.
const SECRETS_BYTES: i64 = 64 << 20;
/// Bytes that the places of consumers may take: one small document each.
const PLACES_BYTES: i64 = 64 << 20;
/// The least that a bucket is bounded by where the broker has no more to set aside.
const LEAST_BYTES: i64 = 16 << 20;
/// The parts of the broker's disk, where it is known, that deployed files and large bodies may take at most.
const DISK_PARTS: [(&str, u64); 2] = [(ARTIFACTS, 5), (BODIES, 10)];
/// In the metadata of their streams: the size of the broker's disk, by a server that knows it.
const DISK: &str = "nerve-disk";
/// In the metadata of object stores: the bytes that they may take.
const BOUND: &str = "nerve-max-bytes";
/// Bytes of an object for each byte that its chunks take besides, and what its description takes.
const CHUNK_PARTS: u64 = 512;
const OBJECT_OVERHEAD: u64 = 1024;
/// How often the buckets are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// The part of its bound from which on a bucket is reported, in percent.
const NEARLY_FULL: u64 = 90;

/// A bucket that has no room for what is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FullBucket {
    /// Its name.
    pub bucket: &'static str,
}

impl FullBucket {
    /// What bounds it, and what makes room.
    fn next(self) -> &'static str {
        match self.bucket {
            "artifacts" => {
                "`streams.artifacts_max_bytes` bounds it: raise that, or remove models that nothing uses (nerve models remove)"
            }
            "bodies" => {
                "`streams.bodies_max_bytes` bounds it: raise that, or shorten streams.events_max_age and streams.dead_max_age, \
                 after which bodies go"
            }
            "requests" => {
                "`streams.requests_max_bytes` bounds it: raise that, or shorten gateway.idempotency_window; requests without \
                 an Idempotency-Key go on"
            }
            "views" => {
                "`streams.views_max_bytes` bounds it: raise that, or erase collections that nobody needs (nerve collections \
                 erase)"
            }
            _ => "its bound is fixed: remove what is not deployed any more (nerve remove, nerve secrets remove)",
        }
    }
}

impl fmt::Display for FullBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if matches!(self.bucket, "artifacts" | "bodies") { "object store" } else { "bucket" };
        write!(f, "the {kind} `{}` is full; {}", self.bucket, self.next())
    }
}

impl std::error::Error for FullBucket {}

/// How full a bucket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketLevel {
    full: FullBucket,
    bytes: u64,
    max_bytes: u64,
}

impl fmt::Display for BucketLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.bytes.saturating_mul(100) / self.max_bytes.max(1);
        let FullBucket { bucket } = self.full;
        write!(f, "`{bucket}` holds {} of {} bytes ({percent} %); {}", self.bytes, self.max_bytes, self.full.next())
    }
}

impl BusError {
    /// A failed write to a bucket: it is full, or the broker cannot be asked.
    pub fn of_bucket(bucket: &'static str, what: impl Into<String>, source: impl Into<async_nats::Error>) -> Self {
        let source = source.into();
        match says_full(source.as_ref()) {
            true => Self::Full { what: what.into(), full: FullBucket { bucket } },
            false => Self::unavailable(what, source),
        }
    }
}

/// Whether the broker refused a message because its stream is full, anywhere in the chain.
pub(super) fn says_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.into_iter().any(|cause| cause.to_string().contains("maximum bytes exceeded"))
}

/// Whether the broker has a stream of this name, configured otherwise.
fn is_made_already(error: &BusError) -> bool {
    let chain = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    chain.into_iter().any(|cause| cause.to_string().contains("stream name already in use"))
}

fn is_object_store(bucket: &str) -> bool {
    matches!(bucket, ARTIFACTS | BODIES)
}

/// The bytes that a bucket may take, by its stream; none where it has no bound.
fn bound_of(bucket: &str, config: &stream::Config) -> Option<u64> {
    let bytes = match is_object_store(bucket) {
        true => config.metadata.get(BOUND)?.parse().ok()?,
        false => config.max_bytes,
    };
    u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
}

/// The bucket's stream.
fn stream_of(bucket: &str) -> String {
    match bucket {
        ARTIFACTS | BODIES => format!("OBJ_{bucket}"),
        bucket => format!("KV_{bucket}"),
    }
}

impl StreamsConfig {
    /// The bytes that a bucket may take; -1 for no bound. `disk` is the size of the broker's, where it is known.
    fn bucket_bytes(&self, bucket: &str, disk: Option<u64>) -> i64 {
        let bytes = match bucket {
            ARTIFACTS => self.artifacts_max_bytes,
            BODIES => self.bodies_max_bytes,
            REQUESTS => self.requests_max_bytes,
            VIEWS => self.views_max_bytes,
            FUNCTIONS => FUNCTIONS_BYTES,
            SECRETS => SECRETS_BYTES,
            _ => PLACES_BYTES,
        };
        let part = DISK_PARTS.iter().find(|(name, _)| *name == bucket).zip(disk);
        match part.and_then(|((_, part), disk)| i64::try_from(disk / part).ok()) {
            Some(part) if bytes > 0 => bytes.min(part.max(LEAST_BYTES)),
            _ => bytes,
        }
    }
}

/// A bucket as it should be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket<'c> {
    pub(super) name: &'static str,
    /// Versions of an entry that are kept; 0 for an object store.
    pub(super) history: i64,
    pub(super) max_age: Duration,
    pub(super) config: &'c StreamsConfig,
    /// The size of the broker's disk, where it is known.
    pub(super) disk: Option<u64>,
}

impl Bus {
    /// Makes a bucket or an object store, or gives the one that is there its replicas, age and bound. All else stays as it is.
    pub(super) async fn ensure_bucket(&self, bucket: Bucket<'_>) -> Result<(), BusError> {
        let name = bucket.name;
        let existing = match self.stream(&stream_of(name), || format!("making the bucket {name}")).await {
            Ok(existing) => Some(existing.cached_info().clone()),
            Err(BusError::NotFound(_)) => None,
            Err(error) => return Err(error),
        };
        let recorded = existing.as_ref().and_then(|info| info.config.metadata.get(DISK)?.parse().ok());
        let asked = bucket.config.bucket_bytes(name, bucket.disk.or(recorded));
        let mut max_bytes = asked;
        // The broker sets those of a bucket aside at once, and may have less.
        while let Err(error) = self.set_bucket(bucket, existing.as_ref(), max_bytes).await {
            if !lacks_storage(&error) || max_bytes <= 0 {
                return Err(error);
            }
            let half = max_bytes / 2;
            max_bytes = if half >= LEAST_BYTES { half } else { -1 };
        }
        if max_bytes != asked {
            tracing::info!(bucket = name, asked, max_bytes, "the broker has fewer bytes to set aside than asked");
        }
        Ok(())
    }

    async fn set_bucket(
        &self,
        bucket: Bucket<'_>,
        existing: Option<&stream::Info>,
        max_bytes: i64,
    ) -> Result<(), BusError> {
        let Bucket { name, config, disk, .. } = bucket;
        let created;
        let existing = match existing {
            Some(existing) => existing,
            None => {
                created = self.create_bucket(bucket, max_bytes).await?;
                &created
            }
        };
        let current = existing.config.clone();
        let is_store = is_object_store(name);
        let held = i64::try_from(existing.state.bytes).unwrap_or(i64::MAX);
        // Only requests have an age that a setting changes.
        let max_age = if name == REQUESTS { bucket.max_age } else { current.max_age };
        let mut changed = stream::Config {
            num_replicas: config.replicas,
            max_bytes: if is_store || max_bytes <= 0 { -1 } else { max_bytes.max(held) },
            max_age,
            duplicate_window: match max_age.is_zero() {
                true => current.duplicate_window,
                false => current.duplicate_window.min(max_age),
            },
            ..current.clone()
        };
        // Servers on other machines do not know it, and would bound the bucket by other bytes.
        if let Some(disk) = disk {
            changed.metadata.insert(DISK.to_owned(), disk.to_string());
        }
        if is_store {
            changed.metadata.insert(BOUND.to_owned(), max_bytes.to_string());
        }
        if changed == current {
            return Ok(());
        }
        let updated = self.jetstream.update_stream(changed).await;
        updated.map(drop).map_err(|error| BusError::of_jetstream(format!("making the bucket {name}"), error))
    }

    /// Makes a bucket that was not there a moment ago; its stream.
    async fn create_bucket(&self, bucket: Bucket<'_>, max_bytes: i64) -> Result<stream::Info, BusError> {
        let Bucket { name, history, max_age, config, .. } = bucket;
        let what = || format!("making the bucket {name}");
        let num_replicas = config.replicas;
        let (bucket, rest) = (name.to_owned(), object_store::Config::default());
        let created = match history {
            0 => {
                let config = object_store::Config { bucket, max_age, num_replicas, ..rest };
                self.jetstream.create_object_store(config).await.map(drop).map_err(async_nats::Error::from)
            }
            history => {
                let config = kv::Config { bucket, history, max_age, num_replicas, max_bytes, ..<_>::default() };
                let created = self.jetstream.create_or_update_key_value(config).await;
                created.map(drop).map_err(async_nats::Error::from)
            }
        };
        match created.map_err(|error| BusError::of_jetstream(what(), error)) {
            // Another server has made it meanwhile, and may know the size of the disk.
            Err(error) if !is_made_already(&error) => Err(error),
            _ => Ok(self.stream(&stream_of(name), what).await?.cached_info().clone()),
        }
    }

    /// Whether an object store has room for an object of so many bytes: the chunks of one that is cut off would stay.
    ///
    /// # Errors
    /// [`BusError::Full`] where it has none. The broker has the last word, as others write at the same time.
    pub async fn check_room(&self, bucket: &'static str, size: u64) -> Result<(), BusError> {
        let what = || format!("looking for room in the object store {bucket}");
        let stream = self.stream(&stream_of(bucket), what).await?;
        let info = stream.cached_info();
        let Some(max_bytes) = bound_of(bucket, &info.config) else { return Ok(()) };
        // The headers and subjects of its chunks.
        let stored = size.saturating_add(size / CHUNK_PARTS).saturating_add(OBJECT_OVERHEAD);
        match info.state.bytes.saturating_add(stored) > max_bytes {
            true => Err(BusError::Full { what: what(), full: FullBucket { bucket } }),
            false => Ok(()),
        }
    }

    /// How full the buckets are that are nearly full.
    async fn bucket_levels(&self) -> Result<Vec<BucketLevel>, BusError> {
        let mut levels = Vec::new();
        for bucket in [ARTIFACTS, BODIES, FUNCTIONS, SECRETS, PLACES, VIEWS, REQUESTS] {
            let stream = self.stream(&stream_of(bucket), || format!("looking at the bucket {bucket}")).await?;
            let info = stream.cached_info();
            let Some(max_bytes) = bound_of(bucket, &info.config) else { continue };
            let bytes = info.state.bytes;
            metrics::gauge!("nerve_bucket_bytes", "bucket" => bucket).set(approximate(bytes));
            metrics::gauge!("nerve_bucket_max_bytes", "bucket" => bucket).set(approximate(max_bytes));
            if u128::from(bytes) * 100 >= u128::from(max_bytes) * u128::from(NEARLY_FULL) {
                levels.push(BucketLevel { full: FullBucket { bucket }, bytes, max_bytes });
            }
        }
        Ok(levels)
    }
}

/// Bytes for a metric.
#[expect(clippy::cast_precision_loss, reason = "a gauge need not be exact to the byte")]
fn approximate(bytes: u64) -> f64 {
    bytes as f64
}

/// Looks at the buckets until `end`; readiness and the log say which are nearly full.
pub async fn watch(bus: Bus, end: CancellationToken) {
    while !end.is_cancelled() {
        match bus.bucket_levels().await {
            Ok(levels) => {
                let before = bus.space().buckets();
                for level in levels.iter().filter(|level| before.iter().all(|known| known.full != level.full)) {
                    tracing::warn!("the bucket {level}");
                }
                bus.space().report_buckets(levels);
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "the buckets were not looked at");
            }
        }
        end.run_until_cancelled(tokio::time::sleep(LOOK_INTERVAL)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_bucket_is_named_with_its_setting_and_told_from_a_broker_that_is_away() {
        let full = BusError::of_bucket(VIEWS, "writing a view", "nats: maximum bytes exceeded");
        let text = full.to_string();
        assert!(text.contains("writing a view: the bucket `views` is full"), "{text}");
        assert!(text.contains("streams.views_max_bytes"), "{text}");
        let away = BusError::of_bucket(VIEWS, "writing a view", "timed out");
        assert!(matches!(away, BusError::Unavailable { .. }));
    }

    #[test]
    fn large_stores_take_a_part_of_a_small_disk() {
        let defaults: toml::Table = toml::from_str(include_str!("../../../config/src/default.toml")).unwrap();
        let config: StreamsConfig = defaults["streams"].clone().try_into().unwrap();
        let bytes = |bucket, disk| config.bucket_bytes(bucket, disk);
        assert_eq!(bytes(ARTIFACTS, None), config.artifacts_max_bytes);
        assert_eq!(bytes(ARTIFACTS, Some(10 << 30)), 2 << 30);
        assert_eq!(bytes(ARTIFACTS, Some(1 << 50)), config.artifacts_max_bytes);
        assert!(bytes(ARTIFACTS, None) > 16 << 30, "a model of 16 GiB fits");
        let unbounded = StreamsConfig { artifacts_max_bytes: -1, ..config };
        assert_eq!(unbounded.bucket_bytes(ARTIFACTS, Some(1)), -1);
    }
}

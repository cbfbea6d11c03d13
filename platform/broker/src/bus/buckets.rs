//! Creates the buckets and object stores, each with a size limit, and describes full ones.
//!
//! A full bucket rejects writes (`discard = new`); the broker removes nothing. A bucket that exceeds its limit when the limit
//! is set, such as after an upgrade, is limited to its current size: it is full, and keeps its content.
//!
//! The broker would reserve the bytes of object stores immediately, which can exceed a shared one. Their limit is therefore
//! in the metadata of their streams, and servers check it before they write. Concurrent writes can exceed it.

use super::{
    Bus, BusError,
    idempotency::REQUESTS,
    streams::{ARTIFACTS, BODIES, FUNCTIONS, PLACES, SECRETS, VIEWS, lacks_storage},
};
use crate::streams::StreamsConfig;
use async_nats::jetstream::{kv, object_store, stream};
use std::{fmt, time::Duration};
use tokio_util::sync::CancellationToken;

/// Maximum size of manifests and their history.
const FUNCTIONS_BYTES: i64 = 256 << 20;
/// Maximum size of encrypted secrets.
const SECRETS_BYTES: i64 = 64 << 20;
/// Maximum size of consumer progress: one small document each.
const PLACES_BYTES: i64 = 64 << 20;
/// Minimum limit of a bucket if the broker cannot reserve more.
const MIN_BUCKET_BYTES: i64 = 16 << 20;
/// Deployed files and large bodies are limited to 1/N of the broker's disk, if its size is known.
const DISK_FRACTIONS: [(&str, u64); 2] = [(ARTIFACTS, 5), (BODIES, 10)];
/// Stream metadata: the size of the broker's disk, set by a server that knows it.
const DISK_BYTES_KEY: &str = "nerve-disk";
/// Stream metadata of object stores: the size limit.
const MAX_BYTES_KEY: &str = "nerve-max-bytes";
/// Object bytes per byte of chunk overhead, and the size of an object's record.
const BYTES_PER_OVERHEAD_BYTE: u64 = 512;
const OBJECT_OVERHEAD_BYTES: u64 = 1024;
/// Interval of the size check.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// Share of the limit above which a bucket is reported.
const NEARLY_FULL_PERCENT: u64 = 90;

/// A full bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FullBucket {
    /// Its name.
    pub bucket: &'static str,
}

impl FullBucket {
    /// The limit, and how to free space.
    fn next(self) -> &'static str {
        match self.bucket {
            "artifacts" => {
                "`streams.artifacts_max_bytes` limits it: raise it, or remove unused models (nerve models remove)"
            }
            "bodies" => {
                "`streams.bodies_max_bytes` limits it: raise it, or shorten streams.events_max_age and streams.dead_max_age, \
                 which delete bodies"
            }
            "requests" => {
                "`streams.requests_max_bytes` limits it: raise it, or shorten gateway.idempotency_window; requests without \
                 an Idempotency-Key are still accepted"
            }
            "views" => {
                "`streams.views_max_bytes` limits it: raise it, or erase unused collections (nerve collections \
                 erase)"
            }
            _ => "its limit is fixed: remove unused resources (nerve remove, nerve secrets remove)",
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

/// The fill level of a bucket.
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
    /// The error of a failed write to a bucket: full or unavailable.
    pub fn of_bucket(bucket: &'static str, what: impl Into<String>, source: impl Into<async_nats::Error>) -> Self {
        let source = source.into();
        match is_stream_full(source.as_ref()) {
            true => Self::Full { what: what.into(), full: FullBucket { bucket } },
            false => Self::unavailable(what, source),
        }
    }
}

/// Returns whether the error chain says that a stream is full.
pub(super) fn is_stream_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.into_iter().any(|cause| cause.to_string().contains("maximum bytes exceeded"))
}

/// Returns whether the broker has a stream of this name with another configuration.
fn already_exists(error: &BusError) -> bool {
    let chain = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    chain.into_iter().any(|cause| cause.to_string().contains("stream name already in use"))
}

fn is_object_store(bucket: &str) -> bool {
    matches!(bucket, ARTIFACTS | BODIES)
}

/// The size limit of a bucket; `None` if unlimited.
fn bound_of(bucket: &str, config: &stream::Config) -> Option<u64> {
    let bytes = match is_object_store(bucket) {
        true => config.metadata.get(MAX_BYTES_KEY)?.parse().ok()?,
        false => config.max_bytes,
    };
    u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
}

/// The name of the bucket's stream.
fn stream_of(bucket: &str) -> String {
    match bucket {
        ARTIFACTS | BODIES => format!("OBJ_{bucket}"),
        bucket => format!("KV_{bucket}"),
    }
}

impl StreamsConfig {
    /// The size limit of a bucket; -1 for none. `disk` is the size of the broker's disk, if known.
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
        let part = DISK_FRACTIONS.iter().find(|(name, _)| *name == bucket).zip(disk);
        match part.and_then(|((_, part), disk)| i64::try_from(disk / part).ok()) {
            Some(part) if bytes > 0 => bytes.min(part.max(MIN_BUCKET_BYTES)),
            _ => bytes,
        }
    }
}

/// The configuration of a bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket<'c> {
    pub(super) name: &'static str,
    /// History per key; 0 for an object store.
    pub(super) history: i64,
    pub(super) max_age: Duration,
    pub(super) config: &'c StreamsConfig,
    /// Size of the broker's disk, if known.
    pub(super) disk: Option<u64>,
}

impl Bus {
    /// Creates a bucket or an object store, or updates replicas, age and limit of an existing one. All else is kept.
    pub(super) async fn ensure_bucket(&self, bucket: Bucket<'_>) -> Result<(), BusError> {
        let name = bucket.name;
        let existing = match self.stream(&stream_of(name), || format!("creating the bucket {name}")).await {
            Ok(existing) => Some(existing.cached_info().clone()),
            Err(BusError::NotFound(_)) => None,
            Err(error) => return Err(error),
        };
        let recorded = existing.as_ref().and_then(|info| info.config.metadata.get(DISK_BYTES_KEY)?.parse().ok());
        let asked = bucket.config.bucket_bytes(name, bucket.disk.or(recorded));
        let mut max_bytes = asked;
        // The broker reserves the bytes of a bucket immediately, and may have fewer.
        while let Err(error) = self.set_bucket(bucket, existing.as_ref(), max_bytes).await {
            if !lacks_storage(&error) || max_bytes <= 0 {
                return Err(error);
            }
            let half = max_bytes / 2;
            max_bytes = if half >= MIN_BUCKET_BYTES { half } else { -1 };
        }
        if max_bytes != asked {
            tracing::info!(
                bucket = name,
                asked,
                max_bytes,
                "the broker cannot reserve the requested bytes; using a smaller limit"
            );
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
        // Only the age of requests is configurable.
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
        // Servers on other machines do not know it, and would set another limit.
        if let Some(disk) = disk {
            changed.metadata.insert(DISK_BYTES_KEY.to_owned(), disk.to_string());
        }
        if is_store {
            changed.metadata.insert(MAX_BYTES_KEY.to_owned(), max_bytes.to_string());
        }
        if changed == current {
            return Ok(());
        }
        let updated = self.jetstream.update_stream(changed).await;
        updated.map(drop).map_err(|error| BusError::of_jetstream(format!("creating the bucket {name}"), error))
    }

    /// Creates a bucket that did not exist when last checked, and returns its stream.
    async fn create_bucket(&self, bucket: Bucket<'_>, max_bytes: i64) -> Result<stream::Info, BusError> {
        let Bucket { name, history, max_age, config, .. } = bucket;
        let what = || format!("creating the bucket {name}");
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
            // Another server created it concurrently, and may know the disk size.
            Err(error) if !already_exists(&error) => Err(error),
            _ => Ok(self.stream(&stream_of(name), what).await?.cached_info().clone()),
        }
    }

    /// Checks that an object store has space for an object of `size` bytes: an upload that fails midway would leave its chunks.
    ///
    /// # Errors
    /// [`BusError::Full`] if it has not. The write itself can still fail, because others write concurrently.
    pub async fn check_room(&self, bucket: &'static str, size: u64) -> Result<(), BusError> {
        let what = || format!("checking the space in the object store {bucket}");
        let stream = self.stream(&stream_of(bucket), what).await?;
        let info = stream.cached_info();
        let Some(max_bytes) = bound_of(bucket, &info.config) else { return Ok(()) };
        // The headers and subjects of its chunks.
        let stored = size.saturating_add(size / BYTES_PER_OVERHEAD_BYTE).saturating_add(OBJECT_OVERHEAD_BYTES);
        match info.state.bytes.saturating_add(stored) > max_bytes {
            true => Err(BusError::Full { what: what(), full: FullBucket { bucket } }),
            false => Ok(()),
        }
    }

    /// The buckets that are nearly full.
    async fn bucket_levels(&self) -> Result<Vec<BucketLevel>, BusError> {
        let mut levels = Vec::new();
        for bucket in [ARTIFACTS, BODIES, FUNCTIONS, SECRETS, PLACES, VIEWS, REQUESTS] {
            let stream = self.stream(&stream_of(bucket), || format!("inspecting the bucket {bucket}")).await?;
            let info = stream.cached_info();
            let Some(max_bytes) = bound_of(bucket, &info.config) else { continue };
            let bytes = info.state.bytes;
            metrics::gauge!("nerve_bucket_bytes", "bucket" => bucket).set(approximate(bytes));
            metrics::gauge!("nerve_bucket_max_bytes", "bucket" => bucket).set(approximate(max_bytes));
            if u128::from(bytes) * 100 >= u128::from(max_bytes) * u128::from(NEARLY_FULL_PERCENT) {
                levels.push(BucketLevel { full: FullBucket { bucket }, bytes, max_bytes });
            }
        }
        Ok(levels)
    }
}

/// Converts bytes for a metric.
#[expect(clippy::cast_precision_loss, reason = "a gauge need not be exact to the byte")]
fn approximate(bytes: u64) -> f64 {
    bytes as f64
}

/// Checks the buckets until `end`, for readiness and the log.
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
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot check the buckets");
            }
        }
        end.run_until_cancelled(tokio::time::sleep(CHECK_INTERVAL)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_bucket_is_distinguished_from_an_unavailable_broker() {
        let full = BusError::of_bucket(VIEWS, "writing a view", "nats: maximum bytes exceeded");
        let text = full.to_string();
        assert!(text.contains("writing a view: the bucket `views` is full"), "{text}");
        assert!(text.contains("streams.views_max_bytes"), "{text}");
        let away = BusError::of_bucket(VIEWS, "writing a view", "timed out");
        assert!(matches!(away, BusError::Unavailable { .. }));
    }

    #[test]
    fn object_store_limit_follows_the_disk_size() {
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

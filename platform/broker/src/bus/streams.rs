//! Creates the streams and buckets, and migrates older ones.

use super::{ATTEMPTS, Bus, BusError, buckets::Bucket};
use crate::streams::{EventsFull, StreamsConfig};
use async_nats::jetstream::{
    self, ErrorCode,
    context::{CreateStreamError, CreateStreamErrorKind},
    stream,
};
use nerve_core::Name;
use std::time::Duration;

/// The log of events.
pub const EVENTS: &str = "EVENTS";
/// Streamed answers.
pub const ANSWERS: &str = "ANSWERS";
/// Dead letters, including redriven ones.
pub const DEAD: &str = "DEAD";
/// Log lines of functions.
pub const LOGS: &str = "LOGS";
/// Dedupe keys of accepted webhooks.
pub const SEEN: &str = "SEEN";
/// Delayed messages, and messages that are due.
pub const TIMERS: &str = "TIMERS";
/// Prefix of the subjects of due messages.
pub(super) const DUE_PREFIX: &str = "timers.due.";
/// KV: deployed resources.
pub const FUNCTIONS: &str = "functions";
/// KV: encrypted secrets.
pub const SECRETS: &str = "secrets";
/// KV: the progress of each durable consumer.
pub(super) const PLACES: &str = "places";
/// Stream: the history of unsuccessful runs.
pub(super) const RUNS: &str = "RUNS";
/// KV: views.
pub(super) const VIEWS: &str = "views";
/// Object Store: deployed files.
pub const ARTIFACTS: &str = "artifacts";
/// Object Store: bodies too large for a message.
pub(super) const BODIES: &str = "bodies";

/// Prefix of the subjects of redriven dead letters; the function's name follows.
///
/// They are in DEAD instead of EVENTS, so that no other function receives the event a second time.
pub const REDRIVE_PREFIX: &str = "redrive.";

/// Prefix of the subjects of empty result sets; the function's name follows.
///
/// They are in EVENTS as results are, so that the broker compares their ids.
pub(super) const EMPTY_PREFIX: &str = "empty.";

/// Maximum messages in SEEN: with one key each, as many as a gateway holds.
const SEEN_MESSAGES: i64 = 1 << 20;

/// Maximum size of SEEN: its messages are small.
const SEEN_BYTES: i64 = 256 << 20;
/// Maximum size of RUNS: one record per unsuccessful run.
const RUNS_BYTES: i64 = 256 << 20;
/// Minimum limit of a stream if the broker cannot reserve more.
const MIN_STREAM_BYTES: i64 = 16 << 20;

/// The size limit of a stream; -1 for none.
///
/// The trimmer keeps EVENTS within its limit, unless events are rejected. Results are stored after their input events, which are
/// acknowledged only afterwards: a broker that rejected both would never have space again. TIMERS has no limit: the broker cannot
/// reject messages there, and would remove pending events. Intake limits its size.
fn max_bytes_of(name: &str, config: &StreamsConfig) -> i64 {
    match name {
        EVENTS if config.events_full == EventsFull::Refuse => config.events_max_bytes,
        LOGS => config.logs_max_bytes,
        ANSWERS => config.answers_max_bytes,
        DEAD => config.dead_max_bytes,
        ATTEMPTS => config.attempts_max_bytes,
        SEEN => SEEN_BYTES,
        RUNS => RUNS_BYTES,
        _ => -1,
    }
}

/// Returns whether the broker cannot reserve enough bytes.
pub(super) fn lacks_storage(error: &BusError) -> bool {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    let lacking = [ErrorCode::STORAGE_RESOURCES_EXCEEDED, ErrorCode::INSUFFICIENT_RESOURCES];
    causes.into_iter().any(|cause| {
        let refused = cause.downcast_ref::<jetstream::Error>().map(jetstream::Error::error_code);
        refused.is_some_and(|code| lacking.contains(&code)) || is_storage_shortage(&cause.to_string())
    })
}

fn is_storage_shortage(text: &str) -> bool {
    ["insufficient storage", "resource limits exceeded"].iter().any(|lacking| text.contains(lacking))
}

/// History of a manifest.
const FUNCTION_REVISIONS: i64 = 32;

/// The name of a function's durable consumer, on any stream.
pub fn consumer_name(function: &Name) -> String {
    format!("nerve-{function}")
}

impl Bus {
    /// Creates and migrates all streams and buckets. Idempotent, even if two machines run it concurrently.
    ///
    /// `disk` is the size of the broker's disk, if known.
    pub async fn provision(&self, config: &StreamsConfig, disk: Option<u64>) -> Result<(), BusError> {
        // First, because it determines whether an earlier version of Nerve created the streams.
        self.ensure_progress_bucket(config).await?;
        let keep = [
            (EVENTS, vec!["events.>".to_owned(), format!("{EMPTY_PREFIX}>")], config.events_max_age),
            (ANSWERS, vec!["answers.>".to_owned()], config.answers_max_age),
            (DEAD, vec!["dead.>".to_owned(), format!("{REDRIVE_PREFIX}>")], config.dead_max_age),
            (LOGS, vec!["logs.>".to_owned()], config.logs_max_age),
            (TIMERS, vec!["timers.>".to_owned()], config.timers_max_age),
            (ATTEMPTS, vec!["attempts.>".to_owned()], config.attempts_max_age),
            // A failed event may wait for its next attempt as long as a delayed one.
            (RUNS, vec!["runs.>".to_owned()], config.timers_max_age),
            // Unused without a window.
            (SEEN, vec!["seen.>".to_owned()], config.seen_window.max(config.dedupe_window)),
        ];
        for (name, subjects, max_age) in keep {
            let mut max_bytes = max_bytes_of(name, config);
            // The broker reserves the bytes immediately, and may have fewer.
            while let Err(error) = self.ensure_stream(name, subjects.clone(), (max_age, max_bytes), config).await {
                if !lacks_storage(&error) || name == EVENTS || max_bytes <= 0 {
                    return Err(error);
                }
                let half = max_bytes / 2;
                max_bytes = if half >= MIN_STREAM_BYTES { half } else { -1 };
            }
            let asked = max_bytes_of(name, config);
            if max_bytes != asked {
                tracing::info!(
                    stream = name,
                    asked,
                    max_bytes,
                    "the broker cannot reserve the requested bytes; using a smaller limit"
                );
            }
        }
        self.ensure_drops(config).await?;
        let bucket = |name, history| Bucket { name, history, max_age: Duration::ZERO, config, disk };
        for (name, history) in [(FUNCTIONS, FUNCTION_REVISIONS), (SECRETS, 1), (VIEWS, 1)] {
            self.ensure_bucket(bucket(name, history)).await?;
        }
        // A body outlives the event with its reference, and its dead letter.
        let bodies_max_age = if config.events_max_age.is_zero() || config.dead_max_age.is_zero() {
            Duration::ZERO
        } else {
            config.events_max_age + config.dead_max_age
        };
        self.ensure_bucket(Bucket { max_age: bodies_max_age, ..bucket(BODIES, 0) }).await?;
        self.ensure_bucket(bucket(ARTIFACTS, 0)).await
    }

    async fn ensure_stream(
        &self,
        name: &str,
        subjects: Vec<String>,
        (max_age, max_bytes): (Duration, i64),
        config: &StreamsConfig,
    ) -> Result<(), BusError> {
        let what = || format!("creating the stream {name}");
        // A dead letter is never evicted for another one; if the broker rejects it, its function keeps the event.
        let refuses = max_bytes > 0 && matches!(name, EVENTS | DEAD);
        let wanted = stream::Config {
            name: name.to_owned(),
            subjects,
            max_age,
            max_bytes,
            max_messages: match name {
                ATTEMPTS => config.attempts_max,
                SEEN => SEEN_MESSAGES,
                _ => -1,
            },
            max_messages_per_subject: if name == RUNS { 1 } else { -1 },
            num_replicas: config.replicas,
            duplicate_window: if max_age.is_zero() { config.dedupe_window } else { config.dedupe_window.min(max_age) },
            allow_direct: true,
            allow_message_ttl: true,
            allow_atomic_publish: true,
            allow_batch_publish: name == EVENTS,
            // In a stream with schedules the broker rejects nothing (`discard = new`).
            allow_message_schedules: name == TIMERS,
            storage: stream::StorageType::File,
            discard: if refuses { stream::DiscardPolicy::New } else { stream::DiscardPolicy::Old },
            ..<_>::default()
        };
        match self.jetstream.get_stream(name).await {
            Ok(existing) => {
                // Placement, compression and mirroring by an operator are kept; required settings are enforced.
                let current = existing.cached_info().config.clone();
                // An earlier version created EVENTS with schedules, which cannot be removed and exclude `discard = new`. The
                // broker has no limit there, since it would drop unfinished events: the trimmer enforces it.
                let (max_bytes, discard) = match (name, current.allow_message_schedules) {
                    (EVENTS, true) => (-1, stream::DiscardPolicy::Old),
                    (EVENTS | DEAD, _) => (wanted.max_bytes, wanted.discard),
                    _ => (wanted.max_bytes, current.discard),
                };
                let migrated = stream::Config {
                    subjects: wanted.subjects,
                    max_age: wanted.max_age,
                    max_bytes,
                    discard,
                    max_messages: if matches!(name, ATTEMPTS | SEEN) {
                        wanted.max_messages
                    } else {
                        current.max_messages
                    },
                    num_replicas: wanted.num_replicas,
                    duplicate_window: wanted.duplicate_window,
                    allow_direct: true,
                    allow_message_ttl: true,
                    allow_atomic_publish: true,
                    allow_batch_publish: wanted.allow_batch_publish,
                    allow_message_schedules: wanted.allow_message_schedules || current.allow_message_schedules,
                    ..current.clone()
                };
                if migrated == current {
                    return Ok(());
                }
                self.jetstream.update_stream(migrated).await.map_err(|error| BusError::of_jetstream(what(), error))?;
            }
            Err(_) => {
                self.jetstream
                    .get_or_create_stream(wanted)
                    .await
                    .map_err(|error| BusError::of_jetstream(what(), error))?;
            }
        }
        Ok(())
    }
}

impl BusError {
    /// The error of a failed stream change: a refusal by JetStream is permanent, all else is transient.
    pub(super) fn of_jetstream(what: impl Into<String>, error: impl Into<async_nats::Error>) -> Self {
        let error = error.into();
        match refusal_of(error.as_ref()) {
            Some(refusal) => Self::of_refusal(what, refusal),
            None => Self::unavailable(what, error),
        }
    }

    /// The error for a refusal by JetStream.
    pub(super) fn of_refusal(what: impl Into<String>, refusal: jetstream::Error) -> Self {
        let code = refusal.error_code();
        let stays = [
            ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED,
            ErrorCode::JETSTREAM_NOT_ENABLED,
            ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT,
        ];
        // Cluster servers that have not joined yet would be peers.
        let of_request = (400..500).contains(&refusal.code()) && code != ErrorCode::CLUSTER_NO_PEERS;
        if of_request || stays.contains(&code) {
            Self::refused(what, refusal)
        } else {
            Self::unavailable(what, refusal)
        }
    }
}

/// JetStream's own error in the chain, if any.
fn refusal_of(error: &(dyn std::error::Error + 'static)) -> Option<jetstream::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(CreateStreamErrorKind::JetStream(refusal)) =
            error.downcast_ref::<CreateStreamError>().map(CreateStreamError::kind)
        {
            return Some(refusal);
        }
        next = error.source();
    }
    None
}

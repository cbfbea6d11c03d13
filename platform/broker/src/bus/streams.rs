//! The streams and buckets, made where they are missing and brought up to date where they are older.

use super::{ATTEMPTS, Bus, BusError, TIMERS, buckets::Bucket};
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
/// Dead letters, and those on their way back to a function.
pub const DEAD: &str = "DEAD";
/// What functions say.
pub const LOGS: &str = "LOGS";
/// Marks of the webhooks that were taken in.
pub const SEEN: &str = "SEEN";
/// KV: what is deployed.
pub const FUNCTIONS: &str = "functions";
/// KV: sealed secrets.
pub const SECRETS: &str = "secrets";
/// KV: how far each durable consumer is.
pub(super) const PLACES: &str = "places";
/// Stream: what is remembered of runs that did not end well.
pub(super) const RUNS: &str = "RUNS";
/// KV: projections.
pub(super) const VIEWS: &str = "views";
/// Object Store: deployed files.
pub const ARTIFACTS: &str = "artifacts";
/// Object Store: bodies too large for a message.
pub(super) const BODIES: &str = "bodies";

/// A dead letter on its way back to one function is on this and the function's name.
///
/// It stands in DEAD rather than in EVENTS, so that no other function sees the event a second time.
pub const REDRIVE_PREFIX: &str = "redrive.";

/// In EVENTS: that a run of a function had no results is on this and the function's name.
///
/// It stands in EVENTS as results do, so that the broker compares its id with theirs.
pub(super) const EMPTY_PREFIX: &str = "empty.";

/// Messages in SEEN: with one mark each they are as many as a gateway holds.
const SEEN_MESSAGES: i64 = 1 << 20;

/// Bytes that SEEN may take: its messages are small.
const SEEN_BYTES: i64 = 256 << 20;
/// Bytes that RUNS may take: one record a run that did not end well.
const RUNS_BYTES: i64 = 256 << 20;
/// The least that a stream is bounded by where the broker has no more to set aside.
const LEAST_BYTES: i64 = 16 << 20;

/// The bytes that a stream may take; -1 for no bound.
///
/// Of EVENTS the trimmer keeps it unless events are refused. Results come behind the events that they are of, which are
/// acknowledged only once these are stored: a broker that refused both would never have room again. TIMERS has none: the broker can
/// refuse nothing there, and would remove events that are to be delivered. Intake bounds what is there.
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

/// Whether the broker has not so many bytes to set aside.
pub(super) fn lacks_storage(error: &BusError) -> bool {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    let lacking = [ErrorCode::STORAGE_RESOURCES_EXCEEDED, ErrorCode::INSUFFICIENT_RESOURCES];
    causes.into_iter().any(|cause| {
        let refused = cause.downcast_ref::<jetstream::Error>().map(jetstream::Error::error_code);
        refused.is_some_and(|code| lacking.contains(&code)) || says_lacking(&cause.to_string())
    })
}

fn says_lacking(text: &str) -> bool {
    ["insufficient storage", "resource limits exceeded"].iter().any(|lacking| text.contains(lacking))
}

/// Versions of a manifest that are kept.
const HISTORY: i64 = 32;

/// The durable consumer of a function, on whichever stream it is bound to.
pub fn consumer_name(function: &Name) -> String {
    format!("nerve-{function}")
}

impl Bus {
    /// Makes and migrates every stream and bucket. Running it twice, or on two machines at once, changes nothing more.
    ///
    /// `disk` is the size of the broker's disk, where it is known.
    pub async fn provision(&self, config: &StreamsConfig, disk: Option<u64>) -> Result<(), BusError> {
        // First, as it tells whether the streams are an older Nerve's.
        self.ensure_places(config).await?;
        let keep = [
            (EVENTS, vec!["events.>".to_owned(), format!("{EMPTY_PREFIX}>")], config.events_max_age),
            (ANSWERS, vec!["answers.>".to_owned()], config.answers_max_age),
            (DEAD, vec!["dead.>".to_owned(), format!("{REDRIVE_PREFIX}>")], config.dead_max_age),
            (LOGS, vec!["logs.>".to_owned()], config.logs_max_age),
            (TIMERS, vec!["timers.>".to_owned()], config.timers_max_age),
            (ATTEMPTS, vec!["attempts.>".to_owned()], config.attempts_max_age),
            // An event that fails may wait for its next attempt as long as one that is delayed.
            (RUNS, vec!["runs.>".to_owned()], config.timers_max_age),
            // Without a window nothing is written there.
            (SEEN, vec!["seen.>".to_owned()], config.seen_window.max(config.dedupe_window)),
        ];
        for (name, subjects, max_age) in keep {
            let mut max_bytes = max_bytes_of(name, config);
            // The broker sets them aside at once, and may have less.
            while let Err(error) = self.ensure_stream(name, subjects.clone(), (max_age, max_bytes), config).await {
                if !lacks_storage(&error) || name == EVENTS || max_bytes <= 0 {
                    return Err(error);
                }
                let half = max_bytes / 2;
                max_bytes = if half >= LEAST_BYTES { half } else { -1 };
            }
            let asked = max_bytes_of(name, config);
            if max_bytes != asked {
                tracing::info!(stream = name, asked, max_bytes, "the broker has fewer bytes to set aside than asked");
            }
        }
        self.ensure_drops(config).await?;
        let bucket = |name, history| Bucket { name, history, max_age: Duration::ZERO, config, disk };
        for (name, history) in [(FUNCTIONS, HISTORY), (SECRETS, 1), (VIEWS, 1)] {
            self.ensure_bucket(bucket(name, history)).await?;
        }
        // A body outlives the event that refers to it, and its dead letter.
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
        let what = || format!("making the stream {name}");
        // A dead letter is never removed for another one, and what the broker does not take stays with its function.
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
            // The broker refuses nothing (`discard = new`) in a stream with schedules.
            allow_message_schedules: name == TIMERS,
            storage: stream::StorageType::File,
            discard: if refuses { stream::DiscardPolicy::New } else { stream::DiscardPolicy::Old },
            ..<_>::default()
        };
        match self.jetstream.get_stream(name).await {
            Ok(existing) => {
                // What an operator placed, compressed or mirrored stays as it is; what the contracts need is set.
                let current = existing.cached_info().config.clone();
                // An older Nerve made EVENTS with schedules, which cannot be taken away, nor go with `discard = new`. There
                // the broker has no bound, since it would drop events that nobody has finished: the trimmer keeps it.
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
    /// A change of a stream that failed: what JetStream refuses stays refused, and all else may pass.
    pub(super) fn of_jetstream(what: impl Into<String>, error: impl Into<async_nats::Error>) -> Self {
        let error = error.into();
        match refusal_of(error.as_ref()) {
            Some(refusal) => Self::of_refusal(what, refusal),
            None => Self::unavailable(what, error),
        }
    }

    /// What JetStream itself says.
    pub(super) fn of_refusal(what: impl Into<String>, refusal: jetstream::Error) -> Self {
        let code = refusal.error_code();
        let stays = [
            ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED,
            ErrorCode::JETSTREAM_NOT_ENABLED,
            ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT,
        ];
        // Servers of a cluster that are still to come would be peers.
        let of_request = (400..500).contains(&refusal.code()) && code != ErrorCode::CLUSTER_NO_PEERS;
        if of_request || stays.contains(&code) {
            Self::refused(what, refusal)
        } else {
            Self::unavailable(what, refusal)
        }
    }
}

/// JetStream's own error, anywhere in the chain.
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

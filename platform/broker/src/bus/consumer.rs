//! The durable consumer of a function: created at its stored progress, or else at the end of its stream.

use super::error::ResultExt as _;
use super::{
    Bus, BusError, DEAD, TIMERS, consumer_name,
    progress::{BoundConsumer, ConsumerProgress, finished_up_to, name_of},
};
use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, Info, pull},
    context::{ConsumerInfoErrorKind, GetStreamErrorKind},
    stream::{ConsumerCreateStrictErrorKind, ConsumerUpdateErrorKind, RetentionPolicy, Stream},
};
use nerve_core::Name;
use serde::Serialize;
use std::time::Duration;
use time::{OffsetDateTime, macros::datetime};

/// Deliveries of one function in flight over all workers.
pub const MAX_ACK_PENDING: i64 = 65_536;
/// Attempts to bind a consumer that other processes create or delete concurrently.
const MAX_TRIES: usize = 5;
/// Consumer metadata of an earlier version of Nerve: the first sequence.
const LEGACY_START_KEY: &str = "nerve-begins";
/// Pause deadline of a consumer that an earlier version of Nerve had not yet moved to its start.
const LEGACY_PAUSED_UNTIL: OffsetDateTime = datetime!(2222-02-22 22:22:22 UTC);

/// The start of a new consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartPosition {
    /// New messages only; on a work-queue or interest stream, all that it holds.
    New,
    /// All messages of the stream.
    All,
}

/// The configuration of a durable consumer.
pub struct ConsumerSpec<'s> {
    /// The stream.
    pub stream: &'s str,
    /// Its name, without the suffix of a replay.
    pub consumer: String,
    /// The description in the broker's consumer list.
    pub description: String,
    /// Subjects of the stream to deliver.
    pub subjects: Vec<String>,
    /// Time after which an unacknowledged delivery is redelivered.
    pub ack_wait: Duration,
    /// Deliveries in flight over all workers; 1 keeps the order.
    pub in_flight: i64,
    /// The first message to deliver.
    pub beginning: StartPosition,
}

impl ConsumerSpec<'_> {
    fn config(&self, name: &str, deliver_policy: DeliverPolicy) -> pull::Config {
        pull::Config {
            durable_name: Some(name.to_owned()),
            description: Some(self.description.clone()),
            deliver_policy,
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.ack_wait,
            // The worker counts attempts and writes the dead letter; the server would drop the message silently.
            max_deliver: -1,
            max_ack_pending: self.in_flight,
            filter_subjects: self.subjects.clone(),
            ..<_>::default()
        }
    }
}

impl Bus {
    /// Creates or updates the consumer of a function on one stream.
    ///
    /// # Errors
    /// [`BusError::Refused`] if the broker rejects the consumer, with its reason.
    pub async fn ensure_consumer(
        &self,
        stream: &str,
        function: &Name,
        subjects: Vec<String>,
        ack_wait: Duration,
    ) -> Result<(), BusError> {
        let beginning = if matches!(stream, DEAD | TIMERS) { StartPosition::All } else { StartPosition::New };
        let description = format!("Nerve's function {function}");
        let consumer = consumer_name(function);
        self.bind(ConsumerSpec {
            stream,
            consumer,
            description,
            subjects,
            ack_wait,
            in_flight: MAX_ACK_PENDING,
            beginning,
        })
        .await
    }

    /// Creates or updates a durable consumer, at its stored progress if there is one.
    pub async fn bind(&self, binding: ConsumerSpec<'_>) -> Result<(), BusError> {
        let (stream, base) = (binding.stream, binding.consumer.as_str());
        let what = || format!("creating the consumer {base} on {stream}");
        for _ in 0..MAX_TRIES {
            // Read before the consumer is created, so that messages that arrive meanwhile are not skipped.
            let handle = self.stream(stream, what).await?;
            let known = self.progress(stream, base).await?;
            let suffix =
                known.as_ref().map_or("", |(progress, _): &(ConsumerProgress, u64)| progress.consumer.as_str());
            let name = name_of(base, suffix);
            let existing = consumer_of(&handle, &name, what).await?;
            let (known, revision) = known.unzip();
            let wanted = initial_progress(&binding, &handle, known.as_ref(), existing.as_ref());
            let changed = known.as_ref() != Some(&wanted);
            if known.as_ref().is_some_and(|progress| progress.consumer != wanted.consumer) {
                match self.restore(&handle, &binding, &wanted, revision).await? {
                    true => return Ok(()),
                    false => continue,
                }
            }
            if changed && !self.put_progress((stream, base), &wanted, revision).await? {
                continue;
            }
            if existing.as_ref().is_some_and(is_incomplete_legacy_consumer) {
                // The stored progress determines the start.
                handle.delete_consumer(&name).await.unavailable(what)?;
                continue;
            }
            let done = match &existing {
                Some(existing) => update(&handle, &binding, existing, what).await,
                None => create(&handle, &binding, &wanted, what).await,
            };
            if let (Err(BusError::Refused { .. }), None) = (&done, &known) {
                self.delete_progress(stream, base).await?;
            }
            if done? {
                if let (Some(existing), None, DEAD) = (&existing, &known, stream) {
                    self.purge_finished_redrives(&handle, &binding, existing).await;
                }
                return Ok(());
            }
        }
        Err(BusError::unavailable(what(), "other processes create and delete it concurrently"))
    }

    /// Recreates the consumer under the name in its progress; returns `false` if another process has done so.
    ///
    /// The consumer is created before its progress names it. Otherwise another process would find progress without a consumer and
    /// restore it again, and nobody would pull from the first one.
    async fn restore(
        &self,
        stream: &Stream,
        binding: &ConsumerSpec<'_>,
        progress: &ConsumerProgress,
        after: Option<u64>,
    ) -> Result<bool, BusError> {
        let base = binding.consumer.as_str();
        let name = name_of(base, &progress.consumer);
        let what = || format!("creating the consumer {name} on {}", binding.stream);
        if !create(stream, binding, progress, what).await? {
            return Ok(false);
        }
        if !self.put_progress((binding.stream, base), progress, after).await? {
            stream.delete_consumer(&name).await.unavailable(what)?;
            return Ok(false);
        }
        if let Some(restored) = &progress.restored {
            tracing::warn!(stream = binding.stream, consumer = name, from = restored.from, "{}", restored.reason);
        }
        Ok(true)
    }

    /// Finds the consumer to pull from.
    ///
    /// # Errors
    /// [`BusError::NotFound`] if there is none: bind it.
    pub async fn bound(&self, stream: &str, base: &str) -> Result<BoundConsumer, BusError> {
        let what = || format!("finding the consumer {base} of {stream}");
        let missing = || BusError::NotFound(format!("consumer {base} of stream {stream}"));
        let (progress, _) = self.progress(stream, base).await?.ok_or_else(missing)?;
        let handle = self.stream(stream, what).await?;
        if handle.cached_info().created != progress.stream_created {
            return Err(missing());
        }
        let info = consumer_of(&handle, &name_of(base, &progress.consumer), what).await?.ok_or_else(missing)?;
        Ok(BoundConsumer::new(stream, base, progress, info.created))
    }

    /// The unfinished messages of the consumer `base` of `stream`; `None` if there are none or the consumer does not exist.
    ///
    /// # Errors
    /// If the broker does not respond.
    pub async fn unfinished(&self, stream: &str, base: &str) -> Result<Option<UnfinishedMessages>, BusError> {
        let what = || format!("inspecting the consumer {base} of {stream}");
        let Some((progress, _)) = self.progress(stream, base).await? else { return Ok(None) };
        let handle = match self.stream(stream, what).await {
            Ok(handle) => handle,
            Err(BusError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let info = consumer_of(&handle, &name_of(base, &progress.consumer), what).await?;
        let unfinished = info.map(|info| UnfinishedMessages {
            messages: info.num_pending + u64::try_from(info.num_ack_pending).unwrap_or(u64::MAX),
            from: finished_up_to(&info) + 1,
        });
        Ok(unfinished.filter(|unfinished| unfinished.messages > 0))
    }

    /// Deletes a consumer and its progress.
    pub async fn unbind(&self, stream: &str, base: &str) -> Result<(), BusError> {
        let suffix = self.progress(stream, base).await?.map(|(progress, _)| progress.consumer).unwrap_or_default();
        let name = name_of(base, &suffix);
        if let Err(error) = self.jetstream.delete_consumer_from_stream(&name, stream).await {
            // The consumer or its stream is already gone.
            tracing::debug!(%error, stream, name, "the consumer to delete does not exist");
        }
        self.delete_progress(stream, base).await
    }

    pub(super) async fn stream(&self, name: &str, what: impl Fn() -> String) -> Result<Stream, BusError> {
        self.jetstream.get_stream(name).await.map_err(|error| match error.kind() {
            GetStreamErrorKind::JetStream(why)
                if why.error_code() == async_nats::jetstream::ErrorCode::STREAM_NOT_FOUND =>
            {
                BusError::NotFound(format!("stream {name}"))
            }
            GetStreamErrorKind::JetStream(why) => BusError::of_refusal(what(), why),
            _ => BusError::unavailable(what(), error),
        })
    }

    /// Deletes finished redrives: an earlier version of Nerve left them in DEAD, where they would be listed as in progress.
    async fn purge_finished_redrives(&self, stream: &Stream, binding: &ConsumerSpec<'_>, existing: &Info) {
        for subject in &binding.subjects {
            let purged = stream.purge().filter(subject.as_str()).sequence(existing.ack_floor.stream_sequence + 1).await;
            if let Err(error) = purged {
                tracing::warn!(%error, subject, "cannot delete finished redrives; they stay listed");
            }
        }
    }
}

/// The unfinished messages of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct UnfinishedMessages {
    /// Waiting messages, running messages, and messages between attempts.
    pub messages: u64,
    /// The sequence of the first one.
    pub from: u64,
}

/// The progress that a consumer should have.
fn initial_progress(
    binding: &ConsumerSpec<'_>,
    stream: &Stream,
    known: Option<&ConsumerProgress>,
    existing: Option<&Info>,
) -> ConsumerProgress {
    let info = stream.cached_info();
    let last = info.state.last_sequence;
    match (known, existing) {
        (Some(progress), _) if progress.stream_created != info.created => {
            let reason = "the stream was deleted and recreated; it is read from its beginning";
            ConsumerProgress::before(1, info.created).restored(1, 0, reason)
        }
        (Some(progress), Some(_)) => progress.clone(),
        (Some(progress), None) => {
            let reason = "the consumer was deleted; it continues from its last known progress";
            progress.clone().restored(progress.done + 1, last, reason)
        }
        (None, Some(existing)) => {
            let beginning = existing.config.metadata.get(LEGACY_START_KEY).and_then(|at| at.parse().ok());
            let half_made = beginning.filter(|_| is_incomplete_legacy_consumer(existing));
            let progress = ConsumerProgress::before(half_made.unwrap_or(finished_up_to(existing) + 1), info.created);
            ConsumerProgress { delivered_by_older: existing.delivered.stream_sequence, ..progress }
        }
        (None, None) => {
            let all = binding.beginning == StartPosition::All || info.config.retention != RetentionPolicy::Limits;
            ConsumerProgress::before(if all { 1 } else { last + 1 }, info.created)
        }
    }
}

/// Creates a consumer; returns `false` if another process has.
async fn create(
    stream: &Stream,
    binding: &ConsumerSpec<'_>,
    progress: &ConsumerProgress,
    what: impl Fn() -> String,
) -> Result<bool, BusError> {
    // A work-queue stream accepts no other policy; it holds exactly the unacknowledged messages.
    let policy = match stream.cached_info().config.retention {
        RetentionPolicy::WorkQueue => DeliverPolicy::All,
        _ => DeliverPolicy::ByStartSequence { start_sequence: progress.done + 1 },
    };
    let config = binding.config(&name_of(&binding.consumer, &progress.consumer), policy);
    match stream.create_consumer_strict(config).await {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            ConsumerCreateStrictErrorKind::AlreadyExists => Ok(false),
            ConsumerCreateStrictErrorKind::JetStream(why) => Err(BusError::refused(what(), why)),
            _ => Err(BusError::unavailable(what(), error)),
        },
    }
}

/// Updates a consumer; returns `false` if it does not exist.
async fn update(
    stream: &Stream,
    binding: &ConsumerSpec<'_>,
    existing: &Info,
    what: impl Fn() -> String,
) -> Result<bool, BusError> {
    // The broker cannot change the policy.
    let config = binding.config(&existing.name, existing.config.deliver_policy);
    match stream.update_consumer(config).await {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            ConsumerUpdateErrorKind::DoesNotExist => Ok(false),
            ConsumerUpdateErrorKind::JetStream(why) => Err(BusError::refused(what(), why)),
            _ => Err(BusError::unavailable(what(), error)),
        },
    }
}

/// The broker's information about a consumer; `None` if it does not exist.
pub(super) async fn consumer_of(
    stream: &Stream,
    name: &str,
    what: impl Fn() -> String,
) -> Result<Option<Info>, BusError> {
    match stream.consumer_info(name).await {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(None),
        Err(error) => Err(BusError::unavailable(what(), error)),
    }
}

/// Returns whether an earlier version of Nerve stopped before it had moved this consumer to its start.
fn is_incomplete_legacy_consumer(info: &Info) -> bool {
    info.config.pause_until == Some(LEGACY_PAUSED_UNTIL)
}

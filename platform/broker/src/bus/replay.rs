//! Moves a function back to an earlier sequence of its stream, to receive its events again.

use super::error::ResultExt as _;
use super::{Bus, BusError, Start, consumer::consumer_of, consumer_name, progress::name_of, resolve::filters_of};
use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, Info, pull},
    stream::Stream,
};
use futures::StreamExt;
use nerve_core::{Generation, Name, Pattern};
use serde::Serialize;
use std::time::Duration;
use time::OffsetDateTime;
use uuid::Uuid;

/// Lifetime of a probe consumer that was not deleted.
const PROBE_LIFETIME: Duration = Duration::from_secs(30);
/// Attempts to write progress that other processes write concurrently.
const MAX_TRIES: usize = 5;

/// A planned replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replay {
    /// The function.
    pub function: Name,
    /// The stream of its events.
    pub stream: String,
    /// The number of its events to replay, as the stream is now.
    pub events: u64,
    /// The sequence of the first one.
    pub from: Option<u64>,
    /// The storage time of the first one.
    #[serde(with = "time::serde::rfc3339::option")]
    pub time: Option<OffsetDateTime>,
    /// The first and last requested sequence that are no longer in the stream.
    pub gone: Option<(u64, u64)>,
    /// Whether it begins earlier than requested, because the function has unfinished events before.
    pub unfinished: bool,
    /// The sequence of the first requested event; from there on events run in a new generation.
    #[serde(skip)]
    pub asked: Option<u64>,
}

impl Bus {
    /// Plans a replay of a stream's events on `subjects` for `function`, and changes nothing.
    pub async fn plan_replay(
        &self,
        function: &Name,
        stream: &str,
        subjects: &[Pattern],
        start: Start,
    ) -> Result<Replay, BusError> {
        let what = || format!("finding the events of {function} in {stream}");
        let handle = self.stream(stream, what).await?;
        let info = self.function_consumer(&handle, function, what).await?;
        let state = &handle.cached_info().state;
        let (first, last) = (state.first_sequence.max(1), state.last_sequence);
        let policy = match start {
            Start::First => DeliverPolicy::ByStartSequence { start_sequence: first },
            Start::Time(start_time) => DeliverPolicy::ByStartTime { start_time },
            Start::Sequence(at) if at <= last => DeliverPolicy::ByStartSequence { start_sequence: at.max(first) },
            Start::New | Start::Sequence(_) => {
                return Err(BusError::refused(what(), format!("the stream ends at the sequence {last}")));
            }
        };
        let gone = match start {
            Start::Sequence(at) if at < first => Some((at, first - 1)),
            _ => None,
        };
        let subjects: Vec<String> = subjects.iter().map(ToString::to_string).collect();
        let mut found = count_from(&handle, &subjects, policy, what).await?;
        let mut unfinished = false;
        // Everything before the new start counts as finished: unfinished events before it would be skipped.
        let asked = found.first.map(|(sequence, _)| sequence);
        let waits = info.num_pending > 0 || info.num_ack_pending > 0;
        let undone = info.ack_floor.stream_sequence + 1;
        if let Some((wanted, _)) = found.first.filter(|(wanted, _)| waits && undone < *wanted) {
            found =
                count_from(&handle, &subjects, DeliverPolicy::ByStartSequence { start_sequence: undone }, what).await?;
            unfinished = found.first.is_some_and(|(from, _)| from < wanted);
        }
        Ok(Replay {
            function: function.clone(),
            stream: stream.to_owned(),
            events: found.count,
            from: found.first.map(|(sequence, _)| sequence),
            time: found.first.map(|(_, time)| time),
            gone,
            unfinished,
            asked,
        })
    }

    /// Moves a function back to the start of `replay`, with a new consumer; events in progress are delivered again, too.
    ///
    /// The new consumer is created before the old one is deleted, so no event is skipped. Workers that pull from the old one
    /// learn of its deletion, and find its successor in the function's progress.
    pub async fn replay(&self, replay: &Replay) -> Result<(), BusError> {
        let (Some(from), Some(asked)) = (replay.from, replay.asked) else { return Ok(()) };
        let what = || format!("moving {} back to {from} of {}", replay.function, replay.stream);
        let base = consumer_name(&replay.function);
        let handle = self.stream(&replay.stream, what).await?;
        let old = self.function_consumer(&handle, &replay.function, what).await?;
        let id = Uuid::now_v7().simple().to_string();
        let config = pull::Config {
            durable_name: Some(name_of(&base, &id)),
            description: old.config.description.clone(),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
            ack_policy: AckPolicy::Explicit,
            ack_wait: old.config.ack_wait,
            max_deliver: -1,
            max_ack_pending: old.config.max_ack_pending,
            filter_subject: old.config.filter_subject.clone(),
            filter_subjects: old.config.filter_subjects.clone(),
            ..<_>::default()
        };
        handle.create_consumer_strict(config).await.unavailable(what)?;
        let last = handle.cached_info().state.last_sequence;
        for _ in 0..MAX_TRIES {
            let Some((progress, revision)) = self.progress(&replay.stream, &base).await? else { break };
            let (old, generation) = (name_of(&base, &progress.consumer), Generation::replayed(&id));
            if self.has_unfinished_before(&handle, &old, from, what).await? {
                handle.delete_consumer(&name_of(&base, &id)).await.ok();
                let why = "a concurrent replay has moved it further back: run the command again";
                return Err(BusError::refused(what(), why));
            }
            let progress = progress.replayed((from, asked), last, id.clone(), generation);
            if self.put_progress((&replay.stream, &base), &progress, Some(revision)).await? {
                let deleted = handle.delete_consumer(&old).await;
                return deleted.map(drop).unavailable(what);
            }
        }
        handle.delete_consumer(&name_of(&base, &id)).await.ok();
        Err(BusError::unavailable(what(), "other processes write its progress concurrently"))
    }

    /// Returns whether a consumer has unfinished messages before `from`.
    async fn has_unfinished_before(
        &self,
        stream: &Stream,
        consumer: &str,
        from: u64,
        what: impl Fn() -> String,
    ) -> Result<bool, BusError> {
        let Some(info) = consumer_of(stream, consumer, &what).await? else { return Ok(false) };
        let undone = info.ack_floor.stream_sequence + 1;
        if undone >= from || (info.num_pending == 0 && info.num_ack_pending == 0) {
            return Ok(false);
        }
        let policy = DeliverPolicy::ByStartSequence { start_sequence: undone };
        let found = count_from(stream, &filters_of(&info.config), policy, what).await?;
        Ok(found.first.is_some_and(|(first, _)| first < from))
    }

    /// The function's current consumer.
    async fn function_consumer(
        &self,
        stream: &Stream,
        function: &Name,
        what: impl Fn() -> String,
    ) -> Result<Info, BusError> {
        let base = consumer_name(function);
        let progress = self.progress(&stream.cached_info().config.name, &base).await?;
        let suffix = progress.map(|(progress, _)| progress.consumer).unwrap_or_default();
        let info = consumer_of(stream, &name_of(&base, &suffix), &what).await?;
        info.ok_or_else(|| BusError::NotFound(format!("the consumer of {function}")))
    }
}

/// A range of messages in a stream.
struct MessageRange {
    count: u64,
    first: Option<(u64, OffsetDateTime)>,
}

/// Counts the messages from a sequence on, and reads the position of the first.
async fn count_from(
    stream: &Stream,
    subjects: &[String],
    deliver_policy: DeliverPolicy,
    what: impl Fn() -> String,
) -> Result<MessageRange, BusError> {
    let unavailable = |error: async_nats::Error| BusError::unavailable(what(), error);
    let config = pull::Config {
        deliver_policy,
        ack_policy: AckPolicy::None,
        filter_subjects: subjects.to_vec(),
        headers_only: true,
        memory_storage: true,
        num_replicas: 1,
        inactive_threshold: PROBE_LIFETIME,
        ..<_>::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(|error| unavailable(error.into()))?;
    let count = consumer.cached_info().num_pending;
    let mut first = None;
    if count > 0 {
        let messages = consumer.fetch().max_messages(1).expires(super::REQUEST_TIMEOUT).messages().await;
        let mut messages = messages.map_err(|error| unavailable(error.into()))?;
        if let Some(message) = messages.next().await {
            let message = message.map_err(unavailable)?;
            let progress = message.info().map_err(unavailable)?;
            first = Some((progress.stream_sequence, progress.published));
        }
    }
    if let Err(error) = stream.delete_consumer(&consumer.cached_info().name).await {
        tracing::debug!(%error, "cannot delete a probe consumer; it expires");
    }
    // Counted messages that are missing now were deleted meanwhile.
    Ok(MessageRange { count: if first.is_some() { count } else { 0 }, first })
}

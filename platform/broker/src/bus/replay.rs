//! A function sent back to an earlier place of its stream, to get its events again.

use super::{Bus, BusError, Start, consumer::consumer_of, consumer_name, place::name_of, resolve::filters_of};
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

/// How long the broker keeps the consumer that only looks, if it is not deleted.
const LOOKED: Duration = Duration::from_secs(30);
/// How often a place is written that others write at the same time.
const MAX_TRIES: usize = 5;

/// What a function gets again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replay {
    /// The function.
    pub function: Name,
    /// The stream that its events are in.
    pub stream: String,
    /// How many of its events come again, as the stream is now.
    pub events: u64,
    /// The first of them: its sequence in the stream.
    pub from: Option<u64>,
    /// When that was stored.
    #[serde(with = "time::serde::rfc3339::option")]
    pub time: Option<OffsetDateTime>,
    /// The first and last sequence that were asked for and are no longer in the stream.
    pub gone: Option<(u64, u64)>,
    /// Whether it begins earlier than asked for, since the function has not finished what is before.
    pub unfinished: bool,
    /// The first of those that were asked for: they are run for a generation of their own.
    #[serde(skip)]
    pub asked: Option<u64>,
}

impl Bus {
    /// Finds what `function` would get again of a stream's events on `subjects`, and changes nothing.
    pub async fn plan_replay(
        &self,
        function: &Name,
        stream: &str,
        subjects: &[Pattern],
        start: Start,
    ) -> Result<Replay, BusError> {
        let what = || format!("looking for the events of {function} in {stream}");
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
        let mut found = look(&handle, &subjects, policy, what).await?;
        let mut unfinished = false;
        // All before the place it is sent to counts as done: what it has not finished there would be passed over.
        let asked = found.first.map(|(sequence, _)| sequence);
        let waits = info.num_pending > 0 || info.num_ack_pending > 0;
        let undone = info.ack_floor.stream_sequence + 1;
        if let Some((wanted, _)) = found.first.filter(|(wanted, _)| waits && undone < *wanted) {
            found = look(&handle, &subjects, DeliverPolicy::ByStartSequence { start_sequence: undone }, what).await?;
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

    /// Sends a function back to where `replay` begins, by a consumer of its own; what it has in hand comes again too.
    ///
    /// The new consumer exists before the old one is deleted, so no event is passed over. Workers that pull from the old one are
    /// told that it is gone, and read from the function's place which one has followed it.
    pub async fn replay(&self, replay: &Replay) -> Result<(), BusError> {
        let (Some(from), Some(asked)) = (replay.from, replay.asked) else { return Ok(()) };
        let what = || format!("sending {} back to {from} of {}", replay.function, replay.stream);
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
        let made = handle.create_consumer_strict(config).await;
        made.map_err(|error| BusError::unavailable(what(), error))?;
        let last = handle.cached_info().state.last_sequence;
        for _ in 0..MAX_TRIES {
            let Some((place, revision)) = self.place(&replay.stream, &base).await? else { break };
            let (old, generation) = (name_of(&base, &place.consumer), Generation::replayed(&id));
            if self.has_unfinished_before(&handle, &old, from, what).await? {
                handle.delete_consumer(&name_of(&base, &id)).await.ok();
                let why = "another replay has sent it back further meanwhile: run the command again";
                return Err(BusError::refused(what(), why));
            }
            let place = place.replayed((from, asked), last, id.clone(), generation);
            if self.put_place((&replay.stream, &base), &place, Some(revision)).await? {
                let deleted = handle.delete_consumer(&old).await;
                return deleted.map(drop).map_err(|error| BusError::unavailable(what(), error));
            }
        }
        handle.delete_consumer(&name_of(&base, &id)).await.ok();
        Err(BusError::unavailable(what(), "its place is written by others at the same time"))
    }

    /// Whether a consumer has messages before `from` to finish.
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
        let found = look(stream, &filters_of(&info.config), policy, what).await?;
        Ok(found.first.is_some_and(|(first, _)| first < from))
    }

    /// The function's consumer as it is now.
    async fn function_consumer(
        &self,
        stream: &Stream,
        function: &Name,
        what: impl Fn() -> String,
    ) -> Result<Info, BusError> {
        let base = consumer_name(function);
        let place = self.place(&stream.cached_info().config.name, &base).await?;
        let suffix = place.map(|(place, _)| place.consumer).unwrap_or_default();
        let info = consumer_of(stream, &name_of(&base, &suffix), &what).await?;
        info.ok_or_else(|| BusError::NotFound(format!("the consumer of {function}")))
    }
}

/// Messages that are in a stream.
struct Found {
    count: u64,
    first: Option<(u64, OffsetDateTime)>,
}

/// Counts the messages from a place on, and reads where the first of them is.
async fn look(
    stream: &Stream,
    subjects: &[String],
    deliver_policy: DeliverPolicy,
    what: impl Fn() -> String,
) -> Result<Found, BusError> {
    let unavailable = |error: async_nats::Error| BusError::unavailable(what(), error);
    let config = pull::Config {
        deliver_policy,
        ack_policy: AckPolicy::None,
        filter_subjects: subjects.to_vec(),
        headers_only: true,
        memory_storage: true,
        num_replicas: 1,
        inactive_threshold: LOOKED,
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
            let place = message.info().map_err(unavailable)?;
            first = Some((place.stream_sequence, place.published));
        }
    }
    if let Err(error) = stream.delete_consumer(&consumer.cached_info().name).await {
        tracing::debug!(%error, "a consumer that only looked goes by itself");
    }
    // What was counted and is not there any more was deleted in between.
    Ok(Found { count: if first.is_some() { count } else { 0 }, first })
}

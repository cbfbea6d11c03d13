//! The durable consumer of a function: made where its place says, or, without one, where its stream ends.

use super::{
    Bus, BusError, DEAD, TIMERS, consumer_name,
    place::{Bound, Place, done_by, name_of},
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

/// Deliveries of one function that may be in flight over all workers.
pub const MAX_ACK_PENDING: i64 = 65_536;
/// How often a consumer is looked at that somebody else makes or deletes at the same time.
const MAX_TRIES: usize = 5;
/// In the metadata of a consumer that an older Nerve made: the sequence that it begins with.
const OLD_BEGINNING: &str = "nerve-begins";
/// Until when an older Nerve paused a consumer that it had not yet sent to its beginning.
const OLD_PAUSE: OffsetDateTime = datetime!(2222-02-22 22:22:22 UTC);

/// What a consumer that was never there begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// With what comes from now on; on a stream whose messages go once they are acknowledged, with all that it holds.
    New,
    /// With all that the stream holds.
    All,
}

/// A durable consumer as it should be.
pub struct Binding<'s> {
    /// The stream.
    pub stream: &'s str,
    /// Its name, without what a replay adds.
    pub consumer: String,
    /// For people who list the broker's consumers.
    pub description: String,
    /// Subjects of the stream to deliver.
    pub subjects: Vec<String>,
    /// Time after which an unacknowledged delivery is redelivered.
    pub ack_wait: Duration,
    /// Deliveries in flight over all workers; one keeps the order.
    pub in_flight: i64,
    /// The first message to deliver.
    pub beginning: Beginning,
}

impl Binding<'_> {
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
    /// Makes or updates the consumer of a function on one stream.
    ///
    /// # Errors
    /// [`BusError::Refused`] where the broker does not take the consumer, with its reason.
    pub async fn ensure_consumer(
        &self,
        stream: &str,
        function: &Name,
        subjects: Vec<String>,
        ack_wait: Duration,
    ) -> Result<(), BusError> {
        let beginning = if matches!(stream, DEAD | TIMERS) { Beginning::All } else { Beginning::New };
        let description = format!("Nerve's function {function}");
        let consumer = consumer_name(function);
        self.bind(Binding { stream, consumer, description, subjects, ack_wait, in_flight: MAX_ACK_PENDING, beginning })
            .await
    }

    /// Makes or updates a durable consumer: where its place says, if it has one.
    pub async fn bind(&self, binding: Binding<'_>) -> Result<(), BusError> {
        let (stream, base) = (binding.stream, binding.consumer.as_str());
        let what = || format!("making the consumer {base} on {stream}");
        for _ in 0..MAX_TRIES {
            // Read before the consumer is made, so that what comes meanwhile is not passed over.
            let handle = self.stream(stream, what).await?;
            let known = self.place(stream, base).await?;
            let suffix = known.as_ref().map_or("", |(place, _): &(Place, u64)| place.consumer.as_str());
            let name = name_of(base, suffix);
            let existing = consumer_of(&handle, &name, what).await?;
            let (known, revision) = known.unzip();
            let wanted = wanted_place(&binding, &handle, known.as_ref(), existing.as_ref());
            let changed = known.as_ref() != Some(&wanted);
            if known.as_ref().is_some_and(|place| place.consumer != wanted.consumer) {
                match self.restore(&handle, &binding, &wanted, revision).await? {
                    true => return Ok(()),
                    false => continue,
                }
            }
            if changed && !self.put_place((stream, base), &wanted, revision).await? {
                continue;
            }
            if existing.as_ref().is_some_and(is_half_made) {
                // Its place says where it begins.
                handle.delete_consumer(&name).await.map_err(|error| BusError::unavailable(what(), error))?;
                continue;
            }
            let done = match &existing {
                Some(existing) => update(&handle, &binding, existing, what).await,
                None => create(&handle, &binding, &wanted, what).await,
            };
            if let (Err(BusError::Refused { .. }), None) = (&done, &known) {
                self.forget_place(stream, base).await?;
            }
            if done? {
                if let (Some(existing), None, DEAD) = (&existing, &known, stream) {
                    self.purge_done_redrives(&handle, &binding, existing).await;
                }
                return Ok(());
            }
        }
        Err(BusError::unavailable(what(), "it is made and deleted by others at the same time"))
    }

    /// Makes the consumer of a place again under the name that the place gives it; `false` if another process has done so.
    ///
    /// The consumer exists before its place names it. Otherwise another process would find a place without its consumer, and
    /// restore it a second time: the first one would be left with nobody to pull from it.
    async fn restore(
        &self,
        stream: &Stream,
        binding: &Binding<'_>,
        place: &Place,
        after: Option<u64>,
    ) -> Result<bool, BusError> {
        let base = binding.consumer.as_str();
        let name = name_of(base, &place.consumer);
        let what = || format!("making the consumer {name} on {}", binding.stream);
        if !create(stream, binding, place, what).await? {
            return Ok(false);
        }
        if !self.put_place((binding.stream, base), place, after).await? {
            stream.delete_consumer(&name).await.map_err(|error| BusError::unavailable(what(), error))?;
            return Ok(false);
        }
        if let Some(restored) = &place.restored {
            tracing::warn!(stream = binding.stream, consumer = name, from = restored.from, "{}", restored.reason);
        }
        Ok(true)
    }

    /// The consumer to pull from.
    ///
    /// # Errors
    /// [`BusError::NotFound`] where there is none: bind it.
    pub async fn bound(&self, stream: &str, base: &str) -> Result<Bound, BusError> {
        let what = || format!("looking for the consumer {base} of {stream}");
        let missing = || BusError::NotFound(format!("consumer {base} of stream {stream}"));
        let (place, _) = self.place(stream, base).await?.ok_or_else(missing)?;
        let handle = self.stream(stream, what).await?;
        if handle.cached_info().created != place.stream_created {
            return Err(missing());
        }
        let info = consumer_of(&handle, &name_of(base, &place.consumer), what).await?.ok_or_else(missing)?;
        Ok(Bound::new(stream, base, place, info.created))
    }

    /// What the consumer `base` of `stream` has not finished; `None` where all of it is, or there is no such consumer.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn unfinished(&self, stream: &str, base: &str) -> Result<Option<Unfinished>, BusError> {
        let what = || format!("looking at the consumer {base} of {stream}");
        let Some((place, _)) = self.place(stream, base).await? else { return Ok(None) };
        let handle = match self.stream(stream, what).await {
            Ok(handle) => handle,
            Err(BusError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let info = consumer_of(&handle, &name_of(base, &place.consumer), what).await?;
        let unfinished = info.map(|info| Unfinished {
            messages: info.num_pending + u64::try_from(info.num_ack_pending).unwrap_or(u64::MAX),
            from: done_by(&info) + 1,
        });
        Ok(unfinished.filter(|unfinished| unfinished.messages > 0))
    }

    /// Deletes a consumer and its place.
    pub async fn unbind(&self, stream: &str, base: &str) -> Result<(), BusError> {
        let suffix = self.place(stream, base).await?.map(|(place, _)| place.consumer).unwrap_or_default();
        let name = name_of(base, &suffix);
        if let Err(error) = self.jetstream.delete_consumer_from_stream(&name, stream).await {
            // It is gone, or its stream is: what was wanted.
            tracing::debug!(%error, stream, name, "the consumer was not there to delete");
        }
        self.forget_place(stream, base).await
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

    /// An older Nerve left redriven messages in DEAD when they were done. They would be listed as on their way.
    async fn purge_done_redrives(&self, stream: &Stream, binding: &Binding<'_>, existing: &Info) {
        for subject in &binding.subjects {
            let purged = stream.purge().filter(subject.as_str()).sequence(existing.ack_floor.stream_sequence + 1).await;
            if let Err(error) = purged {
                tracing::warn!(%error, subject, "redriven events that are done stay listed");
            }
        }
    }
}

/// Messages that a consumer has not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Unfinished {
    /// How many: those that wait, those that run, and those that wait for another attempt.
    pub messages: u64,
    /// The sequence from which on there are such.
    pub from: u64,
}

/// The place that a consumer should have.
fn wanted_place(binding: &Binding<'_>, stream: &Stream, known: Option<&Place>, existing: Option<&Info>) -> Place {
    let info = stream.cached_info();
    let last = info.state.last_sequence;
    match (known, existing) {
        (Some(place), _) if place.stream_created != info.created => {
            let reason = "the stream was deleted and made again; it is read from its beginning";
            Place::before(1, info.created).restored(1, 0, reason)
        }
        (Some(place), Some(_)) => place.clone(),
        (Some(place), None) => {
            let reason = "the consumer was deleted; it goes on from the last known place";
            place.clone().restored(place.done + 1, last, reason)
        }
        (None, Some(existing)) => {
            let beginning = existing.config.metadata.get(OLD_BEGINNING).and_then(|at| at.parse().ok());
            let half_made = beginning.filter(|_| is_half_made(existing));
            let place = Place::before(half_made.unwrap_or(done_by(existing) + 1), info.created);
            Place { delivered_by_older: existing.delivered.stream_sequence, ..place }
        }
        (None, None) => {
            let all = binding.beginning == Beginning::All || info.config.retention != RetentionPolicy::Limits;
            Place::before(if all { 1 } else { last + 1 }, info.created)
        }
    }
}

/// Creates the consumer of a place; `false` if somebody else has.
async fn create(
    stream: &Stream,
    binding: &Binding<'_>,
    place: &Place,
    what: impl Fn() -> String,
) -> Result<bool, BusError> {
    // A work-queue stream takes no other policy; what it holds is what nobody has acknowledged.
    let policy = match stream.cached_info().config.retention {
        RetentionPolicy::WorkQueue => DeliverPolicy::All,
        _ => DeliverPolicy::ByStartSequence { start_sequence: place.done + 1 },
    };
    let config = binding.config(&name_of(&binding.consumer, &place.consumer), policy);
    match stream.create_consumer_strict(config).await {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            ConsumerCreateStrictErrorKind::AlreadyExists => Ok(false),
            ConsumerCreateStrictErrorKind::JetStream(why) => Err(BusError::refused(what(), why)),
            _ => Err(BusError::unavailable(what(), error)),
        },
    }
}

/// Brings a consumer up to date; `false` if it is gone.
async fn update(
    stream: &Stream,
    binding: &Binding<'_>,
    existing: &Info,
    what: impl Fn() -> String,
) -> Result<bool, BusError> {
    // The broker changes no policy.
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

/// What the broker knows of a consumer; `None` where there is none.
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

/// Whether an older Nerve died before it had sent this consumer to its beginning.
fn is_half_made(info: &Info) -> bool {
    info.config.pause_until == Some(OLD_PAUSE)
}

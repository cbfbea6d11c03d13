//! What comes later: retries of sinks and functions, and the ticks of schedules.
//!
//! The broker keeps the time, by JetStream's message schedules (ADR-51): a message waits on a subject of its own until
//! it is due, then the broker moves it to its target. Waiting holds no slot, and outlives every worker.

use super::{
    Bus, BusError, Delivery, PublishError,
    provenance::{Provenance, copy_headers},
};
use async_nats::{HeaderMap, header, jetstream::context::PublishErrorKind};
use bytes::Bytes;
use futures::TryStreamExt;
use nerve_core::{Event, Generation, Identity, Name, ScheduleSpec, Subject};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

/// What waits for its time, and what is due.
pub const TIMERS: &str = "TIMERS";

/// The durable consumer of all ticks, which all workers share.
pub const TICKS_CONSUMER: &str = "nerve_schedules";
/// The subjects of all ticks.
pub const TICKS: &str = "timers.tick.*";

/// How the subjects begin of what is due.
pub(super) const DUE_PREFIX: &str = "timers.due.";

/// Keeps a schedule whatever the age of its stream.
const FOREVER: &str = "never";

/// Where a sink or a function takes what is due; no two of them have one name.
pub fn due_subject(taker: &Name) -> String {
    format!("{DUE_PREFIX}{taker}")
}

/// A subject holds one timer: each generation of an event has one of its own, so that none replaces another's.
fn wait_subject(taker: &Name, Provenance { input, generation, .. }: &Provenance) -> String {
    let waits = format!("timers.wait.{taker}.{}.{}", input.stream, input.sequence);
    if generation.as_str().is_empty() { waits } else { format!("{waits}.{}", generation.as_str()) }
}

fn cron_subject(schedule: &Name) -> String {
    format!("timers.cron.{schedule}")
}

fn tick_subject(schedule: &Name) -> String {
    format!("timers.tick.{schedule}")
}

impl Delivery {
    /// Attempts that were made before it was delayed.
    pub fn tried(&self) -> u32 {
        let told = self.message.headers.as_ref().filter(|_| self.stream.as_ref() == TIMERS);
        told.and_then(|headers| headers.get(copy_headers::ATTEMPTS)?.as_str().parse().ok()).unwrap_or_default()
    }

    /// Whether it is a test of its sink.
    pub fn is_trial(&self) -> bool {
        let headers = self.message.headers.as_ref().filter(|_| self.stream.as_ref() == TIMERS);
        headers.is_some_and(|headers| headers.get(copy_headers::TRIAL).is_some())
    }

    /// Delays it until `at`, for the sink or function `taker` alone, and acknowledges it once the broker has stored the copy.
    pub async fn put_off(self, taker: &Name, at: OffsetDateTime, tried: u32) -> Result<(), BusError> {
        let input = &self.provenance.input;
        let what = || format!("delaying message {} of {} for {taker}", input.sequence, input.stream);
        let mut headers = self.provenance.copied(self.message.headers.as_ref(), &self.message.subject);
        headers.insert(copy_headers::ATTEMPTS, tried.to_string());
        let at = at.format(&Rfc3339).map_err(|error| BusError::refused(what(), error))?;
        headers.insert(header::NATS_SCHEDULE, format!("@at {at}"));
        headers.insert(header::NATS_SCHEDULE_TARGET, due_subject(taker));
        let subject =
            Subject::parse(wait_subject(taker, &self.provenance)).map_err(|error| BusError::refused(what(), error))?;
        let id = self.run(taker).delayed((&self.stream, self.sequence, self.delivered));
        stored(self.bus.publish_message(&subject, headers, self.message.payload.clone(), id).await, what)?;
        self.ack().await
    }

    /// Deletes the delayed retry left by a worker that crashed before it acknowledged this delivery.
    pub async fn take_back_retry(&self, taker: &Name) -> Result<(), BusError> {
        self.bus.purge_timers(&wait_subject(taker, &self.provenance)).await
    }
}

fn stored<T>(published: Result<T, PublishError>, what: impl Fn() -> String) -> Result<T, BusError> {
    published.map_err(|error| match error {
        PublishError::Invalid(why) => BusError::refused(what(), why),
        PublishError::Unavailable(source) => BusError::unavailable(what(), source),
    })
}

impl Bus {
    /// Gives a sink one message of a stream once more, and nobody else; its attempts count anew.
    pub async fn redeliver(&self, sink: &Name, stream: &str, sequence: u64) -> Result<(), BusError> {
        let what = || format!("redelivering {sequence} of {stream} to {sink}");
        let handle = self.stream(stream, what).await?;
        let found = match handle.get_raw_message(sequence).await {
            Ok(found) => found,
            Err(error) if error.kind() == async_nats::jetstream::stream::RawMessageErrorKind::NoMessageFound => {
                return Err(BusError::NotFound(format!("{sequence} of {stream}")));
            }
            Err(error) => return Err(BusError::unavailable(what(), error)),
        };
        let generation = Generation::replayed(&Uuid::now_v7().to_string());
        let provenance = Provenance::here(stream.into(), sequence, found.time, generation);
        let headers = provenance.copied(Some(&found.headers), &found.subject);
        self.publish_due(sink, headers, found.payload, what).await
    }

    /// Gives a sink an event that nobody else gets, to try it out. It is posted once, whatever comes of it.
    pub async fn try_sink(&self, sink: &Name, event: &Event) -> Result<(), BusError> {
        let what = || format!("trying the sink {sink}");
        let (mut headers, body) = stored(self.to_message(event).await, what)?;
        headers.insert(copy_headers::TRIAL, "1");
        self.publish_due(sink, headers, body, what).await
    }

    async fn publish_due(
        &self,
        sink: &Name,
        headers: HeaderMap,
        body: Bytes,
        what: impl Fn() -> String,
    ) -> Result<(), BusError> {
        let subject = Subject::parse(due_subject(sink)).map_err(|error| BusError::refused(what(), error))?;
        let id = Identity::of_copy("due", &Uuid::now_v7().to_string());
        stored(self.publish_message(&subject, headers, body, id).await, what).map(drop)
    }

    /// Deletes what was due and is done. One that stays, as the broker did not answer, goes with its age.
    pub(super) async fn forget_due(&self, sequence: u64) {
        let deleted = async {
            let stream = self.jetstream.get_stream_no_info(TIMERS).await.map_err(async_nats::Error::from)?;
            stream.delete_message(sequence).await.map_err(async_nats::Error::from)
        };
        if let Err(error) = deleted.await {
            tracing::debug!(%error, sequence, "a delayed event is done, and its copy stays for a while");
        }
    }

    /// How many events wait for another attempt of a sink or a function.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn delayed(&self, taker: &Name) -> Result<u64, BusError> {
        let what = || format!("counting the delayed events of {taker}");
        let stream = self.stream(TIMERS, what).await?;
        let unavailable = |error: async_nats::Error| BusError::unavailable(what(), error);
        let waiting = stream.info_with_subjects(format!("timers.wait.{taker}.>")).await;
        let waiting = waiting.map_err(|error| unavailable(error.into()))?;
        let count = |sum: u64, (_, messages): (String, usize)| {
            std::future::ready(Ok(sum.saturating_add(u64::try_from(messages).unwrap_or(u64::MAX))))
        };
        waiting.try_fold(0, count).await.map_err(|error| unavailable(error.into()))
    }

    /// Forgets everything that waits for a sink or a function.
    pub async fn purge_delayed(&self, taker: &Name) -> Result<(), BusError> {
        self.purge_timers(&format!("timers.wait.{taker}.>")).await?;
        self.purge_timers(&due_subject(taker)).await
    }

    /// Has the broker tick by a schedule from now on, instead of by whatever it was before.
    pub async fn set_schedule(&self, name: &Name, spec: &ScheduleSpec) -> Result<(), BusError> {
        let what = || format!("setting the schedule {name}");
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_SCHEDULE, spec.cron.as_str());
        headers.insert(header::NATS_SCHEDULE_TARGET, tick_subject(name));
        headers.insert(header::NATS_MESSAGE_TTL, FOREVER);
        if let Some(zone) = &spec.timezone {
            headers.insert(header::NATS_SCHEDULE_TIME_ZONE, zone.as_str());
        }
        let publish = async {
            let sent = self.jetstream.publish_with_headers(cron_subject(name), headers, Bytes::new()).await;
            sent?.await
        };
        match publish.await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == PublishErrorKind::Other => {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                Err(BusError::refused(what(), format!("NATS does not take it: {cause}")))
            }
            Err(error) => Err(BusError::unavailable(what(), error)),
        }
    }

    /// Whether the broker has a schedule of this name.
    pub async fn has_schedule(&self, name: &Name) -> Result<bool, BusError> {
        let what = || format!("looking for the schedule {name}");
        let stream = self.stream(TIMERS, what).await?;
        match stream.get_last_raw_message_by_subject(&cron_subject(name)).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == async_nats::jetstream::stream::LastRawMessageErrorKind::NoMessageFound => {
                Ok(false)
            }
            Err(error) => Err(BusError::unavailable(what(), error)),
        }
    }

    /// Has the broker tick no more by a schedule.
    pub async fn remove_schedule(&self, name: &Name) -> Result<(), BusError> {
        self.purge_timers(&cron_subject(name)).await?;
        self.purge_timers(&tick_subject(name)).await
    }

    async fn purge_timers(&self, filter: &str) -> Result<(), BusError> {
        let what = || format!("purging {filter}");
        let stream = self.stream(TIMERS, what).await?;
        let purged = stream.purge().filter(filter).await;
        purged.map(drop).map_err(|error| BusError::unavailable(what(), error))
    }
}

impl Delivery {
    /// The schedule whose tick it is, and when the broker made it.
    pub fn tick(&self) -> Option<Name> {
        Name::parse(self.message.subject.strip_prefix("timers.tick.")?).ok()
    }
}

//! Delayed messages: retries of sinks and functions, and the ticks of schedules.
//!
//! The broker keeps the time, by JetStream's message schedules (ADR-51): a message waits on its own subject until
//! it is due, then the broker moves it to its target. Waiting occupies no slot, and survives every worker.

use super::error::ResultExt as _;
use super::{Bus, BusError, Delivery, PublishError, TIMERS, headers, provenance::Provenance, streams::DUE_PREFIX};
use async_nats::{HeaderMap, header, jetstream::context::PublishErrorKind};
use bytes::Bytes;
use futures::TryStreamExt;
use nerve_core::{Event, Generation, Identity, Name, ScheduleSpec, Subject};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

/// The durable consumer of all ticks, shared by all workers.
pub const TICKS_CONSUMER: &str = "nerve_schedules";
/// The subjects of all ticks.
pub const TICKS: &str = "timers.tick.*";

/// Disables the expiry of a schedule.
const NEVER_EXPIRES: &str = "never";

/// The subject of due messages for a sink or a function. Their names are distinct.
pub fn due_subject(recipient: &Name) -> String {
    format!("{DUE_PREFIX}{recipient}")
}

/// The subject of one delayed message. Each generation of an event has its own, so that none replaces another.
fn wait_subject(recipient: &Name, Provenance { input, generation, .. }: &Provenance) -> String {
    let waits = format!("timers.wait.{recipient}.{}.{}", input.stream, input.sequence);
    if generation.as_str().is_empty() { waits } else { format!("{waits}.{}", generation.as_str()) }
}

fn cron_subject(schedule: &Name) -> String {
    format!("timers.cron.{schedule}")
}

fn tick_subject(schedule: &Name) -> String {
    format!("timers.tick.{schedule}")
}

impl Delivery {
    /// The attempts made before it was delayed.
    pub fn attempts_made(&self) -> u32 {
        let headers = self.message.headers.as_ref().filter(|_| self.stream.as_ref() == TIMERS);
        headers.and_then(|headers| headers.get(headers::ATTEMPTS)?.as_str().parse().ok()).unwrap_or_default()
    }

    /// Returns whether it is a test delivery to a sink.
    pub fn is_sink_test(&self) -> bool {
        let headers = self.message.headers.as_ref().filter(|_| self.stream.as_ref() == TIMERS);
        headers.is_some_and(|headers| headers.get(headers::SINK_TEST).is_some())
    }

    /// Delays it until `at`, for the sink or function `recipient` only, and acknowledges it once the broker has stored the copy.
    pub async fn delay_until(self, recipient: &Name, at: OffsetDateTime, attempts: u32) -> Result<(), BusError> {
        let input = &self.provenance.input;
        let what = || format!("delaying message {} of {} for {recipient}", input.sequence, input.stream);
        let mut headers = self.provenance.copied(self.message.headers.as_ref(), &self.message.subject);
        headers.insert(headers::ATTEMPTS, attempts.to_string());
        let at = at.format(&Rfc3339).refused(what)?;
        headers.insert(header::NATS_SCHEDULE, format!("@at {at}"));
        headers.insert(header::NATS_SCHEDULE_TARGET, due_subject(recipient));
        let subject = Subject::parse(wait_subject(recipient, &self.provenance)).refused(what)?;
        let id = self.run(recipient).delayed((&self.stream, self.sequence, self.delivered));
        stored(self.bus.publish_message(&subject, headers, self.message.payload.clone(), id).await, what)?;
        self.ack().await
    }

    /// Deletes the delayed retry left by a worker that crashed before acknowledging this delivery.
    pub async fn delete_delayed_retry(&self, recipient: &Name) -> Result<(), BusError> {
        self.bus.purge_timers(&wait_subject(recipient, &self.provenance)).await
    }
}

fn stored<T>(published: Result<T, PublishError>, what: impl Fn() -> String) -> Result<T, BusError> {
    published.map_err(|error| match error {
        PublishError::Invalid(why) => BusError::refused(what(), why),
        PublishError::Unavailable(source) => BusError::unavailable(what(), source),
    })
}

impl Bus {
    /// Delivers one message of a stream to a sink again, with a new attempt count.
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

    /// Delivers a test event to a sink only. It is sent once, whatever the outcome.
    pub async fn test_sink(&self, sink: &Name, event: &Event) -> Result<(), BusError> {
        let what = || format!("testing the sink {sink}");
        let (mut headers, body) = stored(self.to_message(event).await, what)?;
        headers.insert(headers::SINK_TEST, "1");
        self.publish_due(sink, headers, body, what).await
    }

    async fn publish_due(
        &self,
        sink: &Name,
        headers: HeaderMap,
        body: Bytes,
        what: impl Fn() -> String,
    ) -> Result<(), BusError> {
        let subject = Subject::parse(due_subject(sink)).refused(&what)?;
        let id = Identity::of_copy("due", &Uuid::now_v7().to_string());
        stored(self.publish_message(&subject, headers, body, id).await, what).map(drop)
    }

    /// Deletes a finished due message. If the broker does not respond, it expires.
    pub(super) async fn delete_due(&self, sequence: u64) {
        let deleted = async {
            let stream = self.jetstream.get_stream_no_info(TIMERS).await.map_err(async_nats::Error::from)?;
            stream.delete_message(sequence).await.map_err(async_nats::Error::from)
        };
        if let Err(error) = deleted.await {
            tracing::debug!(%error, sequence, "cannot delete a finished delayed event; it expires");
        }
    }

    /// The number of events that wait for another attempt of a sink or a function.
    ///
    /// # Errors
    /// If the broker does not respond.
    pub async fn delayed(&self, recipient: &Name) -> Result<u64, BusError> {
        let what = || format!("counting the delayed events of {recipient}");
        let stream = self.stream(TIMERS, what).await?;
        let unavailable = |error: async_nats::Error| BusError::unavailable(what(), error);
        let waiting = stream.info_with_subjects(format!("timers.wait.{recipient}.>")).await;
        let waiting = waiting.map_err(|error| unavailable(error.into()))?;
        let count = |sum: u64, (_, messages): (String, usize)| {
            std::future::ready(Ok(sum.saturating_add(u64::try_from(messages).unwrap_or(u64::MAX))))
        };
        waiting.try_fold(0, count).await.map_err(|error| unavailable(error.into()))
    }

    /// Deletes all delayed messages of a sink or a function.
    pub async fn purge_delayed(&self, recipient: &Name) -> Result<(), BusError> {
        self.purge_timers(&format!("timers.wait.{recipient}.>")).await?;
        self.purge_timers(&due_subject(recipient)).await
    }

    /// Creates or replaces a schedule in the broker.
    pub async fn set_schedule(&self, name: &Name, spec: &ScheduleSpec) -> Result<(), BusError> {
        let what = || format!("setting the schedule {name}");
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_SCHEDULE, spec.cron.as_str());
        headers.insert(header::NATS_SCHEDULE_TARGET, tick_subject(name));
        headers.insert(header::NATS_MESSAGE_TTL, NEVER_EXPIRES);
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
                Err(BusError::refused(what(), format!("NATS rejects it: {cause}")))
            }
            Err(error) => Err(BusError::unavailable(what(), error)),
        }
    }

    /// Returns whether the broker has a schedule of this name.
    pub async fn has_schedule(&self, name: &Name) -> Result<bool, BusError> {
        let what = || format!("finding the schedule {name}");
        let stream = self.stream(TIMERS, what).await?;
        match stream.get_last_raw_message_by_subject(&cron_subject(name)).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == async_nats::jetstream::stream::LastRawMessageErrorKind::NoMessageFound => {
                Ok(false)
            }
            Err(error) => Err(BusError::unavailable(what(), error)),
        }
    }

    /// Deletes a schedule from the broker.
    pub async fn remove_schedule(&self, name: &Name) -> Result<(), BusError> {
        self.purge_timers(&cron_subject(name)).await?;
        self.purge_timers(&tick_subject(name)).await
    }

    async fn purge_timers(&self, filter: &str) -> Result<(), BusError> {
        let what = || format!("purging {filter}");
        let stream = self.stream(TIMERS, what).await?;
        let purged = stream.purge().filter(filter).await;
        purged.map(drop).unavailable(what)
    }
}

impl Delivery {
    /// The schedule of this tick, if it is one.
    pub fn tick(&self) -> Option<Name> {
        Name::parse(self.message.subject.strip_prefix("timers.tick.")?).ok()
    }
}

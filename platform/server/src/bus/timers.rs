//! What comes later: retries of what sinks deliver, and the ticks of schedules.
//!
//! The broker keeps the time, by JetStream's message schedules (ADR-51): a message waits on a subject of its own until
//! it is due, then the broker moves it to its target. Waiting holds no slot, and outlives every worker.

use super::{Bus, BusError, DEAD, Delivery, PublishError, delivery::dead_headers};
use async_nats::{HeaderMap, header, jetstream::context::PublishErrorKind};
use bytes::Bytes;
use nerve_core::{Event, Name, ScheduleSpec, Subject};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

/// What waits for its time, and what is due.
pub const TIMERS: &str = "TIMERS";

/// The durable consumer of all ticks, which all workers share.
pub(crate) const TICKS_CONSUMER: &str = "nerve_schedules";
/// The subjects of all ticks.
pub(crate) const TICKS: &str = "timers.tick.*";

/// Says that a delivery is a trial: its header holds `1`.
const TRIAL: &str = "Nerve-Trial";
/// Keeps a schedule whatever the age of its stream.
const FOREVER: &str = "never";

/// Where a sink takes what is due.
pub(crate) fn due_subject(sink: &Name) -> String {
    format!("timers.due.{sink}")
}

fn wait_subject(sink: &Name, origin: &Origin) -> String {
    format!("timers.wait.{sink}.{}.{}", origin.stream, origin.sequence)
}

fn cron_subject(schedule: &Name) -> String {
    format!("timers.cron.{schedule}")
}

fn tick_subject(schedule: &Name) -> String {
    format!("timers.tick.{schedule}")
}

/// Where a message first was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) stream: String,
    pub(crate) sequence: u64,
    pub(crate) subject: String,
}

impl Delivery {
    /// Where its event first was, which a retry or a redriven letter says in its headers.
    pub(crate) fn origin(&self) -> Origin {
        let here = || Origin {
            stream: self.stream.clone(),
            sequence: self.sequence,
            subject: self.message.subject.to_string(),
        };
        let text = |name: &str| self.message.headers.as_ref()?.get(name).map(|value| value.as_str().to_owned());
        // Elsewhere these headers are whatever a sender wrote.
        if !self.is_put_off() {
            return here();
        }
        let told = || {
            let sequence = text(dead_headers::SEQUENCE)?.parse().ok()?;
            Some(Origin { stream: text(dead_headers::STREAM)?, sequence, subject: text(dead_headers::SUBJECT)? })
        };
        told().unwrap_or_else(here)
    }

    /// Whether it was put off, redelivered or redriven, and so is in no order any more.
    pub(crate) fn is_put_off(&self) -> bool {
        self.stream == TIMERS || self.stream == DEAD
    }

    /// Attempts that were made before it was put off.
    pub(crate) fn tried(&self) -> u32 {
        let told = self.message.headers.as_ref().filter(|_| self.stream == TIMERS);
        told.and_then(|headers| headers.get(dead_headers::ATTEMPTS)?.as_str().parse().ok()).unwrap_or_default()
    }

    /// Whether somebody tries out the sink with it.
    pub(crate) fn is_trial(&self) -> bool {
        self.stream == TIMERS && self.message.headers.as_ref().is_some_and(|headers| headers.get(TRIAL).is_some())
    }

    /// Puts it off until `at`, for `sink` alone, and acknowledges it once the broker has that.
    pub(crate) async fn put_off(self, sink: &Name, at: OffsetDateTime, tried: u32) -> Result<(), BusError> {
        let origin = self.origin();
        let what = || format!("putting off message {} of {} for {sink}", origin.sequence, origin.stream);
        let mut headers = carried(self.message.headers.as_ref(), &origin);
        headers.insert(dead_headers::ATTEMPTS, tried.to_string());
        let at = at.format(&Rfc3339).map_err(|error| BusError::refused(what(), error))?;
        headers.insert(header::NATS_SCHEDULE, format!("@at {at}"));
        headers.insert(header::NATS_SCHEDULE_TARGET, due_subject(sink));
        let subject = Subject::parse(wait_subject(sink, &origin)).map_err(|error| BusError::refused(what(), error))?;
        let id = format!("wait:{sink}:{}:{}:{}:{tried}", self.stream, self.sequence, self.attempt);
        stored(self.bus.publish_message(&subject, headers, self.message.payload.clone(), &id).await, what)?;
        self.ack().await
    }

    /// Takes back a retry that a worker put off before it died, and before it said that it is done with this one.
    pub(crate) async fn take_back_retry(&self, sink: &Name) -> Result<(), BusError> {
        self.bus.purge_timers(&wait_subject(sink, &self.origin())).await
    }
}

/// Whether a header tells the broker something, which a copy of its message must not tell it again.
pub(super) fn is_of_the_broker(name: &str) -> bool {
    name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-"))
}

/// The headers of a message without what the broker put there, and with where it was.
fn carried(headers: Option<&HeaderMap>, origin: &Origin) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        let text: &str = name.as_ref();
        let of_the_broker = is_of_the_broker(text);
        let of_nerve = text.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("nerve-"));
        if of_the_broker || of_nerve {
            continue;
        }
        for value in values {
            kept.append(text, value.clone());
        }
    }
    kept.insert(dead_headers::STREAM, origin.stream.as_str());
    kept.insert(dead_headers::SEQUENCE, origin.sequence.to_string());
    kept.insert(dead_headers::SUBJECT, origin.subject.as_str());
    kept
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
        let origin = Origin { stream: stream.to_owned(), sequence, subject: found.subject.to_string() };
        let headers = carried(Some(&found.headers), &origin);
        self.publish_due(sink, headers, found.payload, what).await
    }

    /// Gives a sink an event that nobody else gets, to try it out. It is posted once, whatever comes of it.
    pub async fn try_sink(&self, sink: &Name, event: &Event) -> Result<(), BusError> {
        let what = || format!("trying the sink {sink}");
        let (mut headers, body) = stored(self.to_message(event).await, what)?;
        headers.insert(TRIAL, "1");
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
        let id = format!("due:{sink}:{}", Uuid::now_v7());
        stored(self.publish_message(&subject, headers, body, &id).await, what).map(drop)
    }

    /// Forgets everything that waits for a sink.
    pub(crate) async fn purge_sink(&self, sink: &Name) -> Result<(), BusError> {
        self.purge_timers(&format!("timers.wait.{sink}.>")).await?;
        self.purge_timers(&due_subject(sink)).await
    }

    /// Has the broker tick by a schedule from now on, instead of by whatever it was before.
    pub(crate) async fn set_schedule(&self, name: &Name, spec: &ScheduleSpec) -> Result<(), BusError> {
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
    pub(crate) async fn has_schedule(&self, name: &Name) -> Result<bool, BusError> {
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
    pub(crate) async fn remove_schedule(&self, name: &Name) -> Result<(), BusError> {
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
    pub(crate) fn tick(&self) -> Option<Name> {
        Name::parse(self.message.subject.strip_prefix("timers.tick.")?).ok()
    }
}

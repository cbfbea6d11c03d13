//! A message to acknowledge. Acknowledging consumes it, so a second acknowledgement does not compile.

use super::error::ResultExt as _;
use super::{
    Bus, BusError, PublishError,
    ack_extender::Extension,
    headers,
    large_body::BodyError,
    provenance::{Provenance, holds_copies},
    streams::{DEAD, DUE_PREFIX},
};
use async_nats::{header, jetstream::AckKind};
use bytes::Bytes;
use nerve_core::{
    Event, EventType, FunctionError, Identity, Name, Run, Subject,
    event::{DATA_REF, encode_value},
    subject::EVENTS_PREFIX,
};
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use time::OffsetDateTime;

/// A message that was pulled and is not acknowledged. Dropping it leaves it to the ack wait.
#[derive(Debug)]
pub struct Delivery {
    pub(super) bus: Bus,
    pub(super) message: async_nats::Message,
    /// The stream that delivered it.
    pub stream: Arc<str>,
    /// Its sequence in that stream.
    pub sequence: u64,
    /// Its original position and its generation.
    pub provenance: Provenance,
    /// The delivery count of its consumer, starting at 1.
    pub delivered: u32,
    /// The creation time of its consumer, in nanoseconds since 1970.
    pub consumer_created: i64,
    /// Whether an earlier version of Nerve may have received it.
    pub may_be_legacy: bool,
    /// Whether a deleted consumer may have delivered it.
    pub may_have_run: bool,
    /// The attempt, starting at 1. Failed attempts count, deliveries do not.
    pub attempt: u32,
    /// Pending messages after it.
    pub pending: u64,
    /// Set when the delivery is acknowledged, to refresh the stored progress of its consumer.
    pub(super) progress_changed: Arc<AtomicBool>,
    pub(super) _lease: Extension,
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its number, starting at 1.
    pub attempt: u32,
    /// The time of the failure.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// The error.
    pub error: FunctionError,
}

/// Maximum size of the errors in a dead letter's headers: headers count towards the payload limit.
const MAX_ERRORS_BYTES: usize = 16 * 1024;

impl Delivery {
    /// The message's event, with its complete body.
    ///
    /// A message that is not a CloudEvent is converted: its subject becomes the type, its position the id. An event
    /// without a time gets the time of storage, so that two events can be ordered.
    pub async fn event(&self) -> Result<Event, BodyError> {
        let mut event = self.parsed();
        event.time.get_or_insert(self.provenance.input.stored());
        if event.extension(DATA_REF).is_some() {
            Box::pin(self.bus.restore_body(&mut event)).await?;
        }
        Ok(event)
    }

    /// The event's id, or the message's position if it is not a CloudEvent.
    pub fn event_id(&self) -> String {
        self.parsed().id
    }

    /// The event, without a referenced body. A message that is not a CloudEvent is identified by its original position.
    fn parsed(&self) -> Event {
        let Provenance { input, subject, .. } = &self.provenance;
        match subject {
            None => event_of(&self.message, &input.stream, input.sequence),
            Some(subject) => {
                let message = async_nats::Message { subject: subject.as_str().into(), ..self.message.clone() };
                event_of(&message, &input.stream, input.sequence)
            }
        }
    }

    /// The identity that the message was published under; `None` for a copy, which has its own.
    pub fn published_as(&self) -> Option<Identity> {
        let headers = self.message.headers.as_ref().filter(|_| !self.is_copy());
        headers.and_then(|headers| Identity::parse(headers.get(header::NATS_MESSAGE_ID)?.as_str()))
    }

    /// The run of `function` on this input.
    pub fn run<'r>(&'r self, function: &'r Name) -> Run<'r> {
        self.provenance.run(function)
    }

    /// Returns whether this is a copy made by Nerve (delayed, redelivered or redriven), which is out of order.
    pub fn is_copy(&self) -> bool {
        holds_copies(&self.stream)
    }

    /// Acknowledges the message, and deletes it if it is a copy.
    pub async fn ack(self) -> Result<(), BusError> {
        self.settle(AckKind::Ack).await?;
        if self.is_copy() {
            // Boxed: rare, and far larger than the rest of this future, which is moved for every event.
            Box::pin(self.delete_copy()).await;
        }
        Ok(())
    }

    /// Deletes a finished copy, which has no other consumer.
    async fn delete_copy(&self) {
        if self.is_redriven() {
            self.bus.delete_redriven(self.sequence).await;
        } else if self.message.subject.starts_with(DUE_PREFIX) {
            self.bus.delete_due(self.sequence).await;
        }
    }

    /// Requests redelivery after `wait`.
    pub async fn retry_after(self, wait: Duration) -> Result<(), BusError> {
        self.settle(AckKind::Nak(Some(wait).filter(|wait| !wait.is_zero()))).await
    }

    /// Copies the message to the dead letters of `function`, waits for the acknowledgement of the copy, then terminates it.
    ///
    /// If the copy is not acknowledged, the message is redelivered, so nothing is lost.
    pub async fn dead_letter(self, function: &Name, revision: u64, attempts: &[Attempt]) -> Result<u64, BusError> {
        let what = || format!("dead-lettering an event of {function}");
        let mut headers = self.provenance.copied(self.message.headers.as_ref(), &self.message.subject);
        headers::insert_failure(&mut headers, (function, revision), self.attempt, &errors_header(attempts));
        let subject = Subject::parse(format!("dead.{function}")).refused(what)?;
        let id = self.run(function).dead_letter(self.attempt);
        let store = async |id: Identity| {
            let stored = self.bus.publish_message(&subject, headers.clone(), self.message.payload.clone(), id).await;
            stored.map_err(|error| match error {
                PublishError::Invalid(why) => BusError::refused(what(), why),
                PublishError::Unavailable(source) => BusError::unavailable(what(), source),
            })
        };
        let mut stored = store(id).await?;
        if stored.duplicate && !self.bus.has_dead_letter(stored.sequence).await? {
            // An earlier copy was dropped or redriven; this message is terminated, so it requires its own copy.
            stored = store(Identity::of_copy(&id.to_string(), &self.delivered.to_string())).await?;
        }
        self.settle(AckKind::Term).await?;
        self.delete_copy().await;
        Ok(stored.sequence)
    }

    /// The id of the answer that the event belongs to.
    pub fn answer_id(&self) -> Option<String> {
        let event = self.parsed();
        Some(nerve_core::answer::id_of(&event).to_owned()).filter(|id| !id.is_empty())
    }

    /// Returns whether it is a redriven dead letter.
    pub fn is_redriven(&self) -> bool {
        self.stream.as_ref() == DEAD
    }

    async fn settle(&self, kind: AckKind) -> Result<(), BusError> {
        let what = || format!("acknowledging message {} of {}", self.sequence, self.stream);
        let Some(reply) = self.message.reply.clone() else {
            return Err(BusError::refused(what(), "it has no reply subject"));
        };
        let sent = self.bus.client.publish(reply, Bytes::from(kind)).await;
        self.progress_changed.store(true, Ordering::Relaxed);
        sent.unavailable(what)
    }
}

/// The newest errors that fit, as percent-encoded JSON.
fn errors_header(attempts: &[Attempt]) -> String {
    let mut newest = attempts;
    loop {
        let json = serde_json::to_string(newest).unwrap_or_default();
        let text = encode_value(&json);
        match newest.split_first() {
            Some((_, rest)) if text.len() > MAX_ERRORS_BYTES && !rest.is_empty() => newest = rest,
            _ if text.len() > MAX_ERRORS_BYTES => return "[]".to_owned(),
            _ => return text.into_owned(),
        }
    }
}

/// Converts a message to an event; see [`Delivery::event`].
pub(super) fn event_of(message: &async_nats::Message, stream: &str, sequence: u64) -> Event {
    let pairs: Vec<(&str, &str)> = message
        .headers
        .iter()
        .flat_map(|headers| headers.iter())
        .filter_map(|(name, values)| Some((name.as_ref(), values.last()?.as_str())))
        .collect();
    let content_type = pairs.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type")).map(|(_, v)| *v);
    match Event::from_headers(pairs.iter().copied(), message.payload.clone()) {
        Ok(event) => event,
        Err(_) => {
            let ty = message.subject.strip_prefix(EVENTS_PREFIX).unwrap_or(&message.subject);
            let ty = EventType::parse(ty).unwrap_or_else(|_| plain_message());
            let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&message.payload).is_ok();
            let fallback = if is_json { "application/json" } else { "application/octet-stream" };
            Event::new(format!("{stream}:{sequence}"), format!("/streams/{stream}"), ty)
                .with_data(content_type.unwrap_or(fallback), message.payload.clone())
        }
    }
}

/// The type for a message whose subject is too long for a type.
fn plain_message() -> EventType {
    #[expect(clippy::expect_used, reason = "a constant that a test parses")]
    EventType::parse("nats.message").expect("a valid type")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::Fault;

    #[test]
    fn plain_message_becomes_an_event() {
        let message = async_nats::Message {
            subject: "orders.created".into(),
            reply: None,
            payload: Bytes::from_static(b"{\"n\":1}"),
            headers: None,
            status: None,
            description: None,
            length: 0,
        };
        let event = event_of(&message, "ORDERS", 7);
        assert_eq!((event.id.as_str(), event.ty.as_str()), ("ORDERS:7", "orders.created"));
        assert!(event.is_json());
        assert_eq!(plain_message().as_str(), "nats.message");
    }

    #[test]
    fn errors_header_keeps_the_newest_within_its_limit() {
        let attempt = |attempt, message: &str| Attempt {
            attempt,
            time: OffsetDateTime::UNIX_EPOCH,
            error: FunctionError::new(Fault::Crash, message),
        };
        let many: Vec<_> = (1..100).map(|n| attempt(n, &"x".repeat(1000))).collect();
        let header = errors_header(&many);
        assert!(header.len() <= MAX_ERRORS_BYTES && header.contains("%22attempt%22:99"));
        assert_eq!(errors_header(&[attempt(1, &"x".repeat(100_000))]), "[]");
    }
}

//! One message to settle. Settling takes it by value, so settling twice does not compile.

use super::{Bus, BusError, PublishError, body::BodyError, lease::Lease, streams::DEAD, timers::is_of_the_broker};
use async_nats::{HeaderMap, jetstream::AckKind};
use bytes::Bytes;
use nerve_core::{
    Event, EventType, FunctionError, Name, Subject,
    event::{DATA_REF, encode_value},
    subject::EVENTS_PREFIX,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use time::OffsetDateTime;

/// A message that was pulled and is not settled yet. Dropping it leaves it to the ack wait.
#[derive(Debug)]
pub struct Delivery {
    pub(super) bus: Bus,
    pub(super) message: async_nats::Message,
    /// The stream it is from.
    pub stream: String,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When the stream took it.
    pub(super) published: OffsetDateTime,
    /// The how-manieth delivery this is, from 1.
    pub attempt: u32,
    /// How many more wait behind it.
    pub pending: u64,
    pub(super) _lease: Lease,
}

/// One failed try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Which one, from 1.
    pub attempt: u32,
    /// When it failed.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// Why.
    pub error: FunctionError,
}

/// The headers in which a dead letter says what happened.
pub(super) mod dead_headers {
    pub(in super::super) const FUNCTION: &str = "Nerve-Function";
    pub(in super::super) const REVISION: &str = "Nerve-Revision";
    pub(in super::super) const STREAM: &str = "Nerve-Stream";
    pub(in super::super) const SEQUENCE: &str = "Nerve-Sequence";
    pub(in super::super) const SUBJECT: &str = "Nerve-Subject";
    pub(in super::super) const ATTEMPTS: &str = "Nerve-Attempts";
    pub(in super::super) const ERRORS: &str = "Nerve-Errors";
}

/// The most bytes of errors in a dead letter's headers: a header must fit into the payload limit.
const ERRORS_MAX: usize = 16 * 1024;

impl Delivery {
    /// The event that the message carries, with its whole body.
    ///
    /// A message that is no CloudEvent becomes one: its type is the subject, its id the place in the stream. An event
    /// without a time has the time at which the stream took it, so that of two the later one can be told.
    pub(crate) async fn event(&self) -> Result<Event, BodyError> {
        let mut event = self.parsed();
        event.time.get_or_insert(self.published);
        if event.extension(DATA_REF).is_some() {
            Box::pin(self.bus.restore_body(&mut event)).await?;
        }
        Ok(event)
    }

    /// The event's id, or its place in the stream when the message is no CloudEvent.
    pub(crate) fn event_id(&self) -> String {
        self.parsed().id
    }

    /// The event without the body that it may refer to. A message that is no CloudEvent is named by where it first was.
    fn parsed(&self) -> Event {
        let origin = self.origin();
        if origin.stream == self.stream {
            return event_of(&self.message, &self.stream, self.sequence);
        }
        let message = async_nats::Message { subject: origin.subject.as_str().into(), ..self.message.clone() };
        event_of(&message, &origin.stream, origin.sequence)
    }

    /// Acknowledges it: it is done.
    pub async fn ack(self) -> Result<(), BusError> {
        self.settle(AckKind::Ack).await
    }

    /// Has it delivered again after `wait`.
    pub async fn retry_after(self, wait: Duration) -> Result<(), BusError> {
        self.settle(AckKind::Nak(Some(wait).filter(|wait| !wait.is_zero()))).await
    }

    /// Copies it whole to the dead letters of `function`, waits for the copy's acknowledgement, then terminates it.
    ///
    /// When the copy is not acknowledged the message is left to come again, so nothing is lost.
    pub async fn dead_letter(self, function: &Name, revision: u64, attempts: &[Attempt]) -> Result<u64, BusError> {
        let what = || format!("dead-lettering an event of {function}");
        let headers = self.dead_headers(function, revision, attempts);
        let subject = Subject::parse(format!("dead.{function}")).map_err(|error| BusError::refused(what(), error))?;
        // The last attempt is part of the id: an event that fails again after a redrive is a letter again.
        let id = format!("dead:{function}:{}:{}", self.stream, self.sequence);
        let stored = self.bus.publish_message(&subject, headers, self.message.payload.clone(), &id).await;
        match stored {
            Ok(published) => {
                self.settle(AckKind::Term).await?;
                Ok(published.sequence)
            }
            Err(PublishError::Invalid(why)) => Err(BusError::refused(what(), why)),
            Err(PublishError::Unavailable(source)) => Err(BusError::unavailable(what(), source)),
        }
    }

    /// The answer that its event belongs to.
    pub(crate) fn answer_id(&self) -> Option<String> {
        let event = self.parsed();
        Some(nerve_core::answer::id_of(&event).to_owned()).filter(|id| !id.is_empty())
    }

    /// Whether it came from a redriven dead letter.
    pub fn is_redriven(&self) -> bool {
        self.stream == DEAD
    }

    fn dead_headers(&self, function: &Name, revision: u64, attempts: &[Attempt]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, values) in self.message.headers.iter().flat_map(HeaderMap::iter) {
            let name: &str = name.as_ref();
            if !is_of_the_broker(name) {
                values.iter().for_each(|value| headers.append(name, value.clone()));
            }
        }
        // A redriven letter keeps the place that it first came from.
        if headers.get(dead_headers::STREAM).is_none() {
            headers.insert(dead_headers::STREAM, self.stream.as_str());
            headers.insert(dead_headers::SEQUENCE, self.sequence.to_string());
            headers.insert(dead_headers::SUBJECT, self.message.subject.as_str());
        }
        headers.insert(dead_headers::FUNCTION, function.as_str());
        headers.insert(dead_headers::REVISION, revision.to_string());
        headers.insert(dead_headers::ATTEMPTS, self.attempt.to_string());
        headers.insert(dead_headers::ERRORS, errors_header(attempts).as_str());
        headers
    }

    async fn settle(self, kind: AckKind) -> Result<(), BusError> {
        let what = || format!("settling message {} of {}", self.sequence, self.stream);
        let Some(reply) = self.message.reply.clone() else {
            return Err(BusError::refused(what(), "it has no reply subject"));
        };
        let sent = self.bus.client.publish(reply, Bytes::from(kind)).await;
        sent.map_err(|error| BusError::unavailable(what(), error))
    }
}

/// The newest errors that fit, as percent-encoded JSON.
fn errors_header(attempts: &[Attempt]) -> String {
    let mut newest = attempts;
    loop {
        let json = serde_json::to_string(newest).unwrap_or_default();
        let text = encode_value(&json);
        match newest.split_first() {
            Some((_, rest)) if text.len() > ERRORS_MAX && !rest.is_empty() => newest = rest,
            _ if text.len() > ERRORS_MAX => return "[]".to_owned(),
            _ => return text.into_owned(),
        }
    }
}

/// Reads a message as an event; see [`Delivery::event`].
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

/// The type of a message whose subject is longer than a type may be.
fn plain_message() -> EventType {
    #[expect(clippy::expect_used, reason = "a constant that a test parses")]
    EventType::parse("nats.message").expect("a valid type")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::Fault;

    #[test]
    fn a_plain_message_becomes_an_event() {
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
    fn errors_stay_within_their_bound_and_the_newest_win() {
        let attempt = |attempt, message: &str| Attempt {
            attempt,
            time: OffsetDateTime::UNIX_EPOCH,
            error: FunctionError::new(Fault::Crash, message),
        };
        let many: Vec<_> = (1..100).map(|n| attempt(n, &"x".repeat(1000))).collect();
        let header = errors_header(&many);
        assert!(header.len() <= ERRORS_MAX && header.contains("%22attempt%22:99"));
        assert_eq!(errors_header(&[attempt(1, &"x".repeat(100_000))]), "[]");
    }
}

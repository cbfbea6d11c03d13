//! One message to settle. Settling takes it by value, so settling twice does not compile.

use super::{
    Bus, BusError, PublishError,
    body::BodyError,
    lease::Lease,
    provenance::{Provenance, copy_headers, holds_copies},
    streams::DEAD,
    timers::DUE_PREFIX,
};
use async_nats::{HeaderMap, header, jetstream::AckKind};
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

/// A message that was pulled and is not settled yet. Dropping it leaves it to the ack wait.
#[derive(Debug)]
pub struct Delivery {
    pub(super) bus: Bus,
    pub(super) message: async_nats::Message,
    /// The stream that it was delivered from.
    pub stream: Arc<str>,
    /// Its sequence in that stream.
    pub sequence: u64,
    /// Where it was stored first, and for which generation it is run.
    pub provenance: Provenance,
    /// Which delivery of its consumer this is, from 1.
    pub delivered: u32,
    /// When its consumer was created, in nanoseconds since 1970.
    pub consumer_created: i64,
    /// Whether an older Nerve may have been given it before.
    pub may_be_of_older: bool,
    /// Whether a consumer that is gone may have delivered it before.
    pub may_have_run: bool,
    /// Which attempt this is, from 1: failed attempts count, not deliveries.
    pub attempt: u32,
    /// How many more wait behind it.
    pub pending: u64,
    /// Raised when it is settled, so that its consumer's place is refreshed.
    pub(super) moved: Arc<AtomicBool>,
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

/// The most bytes of errors in a dead letter's headers: a header must fit into the payload limit.
const ERRORS_MAX: usize = 16 * 1024;

impl Delivery {
    /// The event that the message carries, with its whole body.
    ///
    /// A message that is no CloudEvent becomes one: its type is the subject, its id the place in the stream. An event
    /// without a time has the time at which the stream took it, so that of two the later one can be told.
    pub async fn event(&self) -> Result<Event, BodyError> {
        let mut event = self.parsed();
        event.time.get_or_insert(self.provenance.input.stored());
        if event.extension(DATA_REF).is_some() {
            Box::pin(self.bus.restore_body(&mut event)).await?;
        }
        Ok(event)
    }

    /// The event's id, or its place in the stream when the message is no CloudEvent.
    pub fn event_id(&self) -> String {
        self.parsed().id
    }

    /// The event without the body that it may refer to. A message that is no CloudEvent is named by where it first was.
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

    /// The identity that its message was published under; `None` for a copy, which has one of its own.
    pub fn published_as(&self) -> Option<Identity> {
        let headers = self.message.headers.as_ref().filter(|_| !self.is_copy());
        headers.and_then(|headers| Identity::parse(headers.get(header::NATS_MESSAGE_ID)?.as_str()))
    }

    /// The run of `function` on it.
    pub fn run<'r>(&'r self, function: &'r Name) -> Run<'r> {
        self.provenance.run(function)
    }

    /// Whether it is a copy that Nerve made: delayed, redelivered or redriven, and so in no order any more.
    pub fn is_copy(&self) -> bool {
        holds_copies(&self.stream)
    }

    /// Acknowledges it: it is done. A copy, redriven or delayed, is then removed.
    pub async fn ack(self) -> Result<(), BusError> {
        self.settle(AckKind::Ack).await?;
        if self.is_copy() {
            // Boxed, since it is rare and far larger than the rest of this future, which is moved for every event.
            Box::pin(self.forget_copy()).await;
        }
        Ok(())
    }

    /// Removes a copy that is done, which nobody else takes.
    async fn forget_copy(&self) {
        if self.is_redriven() {
            self.bus.forget_redriven(self.sequence).await;
        } else if self.message.subject.starts_with(DUE_PREFIX) {
            self.bus.forget_due(self.sequence).await;
        }
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
            // It was stored, and dropped or redriven since; this message is terminated, so it needs one of its own.
            stored = store(Identity::of_copy(&id.to_string(), &self.delivered.to_string())).await?;
        }
        self.settle(AckKind::Term).await?;
        self.forget_copy().await;
        Ok(stored.sequence)
    }

    /// The answer that its event belongs to.
    pub fn answer_id(&self) -> Option<String> {
        let event = self.parsed();
        Some(nerve_core::answer::id_of(&event).to_owned()).filter(|id| !id.is_empty())
    }

    /// Whether it came from a redriven dead letter.
    pub fn is_redriven(&self) -> bool {
        self.stream.as_ref() == DEAD
    }

    fn dead_headers(&self, function: &Name, revision: u64, attempts: &[Attempt]) -> HeaderMap {
        let mut headers = self.provenance.copied(self.message.headers.as_ref(), &self.message.subject);
        headers.insert(copy_headers::FUNCTION, function.as_str());
        headers.insert(copy_headers::REVISION, revision.to_string());
        headers.insert(copy_headers::ATTEMPTS, self.attempt.to_string());
        headers.insert(copy_headers::ERRORS, errors_header(attempts).as_str());
        headers
    }

    async fn settle(&self, kind: AckKind) -> Result<(), BusError> {
        let what = || format!("settling message {} of {}", self.sequence, self.stream);
        let Some(reply) = self.message.reply.clone() else {
            return Err(BusError::refused(what(), "it has no reply subject"));
        };
        let sent = self.bus.client.publish(reply, Bytes::from(kind)).await;
        self.moved.store(true, Ordering::Relaxed);
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

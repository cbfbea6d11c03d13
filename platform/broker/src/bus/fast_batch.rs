//! Publishes many events with one acknowledgement, by JetStream's fast batch publishing.
//!
//! The acknowledgement is most of the cost of a small event, for the broker and for this process. Events that arrive while
//! batches are in flight are therefore sent with the next batch; a lone event is sent immediately.
//!
//! # Layout
//! `sender`: the task that sends batches and handles their acknowledgements.
//!
//! # Flow
//! callers' events → queued while two batches are in flight → sent in order under one batch id → the
//! acknowledgement reports how many were stored → each caller receives the count of its own. The first
//! event that was not stored is published alone, and JetStream's reply to that contains the reason.
//!
//! Source: ADR-50 of nats-architecture-and-design, "Fast-ingest Batch Publishing".

mod sender;

use super::{Bus, BusError, PublishError, Published, publish};
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use nerve_core::{Event, Identity};
use sender::BatchSender;
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Maximum events per publish request.
const MAX_REQUEST_EVENTS: usize = 64;
/// Maximum size of an event in a batch. The acknowledgement is a small part of the cost of a larger one.
const MAX_BATCHED_EVENT_BYTES: usize = 64 << 10;
/// Publish requests in the queue; further callers wait.
const MAX_QUEUED_REQUESTS: usize = 1024;

/// Publishes events in batches; cheap to clone.
#[derive(Debug, Clone)]
pub struct FastPublisher {
    bus: Bus,
    requests: mpsc::Sender<PublishRequest>,
}

/// The events of one caller, which stay together and in order.
#[derive(Debug)]
struct PublishRequest {
    messages: Vec<OutgoingMessage>,
    reply: oneshot::Sender<PublishOutcome>,
}

#[derive(Debug)]
struct OutgoingMessage {
    subject: Subject,
    headers: HeaderMap,
    body: Bytes,
    /// Size of headers and body in bytes.
    size: usize,
}

/// The result of a publish request.
#[derive(Debug)]
enum PublishOutcome {
    /// The number of stored events from the first on; for a lone event also its sequence.
    Stored(usize, Option<Published>),
    /// The broker did not acknowledge.
    Lost,
}

impl FastPublisher {
    /// Starts the task that sends batches until `end`.
    pub async fn start(bus: &Bus, end: CancellationToken, tasks: &TaskTracker) -> Result<Self, BusError> {
        let (requests, from) = mpsc::channel(MAX_QUEUED_REQUESTS);
        let (sending, acks) = BatchSender::subscribe(bus).await?;
        tasks.spawn(async move { end.run_until_cancelled(sending.run(from, acks)).await });
        Ok(Self { bus: bus.clone(), requests })
    }

    /// A publisher without a broker, for tests.
    #[doc(hidden)]
    pub fn for_tests(bus: &Bus) -> Self {
        Self { bus: bus.clone(), requests: mpsc::channel(1).0 }
    }

    /// Publishes events in order, each identity once within the dedupe window. Returns the number of stored events, at least one,
    /// and for a lone event also its sequence.
    ///
    /// # Errors
    /// The error of the first event. The following ones are not stored either, or their state is unknown.
    pub async fn publish_some(
        &self,
        events: &[(Identity, &Event)],
    ) -> Result<(usize, Option<Published>), PublishError> {
        let Some((id, first)) = events.first() else { return Ok((0, None)) };
        let messages = self.to_messages(events).await?;
        if !messages.is_empty() {
            match self.submit(messages).await? {
                (0, _) => {}
                stored => return Ok(stored),
            }
        }
        // Boxed: rare, and far larger than the rest of this future.
        let published = Box::pin(self.bus.publish(first, *id)).await?;
        Ok((1, Some(published)))
    }

    /// Converts the leading events that fit in one batch; returns none if the first does not.
    async fn to_messages(&self, events: &[(Identity, &Event)]) -> Result<Vec<OutgoingMessage>, PublishError> {
        let mut messages = Vec::with_capacity(events.len().min(MAX_REQUEST_EVENTS));
        for (id, event) in events.iter().take(MAX_REQUEST_EVENTS) {
            if publish::has_other_destination(event) || event.data.len() > MAX_BATCHED_EVENT_BYTES {
                break;
            }
            match self.bus.to_checked_message(event, *id).await {
                Ok((headers, body)) => {
                    let message = OutgoingMessage::new(String::from(event.ty.subject()), headers, body);
                    if message.size > MAX_BATCHED_EVENT_BYTES {
                        break;
                    }
                    messages.push(message);
                }
                Err(error) if messages.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(messages)
    }

    async fn submit(&self, messages: Vec<OutgoingMessage>) -> Result<(usize, Option<Published>), PublishError> {
        let unavailable = |why: &'static str| PublishError::Unavailable(why.into());
        if !self.bus.connected() {
            return Err(unavailable("not connected to NATS"));
        }
        let (reply, outcome) = oneshot::channel();
        self.requests
            .send(PublishRequest { messages, reply })
            .await
            .map_err(|_| unavailable("the server is stopping"))?;
        match outcome.await {
            Ok(PublishOutcome::Stored(count, position)) => Ok((count, position)),
            Ok(PublishOutcome::Lost) => {
                Err(unavailable("no acknowledgement came, or the connection was lost before it"))
            }
            Err(_) => Err(unavailable("the server is stopping")),
        }
    }
}

impl OutgoingMessage {
    fn new(subject: String, headers: HeaderMap, body: Bytes) -> Self {
        let values = headers.iter().flat_map(|(_, values)| values);
        let size = body.len() + values.map(|value| value.as_str().len()).sum::<usize>();
        Self { subject: subject.into(), headers, body, size }
    }
}

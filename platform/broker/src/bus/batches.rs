//! Many events in one go, acknowledged once: JetStream's fast batch publishing.
//!
//! Most of what a small event costs the broker and this process is its acknowledgement. So what comes while others are
//! under way is gathered, and goes together with the next; an event that comes alone waits for nobody.
//!
//! # Layout
//! `sending`: the one task that sends batches and hears what became of them.
//!
//! # Flow
//! callers' events → gathered while two batches are under way → sent in their order under one batch id → the
//! acknowledgement says how many are stored, from the first on → each caller hears how many of its own are. The first
//! that is not stored is published by itself, and JetStream's answer to that says why.
//!
//! Source: ADR-50 of nats-architecture-and-design, "Fast-ingest Batch Publishing".

mod sending;

use super::{Bus, BusError, PublishError, Published, publish};
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use nerve_core::{Event, Identity};
use sending::Sending;
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Events of one offer at most.
const MOST: usize = 64;
/// An event of more bytes than this goes by itself: its acknowledgement is the least of it.
const LARGE: usize = 64 << 10;
/// Offers that wait to be sent; whoever comes then waits for one to leave.
const QUEUE: usize = 1024;

/// Sends events in batches; clones send in the same.
#[derive(Debug, Clone)]
pub struct Batches {
    bus: Bus,
    offers: mpsc::Sender<Offer>,
}

/// One caller's events, which stay together and in their order.
#[derive(Debug)]
struct Offer {
    messages: Vec<Outgoing>,
    tell: oneshot::Sender<Told>,
}

#[derive(Debug)]
struct Outgoing {
    subject: Subject,
    headers: HeaderMap,
    body: Bytes,
    /// Bytes of both.
    size: usize,
}

/// What came of an offer.
#[derive(Debug)]
enum Told {
    /// So many, from the first on, are stored; and where, if it was one event and went alone.
    Stored(usize, Option<Published>),
    /// The broker did not answer.
    Lost,
}

impl Batches {
    /// Begins; batches are sent until `end`.
    pub async fn start(bus: &Bus, end: CancellationToken, tasks: &TaskTracker) -> Result<Self, BusError> {
        let (offers, from) = mpsc::channel(QUEUE);
        let (sending, acks) = Sending::begin(bus).await?;
        tasks.spawn(async move { end.run_until_cancelled(sending.run(from, acks)).await });
        Ok(Self { bus: bus.clone(), offers })
    }

    /// For tests without a broker.
    #[doc(hidden)]
    pub fn for_tests(bus: &Bus) -> Self {
        Self { bus: bus.clone(), offers: mpsc::channel(1).0 }
    }

    /// Publishes events from the first on, in their order, each identity once within the dedupe window; tells how many are
    /// stored, at least one, and of one that went alone also where.
    ///
    /// # Errors
    /// What became of the first event. Those after it are not stored either, or not known to be.
    pub async fn publish_some(
        &self,
        events: &[(Identity, &Event)],
    ) -> Result<(usize, Option<Published>), PublishError> {
        let Some((id, first)) = events.first() else { return Ok((0, None)) };
        let messages = self.to_messages(events).await?;
        if !messages.is_empty() {
            match self.offer(messages).await? {
                (0, _) => {}
                stored => return Ok(stored),
            }
        }
        // Boxed, since it is rare and far larger than the rest of this future.
        let published = Box::pin(self.bus.publish(first, *id)).await?;
        Ok((1, Some(published)))
    }

    /// The messages of as many events as can go in one batch; none when the first cannot.
    async fn to_messages(&self, events: &[(Identity, &Event)]) -> Result<Vec<Outgoing>, PublishError> {
        let mut messages = Vec::with_capacity(events.len().min(MOST));
        for (id, event) in events.iter().take(MOST) {
            if publish::has_other_place(event) || event.data.len() > LARGE {
                break;
            }
            match self.bus.to_checked_message(event, *id).await {
                Ok((headers, body)) => {
                    let message = Outgoing::new(String::from(event.ty.subject()), headers, body);
                    if message.size > LARGE {
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

    async fn offer(&self, messages: Vec<Outgoing>) -> Result<(usize, Option<Published>), PublishError> {
        let unavailable = |why: &'static str| PublishError::Unavailable(why.into());
        if !self.bus.connected() {
            return Err(unavailable("there is no connection to NATS"));
        }
        let (tell, told) = oneshot::channel();
        self.offers.send(Offer { messages, tell }).await.map_err(|_| unavailable("the server is ending"))?;
        match told.await {
            Ok(Told::Stored(count, place)) => Ok((count, place)),
            Ok(Told::Lost) => Err(unavailable("no acknowledgement came, or the connection was lost before it")),
            Err(_) => Err(unavailable("the server is ending")),
        }
    }
}

impl Outgoing {
    fn new(subject: String, headers: HeaderMap, body: Bytes) -> Self {
        let values = headers.iter().flat_map(|(_, values)| values);
        let size = body.len() + values.map(|value| value.as_str().len()).sum::<usize>();
        Self { subject: subject.into(), headers, body, size }
    }
}

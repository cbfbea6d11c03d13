//! Pulls as many messages as there are free slots: the queue stays in the broker, never in the worker.
//!
//! A [`Puller`] requests exactly as many messages as it holds free slots. Each delivery owns its
//! slot and releases it when dropped, which permits the next request.

use super::error::ResultExt as _;
use super::{
    AckExtender, BoundConsumer, Bus, BusError, Delivery, ProgressRecorder,
    provenance::{Provenance, holds_copies},
};
use async_nats::{StatusCode, Subscriber, jetstream};
use futures::StreamExt;
use serde::Serialize;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};

/// Lifetime of a pull request at the server.
const REQUEST_LIFETIME: Duration = Duration::from_secs(30);
/// Interval of the server's heartbeats for a pull request.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Delay before the next request after a response that requires one.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Consecutive "no responders" replies before the consumer is checked.
const MAX_NO_RESPONDERS: u32 = 10;

/// Dependencies shared by all pullers of a process.
#[derive(Debug, Clone)]
pub struct PullContext {
    /// The broker.
    pub bus: Bus,
    /// Extends the acknowledgement deadlines of deliveries in flight.
    pub leases: AckExtender,
    /// Stores the progress of each consumer.
    pub places: ProgressRecorder,
}

/// Pulls one consumer's messages into free slots.
pub struct Puller {
    bus: Bus,
    leases: AckExtender,
    bound: BoundConsumer,
    consumer: String,
    /// Set when an event is received or acknowledged, to store the consumer's progress.
    progress_changed: Arc<AtomicBool>,
    slots: Arc<Semaphore>,
    capacity: usize,
    inbox: String,
    answers: Subscriber,
    reconnects: watch::Receiver<u64>,
    /// Slots reserved for expected messages.
    held: OwnedSemaphorePermit,
    /// Requested messages that have not arrived; at most `held`.
    asked: usize,
    nobody: u32,
    heard: Instant,
    not_before: Instant,
    liveness: Liveness,
    /// Parses reply subjects; shared, since each would own a whole context.
    place: jetstream::Message,
}

fn empty_message() -> async_nats::Message {
    async_nats::Message {
        subject: async_nats::Subject::from_static(""),
        reply: None,
        payload: bytes::Bytes::new(),
        headers: None,
        status: None,
        description: None,
        length: 0,
    }
}

/// The liveness of a puller, for readiness.
#[derive(Debug, Clone)]
pub struct Liveness {
    started: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Liveness {
    fn new() -> Self {
        Self { started: Instant::now(), last_ms: Arc::default() }
    }

    fn touch(&self) {
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
    }

    /// Returns whether the puller was active recently.
    pub fn is_alive(&self) -> bool {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last) < HEARTBEAT_INTERVAL * 4
    }
}

#[derive(Serialize)]
struct PullRequest {
    batch: usize,
    expires: u64,
    idle_heartbeat: u64,
}

impl Puller {
    /// Starts a puller that fills `slots`, which it may share with others, from the consumer `base` of `stream`.
    ///
    /// # Errors
    /// [`BusError::NotFound`] if the consumer does not exist: bind it.
    pub async fn start(
        pulling: &PullContext,
        slots: &Arc<Semaphore>,
        (stream, base): (&str, &str),
    ) -> Result<Self, BusError> {
        let PullContext { bus, leases, places } = pulling;
        let what = || format!("pulling from {base} of {stream}");
        let bound = bus.bound(stream, base).await?;
        let inbox = bus.client.new_inbox();
        let answers = bus.client.subscribe(inbox.clone()).await.unavailable(what)?;
        let held = slots.clone().try_acquire_many_owned(0);
        Ok(Self {
            bus: bus.clone(),
            leases: leases.clone(),
            slots: slots.clone(),
            capacity: slots.available_permits().max(1),
            inbox,
            answers,
            reconnects: bus.reconnects(),
            held: held.unavailable(what)?,
            asked: 0,
            nobody: 0,
            heard: Instant::now(),
            not_before: Instant::now(),
            liveness: Liveness::new(),
            place: jetstream::Message { message: empty_message(), context: bus.jetstream().clone() },
            consumer: bound.consumer(),
            progress_changed: places.watch(&bound),
            bound,
        })
    }

    /// Waits for the next delivery and returns it with its slot, which is occupied until dropped.
    ///
    /// An error means that the consumer is deleted or cannot be reached: recreate it, and start a new puller.
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<(Delivery, OwnedSemaphorePermit), BusError> {
        loop {
            self.request_messages().await?;
            let wake = self.wake_at();
            tokio::select! {
                // Arrived messages before further requests.
                biased;
                answer = self.answers.next() => {
                    let Some(answer) = answer else {
                        return Err(BusError::unavailable("pulling", "the subscription ended"));
                    };
                    self.heard = Instant::now();
                    self.liveness.touch();
                    if let Some(found) = self.take(answer).await? {
                        return Ok(found);
                    }
                }
                changed = self.reconnects.changed() => {
                    if changed.is_err() {
                        return Err(BusError::unavailable("pulling", "the connection ended"));
                    }
                    // Messages requested on the old connection will not arrive on this one.
                    self.asked = 0;
                }
                slot = self.slots.clone().acquire_owned(), if self.held.num_permits() < self.capacity => {
                    self.hold(slot)?;
                }
                () = tokio::time::sleep_until(wake) => {
                    if self.asked == 0 {
                        // All slots are busy, which also proves that the consumer is alive.
                        self.liveness.touch();
                    } else if self.heard.elapsed() > HEARTBEAT_INTERVAL * 2 {
                        self.asked = 0;
                        self.heard = Instant::now();
                    }
                }
            }
        }
    }

    /// The liveness of this puller.
    pub fn liveness(&self) -> Liveness {
        self.liveness.clone()
    }

    /// Stops pulling, and returns the deliveries that arrived and were not started, to be released.
    pub async fn stop(mut self) -> Result<Vec<Delivery>, BusError> {
        self.answers.unsubscribe().await.unavailable("ending a pull")?;
        let mut untaken = Vec::new();
        while let Some(answer) = self.answers.next().await {
            if answer.status.is_none() {
                untaken.extend(self.deliver(answer));
            }
        }
        Ok(untaken)
    }

    /// Stops pulling, and immediately releases the deliveries that arrived and were not started.
    pub async fn give_back(self) -> Result<(), BusError> {
        for delivery in self.stop().await? {
            delivery.retry_after(Duration::ZERO).await?;
        }
        Ok(())
    }

    fn hold(&mut self, slot: Result<OwnedSemaphorePermit, tokio::sync::AcquireError>) -> Result<(), BusError> {
        let slot = slot.unavailable("pulling")?;
        self.held.merge(slot);
        Ok(())
    }

    fn wake_at(&self) -> Instant {
        if self.asked > 0 {
            self.heard + HEARTBEAT_INTERVAL * 2 + RETRY_INTERVAL
        } else if self.held.num_permits() > 0 {
            self.not_before.max(Instant::now() + RETRY_INTERVAL)
        } else {
            Instant::now() + HEARTBEAT_INTERVAL
        }
    }

    /// Requests a message for each held slot without a pending request, in few requests.
    async fn request_messages(&mut self) -> Result<(), BusError> {
        while let Ok(slot) = self.slots.clone().try_acquire_owned() {
            self.held.merge(slot);
        }
        let free = self.held.num_permits().saturating_sub(self.asked);
        let worth_it = self.asked == 0 || free >= self.capacity.div_ceil(4);
        if free == 0 || !worth_it || Instant::now() < self.not_before || !self.bus.connected() {
            return Ok(());
        }
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let request =
            PullRequest { batch: free, expires: nanos(REQUEST_LIFETIME), idle_heartbeat: nanos(HEARTBEAT_INTERVAL) };
        let body = serde_json::to_vec(&request).refused("pulling")?;
        let subject = format!("{}.CONSUMER.MSG.NEXT.{}.{}", self.bus.api_prefix, self.bound.stream, self.consumer);
        self.bus.client.publish_with_reply(subject, self.inbox.clone(), body.into()).await.unavailable("pulling")?;
        if self.asked == 0 {
            self.heard = Instant::now();
        }
        self.asked += free;
        Ok(())
    }

    async fn take(
        &mut self,
        answer: async_nats::Message,
    ) -> Result<Option<(Delivery, OwnedSemaphorePermit)>, BusError> {
        if let Some(status) = answer.status {
            self.handle_status(status, &answer)?;
            return Ok(None);
        }
        self.nobody = 0;
        self.asked = self.asked.saturating_sub(1);
        let Some(delivery) = self.deliver(answer) else { return Ok(None) };
        let slot = match self.held.split(1) {
            Some(slot) => slot,
            // Only after requests were presumed lost and answered nevertheless.
            None => {
                let slot = self.slots.clone().acquire_owned().await;
                slot.unavailable("pulling")?
            }
        };
        Ok(Some((delivery, slot)))
    }

    /// Converts a message to a delivery.
    fn deliver(&mut self, answer: async_nats::Message) -> Option<Delivery> {
        self.place.message.reply.clone_from(&answer.reply);
        let place =
            self.place.info().map(|info| (info.stream_sequence, info.published, (info.delivered, info.pending)));
        let (Ok((sequence, stored, (delivered, pending))), Some(reply)) = (place, answer.reply.clone()) else {
            tracing::warn!(subject = %answer.subject, "skipping a message without a JetStream reply subject");
            return None;
        };
        let lease = self.leases.take(reply);
        self.progress_changed.store(true, Ordering::Relaxed);
        let stream = &self.bound.stream;
        let copied = || Provenance::of_copy(answer.headers.as_ref());
        let here = || Provenance::here(stream.clone(), sequence, stored, self.bound.generation(sequence));
        let provenance = if holds_copies(stream) { copied().unwrap_or_else(here) } else { here() };
        Some(Delivery {
            bus: self.bus.clone(),
            stream: stream.clone(),
            sequence,
            provenance,
            delivered: u32::try_from(delivered).unwrap_or(u32::MAX),
            consumer_created: self.bound.created,
            may_be_legacy: self.bound.may_be_legacy(sequence),
            may_have_run: self.bound.may_be_redelivery(sequence),
            // The worker counts attempts.
            attempt: 1,
            pending,
            progress_changed: self.progress_changed.clone(),
            message: answer,
            _lease: lease,
        })
    }

    fn handle_status(&mut self, status: StatusCode, answer: &async_nats::Message) -> Result<(), BusError> {
        let left = answer
            .headers
            .as_ref()
            .and_then(|headers| headers.get("Nats-Pending-Messages"))
            .and_then(|count| count.as_str().parse().ok());
        match status {
            StatusCode::IDLE_HEARTBEAT => {}
            StatusCode::NO_RESPONDERS => {
                self.asked = 0;
                self.nobody += 1;
                self.not_before = Instant::now() + RETRY_INTERVAL;
                if self.nobody >= MAX_NO_RESPONDERS {
                    return Err(self.consumer_gone("no responders"));
                }
            }
            StatusCode::TIMEOUT | StatusCode::NOT_FOUND => self.asked -= left.unwrap_or(self.asked).min(self.asked),
            _ => {
                let why = answer.description.clone().unwrap_or_default();
                self.asked -= left.unwrap_or(self.asked).min(self.asked);
                if why.contains("Consumer Deleted") || why.contains("Consumer is push based") {
                    return Err(self.consumer_gone(&why));
                }
                self.not_before = Instant::now() + RETRY_INTERVAL;
                tracing::debug!(consumer = self.consumer, code = %status, why, "the server ended a pull request");
            }
        }
        Ok(())
    }

    fn consumer_gone(&self, why: &str) -> BusError {
        BusError::NotFound(format!("consumer {} of stream {} ({why})", self.consumer, self.bound.stream))
    }
}

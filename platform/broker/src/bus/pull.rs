//! Deliveries as there are free slots: the broker holds the queue, never the worker.
//!
//! A [`Puller`] asks for exactly as many messages as it holds slots that nobody uses. Each delivery takes its
//! slot along and gives it back when it is dropped, which is what lets the next one be asked for.

use super::{
    Bound, Bus, BusError, Delivery, Leases, Places,
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

/// How long one request for messages stands at the server.
const EXPIRES: Duration = Duration::from_secs(30);
/// How often the server shows that a request still stands.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The wait after an answer that asks for one.
const PAUSE: Duration = Duration::from_millis(200);
/// Answers in a row that say that nobody is there, after which the consumer is looked at again.
const NOBODY_MAX: u32 = 10;

/// What every puller of a process shares.
#[derive(Debug, Clone)]
pub struct Pulling {
    /// The broker.
    pub bus: Bus,
    /// Extends the acknowledgement deadlines of deliveries in flight.
    pub leases: Leases,
    /// Stores the progress of each consumer.
    pub places: Places,
}

/// Pulls one consumer's messages into free slots.
pub struct Puller {
    bus: Bus,
    leases: Leases,
    bound: Bound,
    consumer: String,
    /// Raised when an event is taken or settled, so that the consumer's place is refreshed.
    moved: Arc<AtomicBool>,
    slots: Arc<Semaphore>,
    capacity: usize,
    inbox: String,
    answers: Subscriber,
    reconnects: watch::Receiver<u64>,
    /// Slots that this puller holds for messages to come.
    held: OwnedSemaphorePermit,
    /// Messages asked for and not yet here; never more than `held`.
    asked: usize,
    nobody: u32,
    heard: Instant,
    not_before: Instant,
    pulse: Pulse,
    /// Reads reply subjects; one for all, since each would carry a whole context.
    place: jetstream::Message,
}

fn nothing() -> async_nats::Message {
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

/// When a puller last showed that it is at work, for readiness.
#[derive(Debug, Clone)]
pub struct Pulse {
    started: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Pulse {
    fn new() -> Self {
        Self { started: Instant::now(), last_ms: Arc::default() }
    }

    fn beat(&self) {
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
    }

    /// Whether the puller showed itself lately.
    pub fn is_alive(&self) -> bool {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last) < HEARTBEAT * 4
    }
}

#[derive(Serialize)]
struct PullRequest {
    batch: usize,
    expires: u64,
    idle_heartbeat: u64,
}

impl Puller {
    /// A puller that fills `slots`, which it may share with others, from the consumer `base` of `stream`.
    ///
    /// # Errors
    /// [`BusError::NotFound`] where there is no such consumer: bind it.
    pub async fn start(
        pulling: &Pulling,
        slots: &Arc<Semaphore>,
        (stream, base): (&str, &str),
    ) -> Result<Self, BusError> {
        let Pulling { bus, leases, places } = pulling;
        let what = || format!("pulling from {base} of {stream}");
        let bound = bus.bound(stream, base).await?;
        let inbox = bus.client.new_inbox();
        let answers = bus.client.subscribe(inbox.clone()).await;
        let answers = answers.map_err(|error| BusError::unavailable(what(), error))?;
        let held = slots.clone().try_acquire_many_owned(0);
        Ok(Self {
            bus: bus.clone(),
            leases: leases.clone(),
            slots: slots.clone(),
            capacity: slots.available_permits().max(1),
            inbox,
            answers,
            reconnects: bus.reconnects(),
            held: held.map_err(|error| BusError::unavailable(what(), error))?,
            asked: 0,
            nobody: 0,
            heard: Instant::now(),
            not_before: Instant::now(),
            pulse: Pulse::new(),
            place: jetstream::Message { message: nothing(), context: bus.jetstream().clone() },
            consumer: bound.consumer(),
            moved: places.watch(&bound),
            bound,
        })
    }

    /// The next delivery, and the slot that it occupies until it is dropped.
    ///
    /// An error says that the consumer is gone or cannot be asked: make it again, and start a new puller.
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<(Delivery, OwnedSemaphorePermit), BusError> {
        loop {
            self.ask().await?;
            let wake = self.wake_at();
            tokio::select! {
                // Messages that are here go before asking for more.
                biased;
                answer = self.answers.next() => {
                    let Some(answer) = answer else {
                        return Err(BusError::unavailable("pulling", "the subscription ended"));
                    };
                    self.heard = Instant::now();
                    self.pulse.beat();
                    if let Some(found) = self.take(answer).await? {
                        return Ok(found);
                    }
                }
                changed = self.reconnects.changed() => {
                    if changed.is_err() {
                        return Err(BusError::unavailable("pulling", "the connection ended"));
                    }
                    // What was asked for over the old connection will not come over this one.
                    self.asked = 0;
                }
                slot = self.slots.clone().acquire_owned(), if self.held.num_permits() < self.capacity => {
                    self.hold(slot)?;
                }
                () = tokio::time::sleep_until(wake) => {
                    if self.asked == 0 {
                        // Every slot is at work: that is life, too.
                        self.pulse.beat();
                    } else if self.heard.elapsed() > HEARTBEAT * 2 {
                        self.asked = 0;
                        self.heard = Instant::now();
                    }
                }
            }
        }
    }

    /// Tells whether this puller goes on.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Stops asking, and returns what came and was not taken, to be given back.
    pub async fn stop(mut self) -> Result<Vec<Delivery>, BusError> {
        let unsubscribed = self.answers.unsubscribe().await;
        unsubscribed.map_err(|error| BusError::unavailable("ending a pull", error))?;
        let mut untaken = Vec::new();
        while let Some(answer) = self.answers.next().await {
            if answer.status.is_none() {
                untaken.extend(self.deliver(answer));
            }
        }
        Ok(untaken)
    }

    /// Stops, and gives back at once what came and was not taken.
    pub async fn give_back(self) -> Result<(), BusError> {
        for delivery in self.stop().await? {
            delivery.retry_after(Duration::ZERO).await?;
        }
        Ok(())
    }

    fn hold(&mut self, slot: Result<OwnedSemaphorePermit, tokio::sync::AcquireError>) -> Result<(), BusError> {
        let slot = slot.map_err(|error| BusError::unavailable("pulling", error))?;
        self.held.merge(slot);
        Ok(())
    }

    fn wake_at(&self) -> Instant {
        if self.asked > 0 {
            self.heard + HEARTBEAT * 2 + PAUSE
        } else if self.held.num_permits() > 0 {
            self.not_before.max(Instant::now() + PAUSE)
        } else {
            Instant::now() + HEARTBEAT
        }
    }

    /// Asks for as many messages as there are slots held and not asked for yet, in few requests.
    async fn ask(&mut self) -> Result<(), BusError> {
        while let Ok(slot) = self.slots.clone().try_acquire_owned() {
            self.held.merge(slot);
        }
        let free = self.held.num_permits().saturating_sub(self.asked);
        let worth_it = self.asked == 0 || free >= self.capacity.div_ceil(4);
        if free == 0 || !worth_it || Instant::now() < self.not_before || !self.bus.connected() {
            return Ok(());
        }
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let request = PullRequest { batch: free, expires: nanos(EXPIRES), idle_heartbeat: nanos(HEARTBEAT) };
        let body = serde_json::to_vec(&request).map_err(|error| BusError::refused("pulling", error))?;
        let subject = format!("{}.CONSUMER.MSG.NEXT.{}.{}", self.bus.api_prefix, self.bound.stream, self.consumer);
        let sent = self.bus.client.publish_with_reply(subject, self.inbox.clone(), body.into()).await;
        sent.map_err(|error| BusError::unavailable("pulling", error))?;
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
            self.take_status(status, &answer)?;
            return Ok(None);
        }
        self.nobody = 0;
        self.asked = self.asked.saturating_sub(1);
        let Some(delivery) = self.deliver(answer) else { return Ok(None) };
        let slot = match self.held.split(1) {
            Some(slot) => slot,
            // Only after requests were given up as lost and answered all the same.
            None => {
                let slot = self.slots.clone().acquire_owned().await;
                slot.map_err(|error| BusError::unavailable("pulling", error))?
            }
        };
        Ok(Some((delivery, slot)))
    }

    /// The delivery that a message is.
    fn deliver(&mut self, answer: async_nats::Message) -> Option<Delivery> {
        self.place.message.reply.clone_from(&answer.reply);
        let place =
            self.place.info().map(|info| (info.stream_sequence, info.published, (info.delivered, info.pending)));
        let (Ok((sequence, stored, (delivered, pending))), Some(reply)) = (place, answer.reply.clone()) else {
            tracing::warn!(subject = %answer.subject, "a message without a JetStream reply subject was passed over");
            return None;
        };
        let lease = self.leases.take(reply);
        self.moved.store(true, Ordering::Relaxed);
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
            may_be_of_older: self.bound.may_be_of_older(sequence),
            may_have_run: self.bound.may_have_delivered(sequence),
            // Whoever runs it counts.
            attempt: 1,
            pending,
            moved: self.moved.clone(),
            message: answer,
            _lease: lease,
        })
    }

    fn take_status(&mut self, status: StatusCode, answer: &async_nats::Message) -> Result<(), BusError> {
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
                self.not_before = Instant::now() + PAUSE;
                if self.nobody >= NOBODY_MAX {
                    return Err(self.gone("nobody answers for it"));
                }
            }
            StatusCode::TIMEOUT | StatusCode::NOT_FOUND => self.asked -= left.unwrap_or(self.asked).min(self.asked),
            _ => {
                let why = answer.description.clone().unwrap_or_default();
                self.asked -= left.unwrap_or(self.asked).min(self.asked);
                if why.contains("Consumer Deleted") || why.contains("Consumer is push based") {
                    return Err(self.gone(&why));
                }
                self.not_before = Instant::now() + PAUSE;
                tracing::debug!(consumer = self.consumer, code = %status, why, "the server ended a pull");
            }
        }
        Ok(())
    }

    fn gone(&self, why: &str) -> BusError {
        BusError::NotFound(format!("consumer {} of stream {} ({why})", self.consumer, self.bound.stream))
    }
}

//! Stores result sets, all or nothing, by JetStream's atomic batch publishing.
//!
//! An atomic batch takes milliseconds regardless of its size, and a stream stores them one after the other. So sets that arrive while
//! a batch is in flight share the next one. JetStream rejects a batch with a known id, and does not say which; then each of its
//! sets is sent alone, and one that is rejected again was stored before.
//!
//! Source: ADR-50 of nats-architecture-and-design, "Atomic Batch Publishing".

use super::error::ResultExt as _;
use super::{Bus, BusError, PublishError, REQUEST_TIMEOUT};
use async_nats::{HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::MissedTickBehavior,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

/// Maximum messages of an atomic batch, as limited by nats-server.
pub const MAX_MESSAGES: usize = 1000;
/// Target size of a batch.
const TARGET_BATCH_BYTES: usize = 8 << 20;
/// Maximum size of a set: the broker holds a batch in memory until it is complete.
pub(crate) const MAX_SET_BYTES: usize = 64 << 20;
/// Batches in flight. A stream stores one after the other, so a second would only make both smaller: with two, a quarter fewer
/// results are stored per second.
const MAX_IN_FLIGHT_BATCHES: usize = 1;
/// Maximum sets that wait to be sent.
const MAX_QUEUED_SETS: usize = 1024;
/// Maximum memory of sets whose events no longer hold a slot of their function.
const MAX_WAITING_KIB: usize = 32 << 10;
/// Minimum share of that memory per set, which limits their number to the length of the queue.
const MIN_SET_KIB: usize = MAX_WAITING_KIB / MAX_QUEUED_SETS;
/// Interval of the check for overdue batches.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// nats-server's error codes for a batch that cannot be stored.
mod codes {
    pub(super) const DUPLICATE: u64 = 10201;
    pub(super) const MESSAGE_TOO_LARGE: u64 = 10054;
    pub(super) const HEADERS_TOO_LARGE: u64 = 10097;
}

/// A message of a set.
#[derive(Debug, Clone)]
pub(super) struct SetMessage {
    pub(super) subject: Subject,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl SetMessage {
    fn size(&self) -> usize {
        let values = self.headers.iter().flat_map(|(_, values)| values);
        self.body.len() + values.map(|value| value.as_str().len()).sum::<usize>()
    }
}

/// The outcome of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultSetOutcome {
    /// The whole set is stored.
    Stored,
    /// A set of the same run was stored before; this one is discarded.
    Duplicate,
}

#[derive(Debug)]
struct Set {
    messages: Vec<SetMessage>,
    size: usize,
    reply: oneshot::Sender<Result<ResultSetOutcome, PublishError>>,
}

/// Publishes result sets in shared batches; cheap to clone.
#[derive(Debug, Clone)]
pub struct ResultSetPublisher {
    queue: mpsc::Sender<Set>,
    room: Arc<Semaphore>,
}

impl ResultSetPublisher {
    /// Starts the task that sends batches until `stop`.
    pub async fn start(bus: &Bus, stop: CancellationToken, tasks: &TaskTracker) -> Result<Self, BusError> {
        let (queue, sets) = mpsc::channel(MAX_QUEUED_SETS);
        let inbox = bus.client.new_inbox();
        let acks = bus.client.subscribe(format!("{inbox}.*")).await.unavailable("subscribing to acknowledgements")?;
        let sender =
            BatchSender { bus: bus.clone(), inbox, sent: 0, in_flight: BTreeMap::new(), waiting: VecDeque::new() };
        tasks.spawn(async move { stop.run_until_cancelled(sender.run(sets, acks)).await });
        Ok(Self { queue, room: Arc::new(Semaphore::new(MAX_WAITING_KIB)) })
    }

    /// Reserves memory for a set of this size while it waits to be stored, if available.
    pub fn try_reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1024).max(MIN_SET_KIB)).ok()?;
        Arc::clone(&self.room).try_acquire_many_owned(kib).ok()
    }

    /// Publishes a set, all or nothing.
    ///
    /// # Errors
    /// [`PublishError::Unavailable`] if it is unknown whether the set is stored: publish it again.
    pub(super) async fn publish(&self, messages: Vec<SetMessage>) -> Result<ResultSetOutcome, PublishError> {
        let size = messages.iter().map(SetMessage::size).sum();
        if messages.len() > MAX_MESSAGES || size > MAX_SET_BYTES {
            let why = format!(
                "{} results of {size} bytes are more than {MAX_MESSAGES}, or {MAX_SET_BYTES} bytes",
                messages.len()
            );
            return Err(PublishError::Invalid(why));
        }
        let stopped = || PublishError::Unavailable("the worker is stopping".into());
        let (reply, outcome) = oneshot::channel();
        let sent = self.queue.send(Set { messages, size, reply }).await;
        sent.map_err(|_| stopped())?;
        outcome.await.unwrap_or_else(|_| Err(stopped()))
    }
}

/// The task that sends batches.
struct BatchSender {
    bus: Bus,
    inbox: String,
    sent: u64,
    /// By number, which is the last token of the reply subject.
    in_flight: BTreeMap<u64, (Vec<Set>, Instant)>,
    /// Sets to send alone next.
    waiting: VecDeque<Set>,
}

#[derive(Deserialize)]
struct Ack {
    error: Option<AckError>,
    seq: Option<u64>,
}

#[derive(Deserialize)]
struct AckError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl BatchSender {
    async fn run(mut self, mut queue: mpsc::Receiver<Set>, mut acks: Subscriber) {
        let mut reconnects = self.bus.reconnects();
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while self.in_flight.len() < MAX_IN_FLIGHT_BATCHES
                && let Some(set) = self.waiting.pop_front()
            {
                self.send(vec![set]).await;
            }
            tokio::select! {
                biased;
                ack = acks.next() => match ack {
                    Some(ack) => self.acknowledged(&ack),
                    None => return,
                },
                // An acknowledgement for the old connection does not arrive on the new one.
                Ok(()) = reconnects.changed() => self.lose(|_| true),
                _ = check.tick() => self.lose(|since| since.elapsed() >= REQUEST_TIMEOUT),
                set = queue.recv(), if self.in_flight.len() < MAX_IN_FLIGHT_BATCHES => match set {
                    Some(first) => {
                        let sets = gather(first, &mut queue, &mut self.waiting);
                        self.send(sets).await;
                    }
                    None => return,
                },
            }
        }
    }

    async fn send(&mut self, sets: Vec<Set>) {
        // While disconnected the client would buffer, and the callers would wait in vain.
        if !self.bus.connected() {
            for set in sets {
                let _ = set.reply.send(Err(PublishError::Unavailable("not connected to NATS".into())));
            }
            return;
        }
        self.sent += 1;
        let (batch, reply) =
            (Uuid::now_v7().simple().to_string(), Subject::from(format!("{}.{}", self.inbox, self.sent)));
        let last = sets.iter().map(|set| set.messages.len()).sum::<usize>();
        let messages = sets.iter().flat_map(|set| &set.messages);
        for (number, message) in (1..).zip(messages) {
            let SetMessage { subject, mut headers, body } = message.clone();
            headers.insert("Nats-Batch-Id", batch.as_str());
            headers.insert("Nats-Batch-Sequence", number.to_string());
            let client = self.bus.client();
            let sent = if number == last {
                headers.insert("Nats-Batch-Commit", "1");
                client.publish_with_reply_and_headers(subject, reply.clone(), headers, body).await
            } else {
                client.publish_with_headers(subject, headers, body).await
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "cannot send a complete batch of results");
                break;
            }
        }
        // An incomplete batch is never acknowledged, and sent again.
        self.in_flight.insert(self.sent, (sets, Instant::now()));
    }

    fn acknowledged(&mut self, message: &Message) {
        let number = message.subject.rsplit('.').next().and_then(|number| number.parse().ok());
        let Some((sets, _)) = number.and_then(|number: u64| self.in_flight.remove(&number)) else { return };
        match serde_json::from_slice::<Ack>(&message.payload) {
            Ok(Ack { error: None, seq: Some(_) }) => {
                for set in sets {
                    let _ = set.reply.send(Ok(ResultSetOutcome::Stored));
                }
            }
            Ok(Ack { error: Some(error), .. }) => self.refused(sets, &error),
            _ => self.refused(sets, &AckError { err_code: 0, description: "no answer of JetStream".to_owned() }),
        }
    }

    /// Sends rejected sets again one by one, or reports the error to the caller of a single one.
    fn refused(&mut self, mut sets: Vec<Set>, error: &AckError) {
        let alone = sets.len() == 1;
        for set in sets.drain(..) {
            if !alone {
                self.waiting.push_back(set);
                continue;
            }
            let outcome = match error.err_code {
                codes::DUPLICATE => Ok(ResultSetOutcome::Duplicate),
                codes::MESSAGE_TOO_LARGE | codes::HEADERS_TOO_LARGE => {
                    Err(PublishError::Invalid("one exceeds max_msg_size of its stream".to_owned()))
                }
                _ => Err(PublishError::Unavailable(format!("{} ({})", error.description, error.err_code).into())),
            };
            let _ = set.reply.send(outcome);
        }
    }

    /// Fails batches that are not acknowledged.
    fn lose(&mut self, is_lost: impl Fn(Instant) -> bool) {
        for (_, (sets, _)) in self.in_flight.extract_if(.., |_, (_, since)| is_lost(*since)) {
            for set in sets {
                let _ = set.reply.send(Err(PublishError::Unavailable("no acknowledgement came".into())));
            }
        }
    }
}

/// Combines the queued sets that fit in one batch.
fn gather(first: Set, queue: &mut mpsc::Receiver<Set>, waiting: &mut VecDeque<Set>) -> Vec<Set> {
    let (mut count, mut size) = (first.messages.len(), first.size);
    let mut sets = vec![first];
    while count < MAX_MESSAGES && size < TARGET_BATCH_BYTES {
        let Ok(next) = queue.try_recv() else { break };
        if count + next.messages.len() > MAX_MESSAGES {
            waiting.push_back(next);
            break;
        }
        count += next.messages.len();
        size += next.size;
        sets.push(next);
    }
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = oneshot::Receiver<Result<ResultSetOutcome, PublishError>>;

    fn set(messages: usize) -> (Set, Outcome) {
        let message =
            SetMessage { subject: "events.a".into(), headers: HeaderMap::new(), body: Bytes::from_static(b"1") };
        let (reply, outcome) = oneshot::channel();
        (Set { messages: vec![message; messages], size: messages, reply }, outcome)
    }

    async fn sender() -> BatchSender {
        let bus = Bus::disconnected().await.unwrap();
        BatchSender { bus, inbox: "_INBOX.a".to_owned(), sent: 0, in_flight: BTreeMap::new(), waiting: VecDeque::new() }
    }

    fn ack(number: u64, payload: &'static str) -> Message {
        let (subject, payload) = (format!("_INBOX.a.{number}").into(), Bytes::from(payload));
        let length = payload.len();
        Message { subject, reply: None, payload, headers: None, status: None, description: None, length }
    }

    const DUPLICATE: &str =
        r#"{"error":{"code":400,"err_code":10201,"description":"duplicate"},"stream":"EVENTS","seq":0}"#;

    #[tokio::test]
    async fn batch_rejected_for_a_duplicate_is_sent_set_by_set() {
        let mut sender = sender().await;
        let ((one, _one), (two, mut second)) = (set(2), set(3));
        sender.in_flight.insert(7, (vec![one, two], Instant::now()));
        sender.acknowledged(&ack(8, DUPLICATE));
        assert_eq!(sender.in_flight.len(), 1, "the ack of another batch");
        sender.acknowledged(&ack(7, DUPLICATE));
        assert!(sender.in_flight.is_empty() && second.try_recv().is_err());
        assert_eq!(sender.waiting.len(), 2);
        let two = sender.waiting.pop_back().unwrap();
        sender.in_flight.insert(9, (vec![two], Instant::now()));
        sender.acknowledged(&ack(9, DUPLICATE));
        assert!(matches!(second.try_recv(), Ok(Ok(ResultSetOutcome::Duplicate))));
    }

    #[tokio::test]
    async fn each_set_receives_the_outcome_of_its_batch() {
        let mut sender = sender().await;
        for (payload, stored) in [(r#"{"stream":"EVENTS","seq":9,"batch":"b","count":2}"#, true), ("?", false)] {
            let (one, mut outcome) = set(2);
            sender.in_flight.insert(1, (vec![one], Instant::now()));
            sender.acknowledged(&ack(1, payload));
            let outcome = outcome.try_recv().unwrap();
            assert_eq!(matches!(outcome, Ok(ResultSetOutcome::Stored)), stored);
            assert!(stored || matches!(outcome, Err(PublishError::Unavailable(_))));
        }
        let (lost, mut outcome) = set(2);
        sender.in_flight.insert(2, (vec![lost], Instant::now()));
        sender.lose(|_| true);
        assert!(matches!(outcome.try_recv(), Ok(Err(PublishError::Unavailable(_)))));
        let (unsent, mut outcome) = set(2);
        sender.send(vec![unsent]).await;
        assert!(matches!(outcome.try_recv(), Ok(Err(PublishError::Unavailable(_)))));
    }

    #[tokio::test]
    async fn sets_that_fit_share_a_batch() {
        let (queue, mut sets) = mpsc::channel(8);
        for count in [400, 500, 200] {
            queue.send(set(count).0).await.unwrap();
        }
        let mut waiting = VecDeque::new();
        let gathered = gather(set(2).0, &mut sets, &mut waiting);
        assert_eq!(gathered.iter().map(|set| set.messages.len()).collect::<Vec<_>>(), [2, 400, 500]);
        assert_eq!(waiting.len(), 1);
    }
}

//! The task that sends batches and handles their acknowledgements.

use super::super::error::ResultExt as _;
use super::{OutgoingMessage, PublishOutcome, PublishRequest};
use crate::bus::{Bus, BusError, Published, REQUEST_TIMEOUT};
use async_nats::{Message, Subject, Subscriber};
use futures::StreamExt;
use serde::{Deserialize, de::IgnoredAny};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::MissedTickBehavior,
};

/// Target events per batch. While the broker stores one batch, the next is sent and the previous one acknowledged.
/// With larger batches these three steps wait for each other.
const TARGET_BATCH_EVENTS: usize = 16;
/// Target size of a batch's bodies and headers.
const TARGET_BATCH_BYTES: usize = 1 << 20;
/// Batches in flight: one is stored while the next is transmitted.
const MAX_IN_FLIGHT_BATCHES: usize = 2;
/// Flow-ack interval in messages. Larger than a batch, so the broker sends none.
const FLOW_ACK_MESSAGES: usize = 500;
/// Interval of the check for overdue batches.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Sends batches and tracks those in flight.
pub(super) struct BatchSender {
    bus: Bus,
    /// Subject prefix of acknowledgements: an inbox and the batch id, which ends with the batch number.
    acks: String,
    sent: u64,
    /// Batches in flight, by number.
    open: BTreeMap<u64, Batch>,
}

struct Batch {
    /// The callers in order, each with its message count.
    requests: Vec<(usize, oneshot::Sender<PublishOutcome>)>,
    since: Instant,
}

/// The broker's reply to a batch.
#[derive(Deserialize)]
struct Ack {
    /// Present only in flow-control messages, not in the final ack; `err` is final.
    #[serde(rename = "type")]
    kind: Option<String>,
    error: Option<IgnoredAny>,
    seq: Option<u64>,
    #[serde(default)]
    duplicate: bool,
    /// The number of stored messages, from the first on.
    count: Option<usize>,
}

impl BatchSender {
    /// A sender without batches in flight, and the subscription to acknowledgements.
    pub(super) async fn subscribe(bus: &Bus) -> Result<(Self, Subscriber), BusError> {
        let inbox = bus.client().new_inbox();
        let acks = bus.client().subscribe(format!("{inbox}.>")).await.unavailable("listening for acknowledgements")?;
        Ok((Self { bus: bus.clone(), acks: ack_prefix(&inbox), sent: 0, open: BTreeMap::new() }, acks))
    }

    /// Sends publish requests until all publishers are dropped.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<PublishRequest>, mut acks: Subscriber) {
        let mut reconnects = self.bus.reconnects();
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                ack = acks.next() => match ack {
                    Some(ack) => self.handle_ack(&ack),
                    None => return,
                },
                // An acknowledgement for the old connection does not arrive on the new one.
                Ok(()) = reconnects.changed() => {
                    self.fail_batches(|_| true);
                }
                _ = check.tick() => {
                    if self.fail_batches(|batch| batch.since.elapsed() >= REQUEST_TIMEOUT) {
                        if self.bus.connected() {
                            self.bus.space().record_missing_ack();
                        }
                        fail_queued(&mut requests);
                    }
                }
                request = requests.recv(), if self.open.len() < MAX_IN_FLIGHT_BATCHES => match request {
                    Some(first) => self.send(first, &mut requests).await,
                    None => return,
                },
            }
        }
    }

    /// Sends the queued requests as one batch.
    async fn send(&mut self, first: PublishRequest, requests: &mut mpsc::Receiver<PublishRequest>) {
        // While disconnected the client would buffer, and the callers would wait in vain.
        if !self.bus.connected() {
            let _ = first.reply.send(PublishOutcome::Lost);
            return;
        }
        let mut messages = first.messages;
        let mut waiting = vec![(messages.len(), first.reply)];
        let size_of = |messages: &[OutgoingMessage]| messages.iter().map(|message| message.size).sum::<usize>();
        let mut size = size_of(&messages);
        while messages.len() < TARGET_BATCH_EVENTS && size < TARGET_BATCH_BYTES {
            let Ok(request) = requests.try_recv() else { break };
            size += size_of(&request.messages);
            waiting.push((request.messages.len(), request.reply));
            messages.extend(request.messages);
        }
        self.sent += 1;
        self.open.insert(self.sent, Batch { requests: waiting, since: Instant::now() });
        let last = messages.len();
        let acks = self.reply_prefix();
        for (number, message) in (1..).zip(messages) {
            let operation = match number {
                _ if number == last => 2,
                1 => 0,
                _ => 1,
            };
            let reply = reply_subject(&acks, number, operation);
            let client = self.bus.client();
            let OutgoingMessage { subject, headers, body, .. } = message;
            if let Err(error) = client.publish_with_reply_and_headers(subject, reply, headers, body).await {
                tracing::debug!(%error, "batch aborted");
                self.complete(self.sent, 0, None);
                return;
            }
        }
    }

    /// The reply subject prefix of the current batch, which encodes its flow-control options.
    fn reply_prefix(&self) -> String {
        format!("{}{}.{FLOW_ACK_MESSAGES}.fail.", self.acks, self.sent)
    }

    fn handle_ack(&mut self, message: &Message) {
        let after = message.subject.strip_prefix(&*self.acks).and_then(|rest| rest.split('.').next());
        let Some(batch) = after.and_then(|batch| batch.parse().ok()) else { return };
        match serde_json::from_slice::<Ack>(&message.payload) {
            Ok(Ack { kind: Some(kind), .. }) if kind != "err" => {}
            Ok(Ack { error: None, seq: Some(sequence), duplicate, count, .. }) => {
                self.bus.space().stored();
                self.complete(batch, count.unwrap_or(1), Some(Published { sequence, duplicate }));
            }
            _ => {
                tracing::debug!(answer = ?message.payload, "batch rejected; publishing its events individually");
                self.complete(batch, 0, None);
            }
        }
    }

    /// Reports to each caller how many of its events were stored. No-op for a batch that is already settled.
    fn complete(&mut self, batch: u64, mut stored: usize, last: Option<Published>) {
        let Some(batch) = self.open.remove(&batch) else { return };
        let position =
            last.filter(|_| batch.requests.len() == 1 && batch.requests.iter().all(|(count, _)| *count == 1));
        for (count, reply) in batch.requests {
            let own = count.min(stored);
            stored -= own;
            let _ = reply.send(PublishOutcome::Stored(own, position));
        }
    }

    /// Fails batches that will never be acknowledged. Returns whether there were any.
    fn fail_batches(&mut self, is_lost: impl Fn(&Batch) -> bool) -> bool {
        let before = self.open.len();
        for (_, batch) in self.open.extract_if(.., |_, batch| is_lost(batch)) {
            for (_, reply) in batch.requests {
                let _ = reply.send(PublishOutcome::Lost);
            }
        }
        self.open.len() < before
    }
}

/// The subject prefix of acknowledgements. The last token of an inbox is unique, and so is a batch id that begins with
/// it.
fn ack_prefix(inbox: &str) -> String {
    let unique = inbox.rsplit('.').next().unwrap_or_default();
    format!("{inbox}.{unique}-")
}

/// The reply subject of one message of a batch.
fn reply_subject(reply_prefix: &str, number: usize, operation: u8) -> Subject {
    format!("{reply_prefix}{number}.{operation}.$FI").into()
}

/// Fails the queued requests: waiting for a broker that does not respond would only repeat the timeout.
fn fail_queued(requests: &mut mpsc::Receiver<PublishRequest>) {
    while let Ok(request) = requests.try_recv() {
        let _ = request.reply.send(PublishOutcome::Lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::{HeaderMap, StatusCode};
    use bytes::Bytes;
    use oneshot::Receiver;

    /// A sender with one batch in flight, with these message counts per caller.
    async fn sending(counts: &[usize]) -> (BatchSender, Vec<Receiver<PublishOutcome>>) {
        let bus = Bus::disconnected().await.unwrap();
        let mut sending = BatchSender { bus, acks: ack_prefix("_INBOX.abc"), sent: 7, open: BTreeMap::new() };
        let (requests, outcome) = counts
            .iter()
            .map(|count| {
                let (reply, outcome) = oneshot::channel();
                ((*count, reply), outcome)
            })
            .unzip();
        sending.open.insert(7, Batch { requests, since: Instant::now() });
        (sending, outcome)
    }

    fn message(subject: Subject, payload: &'static str) -> Message {
        let (length, payload) = (payload.len(), Bytes::from(payload));
        let status = payload.is_empty().then_some(StatusCode::NO_RESPONDERS);
        Message { subject, reply: None, payload, headers: None, status, description: None, length }
    }

    fn stored_counts(outcome: &mut [Receiver<PublishOutcome>]) -> Vec<Option<usize>> {
        let stored = |outcome: &mut Receiver<PublishOutcome>| match outcome.try_recv() {
            Ok(PublishOutcome::Stored(count, _)) => Some(count),
            Ok(PublishOutcome::Lost) | Err(_) => None,
        };
        outcome.iter_mut().map(stored).collect()
    }

    #[tokio::test]
    async fn each_caller_receives_the_count_of_its_own_events() {
        for (payload, expected) in [
            (r#"{"stream":"EVENTS","seq":9,"batch":"abc-7","count":6}"#, [1, 3, 2]),
            (r#"{"stream":"EVENTS","seq":9,"batch":"abc-7","count":3}"#, [1, 2, 0]),
            (r#"{"stream":"EVENTS","seq":9}"#, [1, 0, 0]),
            (r#"{"error":{"code":400,"err_code":10205},"stream":"EVENTS","seq":0}"#, [0, 0, 0]),
            (r#"{"type":"err","seq":2,"error":{"code":503,"err_code":10077}}"#, [0, 0, 0]),
            ("", [0, 0, 0]),
            ("?", [0, 0, 0]),
        ] {
            let (mut sending, mut outcome) = sending(&[1, 3, 2]).await;
            let reply = reply_subject(&sending.reply_prefix(), 6, 2);
            assert_eq!(reply.as_str(), "_INBOX.abc.abc-7.500.fail.6.2.$FI");
            for between in [r#"{"type":"ack","seq":1,"msgs":500}"#, r#"{"type":"gap","last_seq":1,"seq":3}"#] {
                sending.handle_ack(&message(reply.clone(), between));
            }
            sending.handle_ack(&message("_INBOX.abc.abc-8.500.fail.1.2.$FI".into(), payload));
            assert_eq!(stored_counts(&mut outcome), [None; 3], "the batch is not settled yet");
            sending.handle_ack(&message(reply.clone(), payload));
            assert_eq!(stored_counts(&mut outcome), expected.map(Some), "{payload}");
            sending.handle_ack(&message(reply, payload));
            assert!(sending.open.is_empty());
        }
    }

    #[tokio::test]
    async fn lone_event_receives_its_sequence() {
        for (payload, duplicate) in [
            (r#"{"stream":"EVENTS","seq":9,"batch":"abc-7","count":1}"#, false),
            (r#"{"stream":"EVENTS","seq":9,"duplicate": true,"batch":"abc-7","count":1}"#, true),
        ] {
            let (mut sending, mut outcome) = sending(&[1]).await;
            sending.handle_ack(&message(reply_subject(&sending.reply_prefix(), 1, 2), payload));
            let position = match outcome[0].try_recv() {
                Ok(PublishOutcome::Stored(1, position)) => position,
                other => panic!("{other:?}"),
            };
            assert_eq!(position, Some(Published { sequence: 9, duplicate }));
        }
    }

    #[tokio::test]
    async fn lost_batch_fails_its_callers_only() {
        let (mut sending, mut outcome) = sending(&[1, 1]).await;
        let (reply, other) = oneshot::channel();
        let since = Instant::now() + Duration::from_secs(60);
        sending.open.insert(8, Batch { requests: vec![(1, reply)], since });
        assert!(sending.fail_batches(|batch| batch.since < since));
        assert!(!sending.fail_batches(|batch| batch.since < since), "it was removed");
        for outcome in &mut outcome {
            assert!(matches!(outcome.try_recv(), Ok(PublishOutcome::Lost)));
        }
        assert_eq!(stored_counts(&mut [other]), [None]);
        assert_eq!(sending.open.len(), 1);
    }

    #[tokio::test]
    async fn request_without_a_connection_is_not_sent() {
        let (mut sending, _) = sending(&[]).await;
        sending.open.clear();
        let (reply, mut outcome) = oneshot::channel();
        let message = OutgoingMessage::new("events.a".to_owned(), HeaderMap::new(), Bytes::new());
        sending.send(PublishRequest { messages: vec![message], reply }, &mut mpsc::channel(1).1).await;
        assert!(matches!(outcome.try_recv(), Ok(PublishOutcome::Lost)));
        assert!(sending.open.is_empty());
    }
}

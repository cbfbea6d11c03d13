//! The one task that sends batches and hears what became of them.

use super::{Offer, Outgoing, Told};
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

/// Events of one batch from which on nothing is added: while the broker stores these the next are sent, and the last
/// answered. With larger ones all three wait for each other in turns.
const ENOUGH: usize = 16;
/// Bytes of one batch's bodies and headers from which on nothing is added.
const FULL: usize = 1 << 20;
/// Batches under way at once: one is stored while the next is on the wire.
const AT_ONCE: usize = 2;
/// How often the broker tells how far it is, in messages: more seldom than a batch is long, so not at all.
const FLOW: usize = 500;
/// How often it is looked whether a batch has been under way for too long.
const LOOK: Duration = Duration::from_secs(1);

/// What is under way.
pub(super) struct Sending {
    bus: Bus,
    /// Where acknowledgements come: below an inbox, by the id of the batch, whose number is its end.
    acks: String,
    sent: u64,
    /// Under way, by number.
    open: BTreeMap<u64, Batch>,
}

struct Batch {
    /// Who waits, each for so many messages, in their order.
    offers: Vec<(usize, oneshot::Sender<Told>)>,
    since: Instant,
}

/// What the broker says of a batch.
#[derive(Deserialize)]
struct Ack {
    /// Only what the broker says in between has one; `err` is the last that it says of a batch.
    #[serde(rename = "type")]
    kind: Option<String>,
    error: Option<IgnoredAny>,
    seq: Option<u64>,
    #[serde(default)]
    duplicate: bool,
    /// How many, from the first on, are stored.
    count: Option<usize>,
}

impl Sending {
    /// With nothing under way; and where acknowledgements will come.
    pub(super) async fn begin(bus: &Bus) -> Result<(Self, Subscriber), BusError> {
        let inbox = bus.client().new_inbox();
        let acks = bus.client().subscribe(format!("{inbox}.>")).await;
        let acks = acks.map_err(|error| BusError::unavailable("listening for acknowledgements", error))?;
        Ok((Self { bus: bus.clone(), acks: acks_below(&inbox), sent: 0, open: BTreeMap::new() }, acks))
    }

    /// Sends what is offered, until nobody is left who could.
    pub(super) async fn run(mut self, mut offers: mpsc::Receiver<Offer>, mut acks: Subscriber) {
        let mut reconnects = self.bus.reconnects();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                ack = acks.next() => match ack {
                    Some(ack) => self.hear(&ack),
                    None => return,
                },
                // An acknowledgement over the old connection does not come over the new one.
                Ok(()) = reconnects.changed() => {
                    self.lose(|_| true);
                }
                _ = look.tick() => {
                    if self.lose(|batch| batch.since.elapsed() >= REQUEST_TIMEOUT) {
                        if self.bus.connected() {
                            self.bus.space().unanswered();
                        }
                        give_up(&mut offers);
                    }
                }
                offer = offers.recv(), if self.open.len() < AT_ONCE => match offer {
                    Some(first) => self.send(first, &mut offers).await,
                    None => return,
                },
            }
        }
    }

    /// Sends what is there, as one batch.
    async fn send(&mut self, first: Offer, offers: &mut mpsc::Receiver<Offer>) {
        // While the connection is down the client would buffer, and the callers wait for nothing.
        if !self.bus.connected() {
            let _ = first.tell.send(Told::Lost);
            return;
        }
        let mut messages = first.messages;
        let mut waiting = vec![(messages.len(), first.tell)];
        let size_of = |messages: &[Outgoing]| messages.iter().map(|message| message.size).sum::<usize>();
        let mut size = size_of(&messages);
        while messages.len() < ENOUGH && size < FULL {
            let Ok(offer) = offers.try_recv() else { break };
            size += size_of(&offer.messages);
            waiting.push((offer.messages.len(), offer.tell));
            messages.extend(offer.messages);
        }
        self.sent += 1;
        self.open.insert(self.sent, Batch { offers: waiting, since: Instant::now() });
        let last = messages.len();
        let acks = self.acks_of_batch();
        for (number, message) in (1..).zip(messages) {
            let operation = match number {
                _ if number == last => 2,
                1 => 0,
                _ => 1,
            };
            let reply = reply(&acks, number, operation);
            let client = self.bus.client();
            let Outgoing { subject, headers, body, .. } = message;
            if let Err(error) = client.publish_with_reply_and_headers(subject, reply, headers, body).await {
                tracing::debug!(%error, "a batch was broken off");
                self.settle(self.sent, 0, None);
                return;
            }
        }
    }

    /// How the subjects begin that the broker answers to for the batch that is being sent: with what it is told of that.
    fn acks_of_batch(&self) -> String {
        format!("{}{}.{FLOW}.fail.", self.acks, self.sent)
    }

    fn hear(&mut self, message: &Message) {
        let after = message.subject.strip_prefix(&*self.acks).and_then(|rest| rest.split('.').next());
        let Some(batch) = after.and_then(|batch| batch.parse().ok()) else { return };
        match serde_json::from_slice::<Ack>(&message.payload) {
            Ok(Ack { kind: Some(kind), .. }) if kind != "err" => {}
            Ok(Ack { error: None, seq: Some(sequence), duplicate, count, .. }) => {
                self.bus.space().stored();
                self.settle(batch, count.unwrap_or(1), Some(Published { sequence, duplicate }));
            }
            _ => {
                tracing::debug!(answer = ?message.payload, "a batch is refused; its events go by themselves");
                self.settle(batch, 0, None);
            }
        }
    }

    /// Tells those of a batch how many are stored; nothing when that is settled already.
    fn settle(&mut self, batch: u64, mut stored: usize, last: Option<Published>) {
        let Some(batch) = self.open.remove(&batch) else { return };
        let place = last.filter(|_| batch.offers.len() == 1 && batch.offers.iter().all(|(count, _)| *count == 1));
        for (count, tell) in batch.offers {
            let own = count.min(stored);
            stored -= own;
            let _ = tell.send(Told::Stored(own, place));
        }
    }

    /// Gives those up that nothing will be heard of; whether there were any.
    fn lose(&mut self, is_lost: impl Fn(&Batch) -> bool) -> bool {
        let before = self.open.len();
        for (_, batch) in self.open.extract_if(.., |_, batch| is_lost(batch)) {
            for (_, tell) in batch.offers {
                let _ = tell.send(Told::Lost);
            }
        }
        self.open.len() < before
    }
}

/// How the subjects of acknowledgements begin: the last part of an inbox is unique, and so is a batch's id that begins with
/// it.
fn acks_below(inbox: &str) -> String {
    let unique = inbox.rsplit('.').next().unwrap_or_default();
    format!("{inbox}.{unique}-")
}

/// Where the broker answers to a message of a batch.
fn reply(acks_of_batch: &str, number: usize, operation: u8) -> Subject {
    format!("{acks_of_batch}{number}.{operation}.$FI").into()
}

/// Those that waited behind a batch that the broker never answered would only wait as long again.
fn give_up(offers: &mut mpsc::Receiver<Offer>) {
    while let Ok(offer) = offers.try_recv() {
        let _ = offer.tell.send(Told::Lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::{HeaderMap, StatusCode};
    use bytes::Bytes;
    use oneshot::Receiver;

    /// One batch under way, of so many messages for each of its callers.
    async fn sending(counts: &[usize]) -> (Sending, Vec<Receiver<Told>>) {
        let bus = Bus::disconnected().await.unwrap();
        let mut sending = Sending { bus, acks: acks_below("_INBOX.abc"), sent: 7, open: BTreeMap::new() };
        let (offers, told) = counts
            .iter()
            .map(|count| {
                let (tell, told) = oneshot::channel();
                ((*count, tell), told)
            })
            .unzip();
        sending.open.insert(7, Batch { offers, since: Instant::now() });
        (sending, told)
    }

    fn message(subject: Subject, payload: &'static str) -> Message {
        let (length, payload) = (payload.len(), Bytes::from(payload));
        let status = payload.is_empty().then_some(StatusCode::NO_RESPONDERS);
        Message { subject, reply: None, payload, headers: None, status, description: None, length }
    }

    fn heard(told: &mut [Receiver<Told>]) -> Vec<Option<usize>> {
        let stored = |told: &mut Receiver<Told>| match told.try_recv() {
            Ok(Told::Stored(count, _)) => Some(count),
            Ok(Told::Lost) | Err(_) => None,
        };
        told.iter_mut().map(stored).collect()
    }

    #[tokio::test]
    async fn each_caller_hears_how_many_of_its_own_are_stored() {
        for (payload, expected) in [
            (r#"{"stream":"EVENTS","seq":9,"batch":"abc-7","count":6}"#, [1, 3, 2]),
            (r#"{"stream":"EVENTS","seq":9,"batch":"abc-7","count":3}"#, [1, 2, 0]),
            (r#"{"stream":"EVENTS","seq":9}"#, [1, 0, 0]),
            (r#"{"error":{"code":400,"err_code":10205},"stream":"EVENTS","seq":0}"#, [0, 0, 0]),
            (r#"{"type":"err","seq":2,"error":{"code":503,"err_code":10077}}"#, [0, 0, 0]),
            ("", [0, 0, 0]),
            ("?", [0, 0, 0]),
        ] {
            let (mut sending, mut told) = sending(&[1, 3, 2]).await;
            let reply = reply(&sending.acks_of_batch(), 6, 2);
            assert_eq!(reply.as_str(), "_INBOX.abc.abc-7.500.fail.6.2.$FI");
            for between in [r#"{"type":"ack","seq":1,"msgs":500}"#, r#"{"type":"gap","last_seq":1,"seq":3}"#] {
                sending.hear(&message(reply.clone(), between));
            }
            sending.hear(&message("_INBOX.abc.abc-8.500.fail.1.2.$FI".into(), payload));
            assert_eq!(heard(&mut told), [None; 3], "nothing is settled yet");
            sending.hear(&message(reply.clone(), payload));
            assert_eq!(heard(&mut told), expected.map(Some), "{payload}");
            sending.hear(&message(reply, payload));
            assert!(sending.open.is_empty());
        }
    }

    #[tokio::test]
    async fn one_event_that_goes_alone_hears_where_it_is_stored() {
        for (payload, duplicate) in [
            (r#"{"stream":"EVENTS","seq":9,"batch":"abc-7","count":1}"#, false),
            (r#"{"stream":"EVENTS","seq":9,"duplicate": true,"batch":"abc-7","count":1}"#, true),
        ] {
            let (mut sending, mut told) = sending(&[1]).await;
            sending.hear(&message(reply(&sending.acks_of_batch(), 1, 2), payload));
            let place = match told[0].try_recv() {
                Ok(Told::Stored(1, place)) => place,
                other => panic!("{other:?}"),
            };
            assert_eq!(place, Some(Published { sequence: 9, duplicate }));
        }
    }

    #[tokio::test]
    async fn those_whose_batch_is_lost_hear_it_and_others_go_on() {
        let (mut sending, mut told) = sending(&[1, 1]).await;
        let (tell, other) = oneshot::channel();
        let since = Instant::now() + Duration::from_secs(60);
        sending.open.insert(8, Batch { offers: vec![(1, tell)], since });
        assert!(sending.lose(|batch| batch.since < since));
        assert!(!sending.lose(|batch| batch.since < since), "they are gone");
        for told in &mut told {
            assert!(matches!(told.try_recv(), Ok(Told::Lost)));
        }
        assert_eq!(heard(&mut [other]), [None]);
        assert_eq!(sending.open.len(), 1);
    }

    #[tokio::test]
    async fn without_a_connection_nothing_is_sent() {
        let (mut sending, _) = sending(&[]).await;
        sending.open.clear();
        let (tell, mut told) = oneshot::channel();
        let message = Outgoing::new("events.a".to_owned(), HeaderMap::new(), Bytes::new());
        sending.send(Offer { messages: vec![message], tell }, &mut mpsc::channel(1).1).await;
        assert!(matches!(told.try_recv(), Ok(Told::Lost)));
        assert!(sending.open.is_empty());
    }
}

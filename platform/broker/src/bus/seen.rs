//! The dedupe cache of webhooks: accepted deliveries, remembered for longer than JetStream does.
//!
//! A dedupe key is an [`Identity`]. Every gateway appends its keys to the stream SEEN, many in one message, and follows that
//! stream, so each knows within milliseconds what the others have accepted, and all of it after a restart. A lookup costs no
//! round trip.
//!
//! A key is recorded after the event's acknowledgement, so none can drop an event that was never stored. A gateway that is
//! killed loses the keys of its last moment: until [`streams.dedupe_window`] is over JetStream itself knows those ids, and then
//! a delivery that comes again is stored again.
//!
//! Keys that an older Nerve wrote have another form, and stand on another subject. While such keys are remembered, a delivery is
//! looked up under both forms ([`Seen::has_either`]).
//!
//! [`streams.dedupe_window`]: crate::streams::StreamsConfig::dedupe_window

use super::{Bus, BusError, streams::SEEN, tail::Start};
use async_nats::Message;
use bytes::Bytes;
use nerve_core::{Identity, identity};
use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Keys that are held at most; the oldest are dropped first. About 64 bytes of memory each.
const MAX_KEYS: usize = 1 << 20;
/// How long keys are gathered before they are written.
const WRITE_DELAY: Duration = Duration::from_millis(20);
/// The wait before a failed write is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Keys in one message.
const MAX_MESSAGE_KEYS: usize = 4096;
/// Keys that wait for the broker at most.
const MAX_WAITING_KEYS: usize = 64 * MAX_MESSAGE_KEYS;
/// How long the broker may be silent while the keys of before are read; however many they are, all are read.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a server that stops waits for its last keys to be written.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Where keys are written.
const SUBJECT: &str = "seen.ids";
/// Where an older Nerve wrote its keys; see [`Identity::of_legacy_webhook`].
const OLD_SUBJECT: &str = "seen.hooks";

/// What was accepted within the window; clones share it.
#[derive(Debug, Clone)]
pub struct Seen {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    window: Duration,
    memory: Mutex<Memory>,
    written: Notify,
}

#[derive(Debug, Default)]
struct Memory {
    keys: HashSet<Identity, foldhash::fast::RandomState>,
    /// The same, oldest first, each with the second it was made in.
    order: VecDeque<(i64, Identity)>,
    /// What is being stored at this moment.
    claimed: HashSet<Identity>,
    /// What is still to be written.
    unwritten: Vec<Identity>,
    /// Until when, in seconds since 1970, keys of an older Nerve are remembered; 0 without any.
    old_keys_until: i64,
}

/// A delivery that is being stored; given up when it is dropped.
#[derive(Debug)]
pub struct Claim {
    seen: Seen,
    key: Identity,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.seen.memory().claimed.remove(&self.key);
    }
}

impl Memory {
    fn insert(&mut self, key: Identity, at: i64, oldest: i64) {
        while self.order.len() >= MAX_KEYS || self.order.front().is_some_and(|(made, _)| *made < oldest) {
            if let Some((_, gone)) = self.order.pop_front() {
                self.keys.remove(&gone);
            }
        }
        if at >= oldest && self.keys.insert(key) {
            self.order.push_back((at, key));
        }
    }
}

impl Seen {
    /// A cache that is not shared with other gateways.
    fn alone(window: Duration) -> Self {
        Self { shared: Arc::new(Shared { window, memory: Mutex::default(), written: Notify::new() }) }
    }

    /// For tests without a broker.
    #[doc(hidden)]
    pub fn for_tests() -> Self {
        Self::alone(Duration::from_secs(60))
    }

    /// What any gateway has accepted within `window`, and will until `end`; nothing for a window of zero.
    pub async fn follow(
        bus: &Bus,
        window: Duration,
        end: CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Self, BusError> {
        let seen = Self::alone(window);
        if window.is_zero() {
            return Ok(seen);
        }
        let what = "reading accepted deliveries";
        let stream = bus.jetstream().get_stream(SEEN).await.map_err(|error| BusError::unavailable(what, error))?;
        let (held, last) = (stream.cached_info().state.messages, stream.cached_info().state.last_sequence);
        let mut tail = bus.tail_stream(SEEN, vec!["seen.>".to_owned()], Start::First).await?;
        let mut sequence = 0;
        while held > 0 && sequence < last {
            let next = tokio::time::timeout(READ_TIMEOUT, tail.next_message()).await;
            let (message, at, time) = next.map_err(|error| BusError::unavailable(what, error))?;
            sequence = at;
            seen.read(&message, time);
        }
        let (follower, stop) = (seen.clone(), end.clone());
        tasks.spawn(async move {
            stop.run_until_cancelled(async {
                loop {
                    let (message, _, time) = tail.next_message().await;
                    follower.read(&message, time);
                }
            })
            .await;
        });
        tasks.spawn(seen.clone().write_until(bus.clone(), end));
        Ok(seen)
    }

    /// Whether this was accepted.
    pub fn has(&self, key: Identity) -> bool {
        self.memory().keys.contains(&key)
    }

    /// Whether this was accepted by this Nerve, or by an older one, which knew it by the key that `old` makes.
    pub fn has_either(&self, key: Identity, old: impl FnOnce() -> Identity) -> bool {
        let memory = self.memory();
        let old_counts = memory.old_keys_until > OffsetDateTime::now_utc().unix_timestamp();
        memory.keys.contains(&key) || old_counts && memory.keys.contains(&old())
    }

    /// Reserves `key` for storing. Returns `None` while another request holds it.
    pub fn claim(&self, key: Identity) -> Option<Claim> {
        self.memory().claimed.insert(key).then(|| Claim { seen: self.clone(), key })
    }

    /// Remembers what is stored: here at once, and elsewhere in a moment.
    pub fn remember(&self, keys: impl IntoIterator<Item = Identity>) {
        if self.shared.window.is_zero() {
            return;
        }
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let mut memory = self.memory();
        for key in keys {
            memory.insert(key, now, self.oldest(now));
            if memory.unwritten.len() < MAX_WAITING_KEYS {
                memory.unwritten.push(key);
            }
        }
        drop(memory);
        self.shared.written.notify_one();
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        // A panic elsewhere leaves no key half recorded.
        self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn oldest(&self, now: i64) -> i64 {
        now.saturating_sub(i64::try_from(self.shared.window.as_secs()).unwrap_or(i64::MAX))
    }

    fn read(&self, message: &Message, time: OffsetDateTime) {
        let (oldest, at) = (self.oldest(OffsetDateTime::now_utc().unix_timestamp()), time.unix_timestamp());
        let mut memory = self.memory();
        if message.subject.as_str() == OLD_SUBJECT {
            let window = i64::try_from(self.shared.window.as_secs()).unwrap_or(i64::MAX);
            memory.old_keys_until = memory.old_keys_until.max(at.saturating_add(window));
        }
        for bytes in message.payload.chunks_exact(identity::BYTES) {
            memory.insert(Identity::from_bytes(bytes), at, oldest);
        }
    }

    async fn write_until(self, bus: Bus, end: CancellationToken) {
        let writing = async {
            loop {
                self.shared.written.notified().await;
                tokio::time::sleep(WRITE_DELAY).await;
                while let Err(error) = self.write(&bus).await {
                    tracing::debug!(%error, "accepted deliveries wait for the broker to be recorded");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
        };
        end.run_until_cancelled(writing).await;
        if !matches!(tokio::time::timeout(LAST_WRITE_TIMEOUT, self.write(&bus)).await, Ok(Ok(()))) {
            tracing::warn!(
                "the dedupe keys of the last deliveries were not recorded; a redelivery may be stored twice"
            );
        }
    }

    /// Writes what is unwritten; what cannot be written waits for the next time.
    async fn write(&self, bus: &Bus) -> Result<(), BusError> {
        let unavailable = |error: async_nats::Error| BusError::unavailable("recording accepted deliveries", error);
        loop {
            let chunk: Vec<Identity> = {
                let unwritten = &self.memory().unwritten;
                unwritten.iter().take(MAX_MESSAGE_KEYS).copied().collect()
            };
            if chunk.is_empty() {
                return Ok(());
            }
            if !bus.connected() {
                return Err(unavailable("there is no connection".into()));
            }
            let body: Bytes = chunk.iter().flat_map(|key| key.to_bytes()).collect();
            let sent = bus.jetstream().publish(SUBJECT, body).await.map_err(|error| unavailable(error.into()))?;
            sent.await.map_err(|error| unavailable(error.into()))?;
            self.memory().unwritten.drain(..chunk.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Identity {
        Identity::of_copy("test", text)
    }

    fn message(subject: &str, keys: &[Identity]) -> Message {
        let payload: Bytes = keys.iter().flat_map(|key| key.to_bytes()).collect();
        let length = payload.len();
        let subject = subject.into();
        Message { subject, reply: None, payload, headers: None, status: None, description: None, length }
    }

    #[test]
    fn accepted_key_is_forgotten_after_the_window() {
        let seen = Seen::for_tests();
        seen.remember([key("a")]);
        assert!(seen.has(key("a")) && !seen.has(key("b")));
        let now = OffsetDateTime::now_utc();
        seen.read(&message(SUBJECT, &[key("old")]), now - Duration::from_secs(61));
        seen.read(&message(SUBJECT, &[key("b"), key("c")]), now - Duration::from_secs(59));
        assert!(!seen.has(key("old")) && seen.has(key("b")) && seen.has(key("c")));
        let mut memory = Memory::default();
        memory.insert(key("a"), 10, 0);
        memory.insert(key("b"), 75, 15);
        assert_eq!((memory.keys.len(), memory.order.len()), (1, 1));
    }

    #[test]
    fn old_keys_count_while_there_are_any() {
        let seen = Seen::for_tests();
        let now = OffsetDateTime::now_utc();
        assert!(!seen.has_either(key("a"), || panic!("there are no old keys")));
        seen.read(&message(OLD_SUBJECT, &[key("old-a")]), now);
        assert!(seen.has_either(key("a"), || key("old-a")) && !seen.has_either(key("b"), || key("old-b")));
    }

    #[test]
    fn key_can_be_reserved_once() {
        let seen = Seen::for_tests();
        let claim = seen.claim(key("a")).unwrap();
        assert!(seen.claim(key("a")).is_none() && seen.claim(key("b")).is_some());
        drop(claim);
        assert!(seen.claim(key("a")).is_some());
        let forgetful = Seen::alone(Duration::ZERO);
        forgetful.remember([key("a")]);
        assert!(!forgetful.has(key("a")));
    }
}

//! The dedupe store of webhooks: accepted deliveries, remembered for longer than JetStream does.
//!
//! A dedupe key is an [`Identity`]. Every gateway appends its keys to the stream SEEN, many per message, and follows that
//! stream, so each gateway knows within milliseconds what the others have accepted, and all of it after a restart. A lookup requires
//! no round trip.
//!
//! A key is recorded after the event's acknowledgement, so none can drop an event that was never stored. A gateway that is
//! killed loses its most recent keys: within [`streams.dedupe_window`] JetStream itself knows those ids, after that
//! a redelivery is stored again.
//!
//! Keys of an earlier version of Nerve have another form and another subject. While there are such keys, a delivery is
//! looked up under both forms ([`DedupeStore::has_either`]).
//!
//! [`streams.dedupe_window`]: crate::streams::StreamsConfig::dedupe_window

use super::error::ResultExt as _;
use super::{Bus, BusError, streams::SEEN, tail::Start};
use async_nats::Message;
use bytes::Bytes;
use nerve_core::{Identity, identity};
use parking_lot::Mutex;
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Maximum keys held, at about 64 bytes of memory each; the oldest are dropped first.
const MAX_KEYS: usize = 1 << 20;
/// Delay before keys are written, to combine them.
const WRITE_DELAY: Duration = Duration::from_millis(20);
/// Interval between attempts of a failed write.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Keys in one message.
const MAX_MESSAGE_KEYS: usize = 4096;
/// Maximum keys that wait for the broker.
const MAX_WAITING_KEYS: usize = 64 * MAX_MESSAGE_KEYS;
/// Timeout between messages while the existing keys are read.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of the last write at shutdown.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// The subject of keys.
const SUBJECT: &str = "seen.ids";
/// The subject of an earlier version's keys; see [`Identity::of_legacy_webhook`].
const LEGACY_SUBJECT: &str = "seen.hooks";

/// The keys accepted within the window; cheap to clone.
#[derive(Debug, Clone)]
pub struct DedupeStore {
    shared: Arc<SharedDedupe>,
}

#[derive(Debug)]
struct SharedDedupe {
    window: Duration,
    index: Mutex<DedupeIndex>,
    written: Notify,
}

#[derive(Debug, Default)]
struct DedupeIndex {
    keys: HashSet<Identity, foldhash::fast::RandomState>,
    /// The same keys, oldest first, each with its second.
    order: VecDeque<(i64, Identity)>,
    /// Keys being stored.
    claimed: HashSet<Identity>,
    /// Keys that are not written yet.
    unwritten: Vec<Identity>,
    /// The expiry of an earlier version's keys, in seconds since 1970; 0 if there are none.
    old_keys_until: i64,
}

/// The reservation of a key while its delivery is stored; released on drop.
#[derive(Debug)]
pub struct Claim {
    seen: DedupeStore,
    key: Identity,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.seen.index().claimed.remove(&self.key);
    }
}

impl DedupeIndex {
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

impl DedupeStore {
    /// A cache that is not shared with other gateways.
    fn local(window: Duration) -> Self {
        Self { shared: Arc::new(SharedDedupe { window, index: Mutex::default(), written: Notify::new() }) }
    }

    /// A store without a broker, for tests.
    #[doc(hidden)]
    pub fn for_tests() -> Self {
        Self::local(Duration::from_secs(60))
    }

    /// Loads the keys that any gateway has accepted within `window`, and follows new ones until `end`; no-op for a window of zero.
    pub async fn follow(
        bus: &Bus,
        window: Duration,
        end: CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Self, BusError> {
        let seen = Self::local(window);
        if window.is_zero() {
            return Ok(seen);
        }
        let what = "reading dedupe keys";
        let stream = bus.jetstream().get_stream(SEEN).await.unavailable(what)?;
        let (held, last) = (stream.cached_info().state.messages, stream.cached_info().state.last_sequence);
        let mut tail = bus.tail_stream(SEEN, vec!["seen.>".to_owned()], Start::First).await?;
        let mut sequence = 0;
        while held > 0 && sequence < last {
            let next = tokio::time::timeout(READ_TIMEOUT, tail.next_message()).await;
            let (message, at, time) = next.unavailable(what)?;
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

    /// Returns whether the key was accepted.
    pub fn has(&self, key: Identity) -> bool {
        self.index().keys.contains(&key)
    }

    /// Returns whether the key was accepted, or its form in an earlier version of Nerve, which `old` computes.
    pub fn has_either(&self, key: Identity, old: impl FnOnce() -> Identity) -> bool {
        let index = self.index();
        let old_counts = index.old_keys_until > OffsetDateTime::now_utc().unix_timestamp();
        index.keys.contains(&key) || old_counts && index.keys.contains(&old())
    }

    /// Reserves `key` for storing. Returns `None` while another request holds it.
    pub fn claim(&self, key: Identity) -> Option<Claim> {
        self.index().claimed.insert(key).then(|| Claim { seen: self.clone(), key })
    }

    /// Records stored keys: here immediately, for other gateways shortly afterwards.
    pub fn remember(&self, keys: impl IntoIterator<Item = Identity>) {
        if self.shared.window.is_zero() {
            return;
        }
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let mut index = self.index();
        for key in keys {
            index.insert(key, now, self.oldest(now));
            if index.unwritten.len() < MAX_WAITING_KEYS {
                index.unwritten.push(key);
            }
        }
        drop(index);
        self.shared.written.notify_one();
    }

    fn index(&self) -> parking_lot::MutexGuard<'_, DedupeIndex> {
        // A panic elsewhere leaves every key complete.
        self.shared.index.lock()
    }

    fn oldest(&self, now: i64) -> i64 {
        now.saturating_sub(i64::try_from(self.shared.window.as_secs()).unwrap_or(i64::MAX))
    }

    fn read(&self, message: &Message, time: OffsetDateTime) {
        let (oldest, at) = (self.oldest(OffsetDateTime::now_utc().unix_timestamp()), time.unix_timestamp());
        let mut index = self.index();
        if message.subject.as_str() == LEGACY_SUBJECT {
            let window = i64::try_from(self.shared.window.as_secs()).unwrap_or(i64::MAX);
            index.old_keys_until = index.old_keys_until.max(at.saturating_add(window));
        }
        for bytes in message.payload.chunks_exact(identity::BYTES) {
            index.insert(Identity::from_bytes(bytes), at, oldest);
        }
    }

    async fn write_until(self, bus: Bus, end: CancellationToken) {
        let writing = async {
            loop {
                self.shared.written.notified().await;
                tokio::time::sleep(WRITE_DELAY).await;
                while let Err(error) = self.write(&bus).await {
                    tracing::debug!(%error, "cannot write dedupe keys; retrying");
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

    /// Writes the unwritten keys; a failed write is retried later.
    async fn write(&self, bus: &Bus) -> Result<(), BusError> {
        let unavailable = |error: async_nats::Error| BusError::unavailable("recording accepted deliveries", error);
        loop {
            let chunk: Vec<Identity> = {
                let unwritten = &self.index().unwritten;
                unwritten.iter().take(MAX_MESSAGE_KEYS).copied().collect()
            };
            if chunk.is_empty() {
                return Ok(());
            }
            if !bus.connected() {
                return Err(unavailable("not connected to NATS".into()));
            }
            let body: Bytes = chunk.iter().flat_map(|key| key.to_bytes()).collect();
            let sent = bus.jetstream().publish(SUBJECT, body).await.map_err(|error| unavailable(error.into()))?;
            sent.await.map_err(|error| unavailable(error.into()))?;
            self.index().unwritten.drain(..chunk.len());
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
    fn accepted_key_expires_after_the_window() {
        let seen = DedupeStore::for_tests();
        seen.remember([key("a")]);
        assert!(seen.has(key("a")) && !seen.has(key("b")));
        let now = OffsetDateTime::now_utc();
        seen.read(&message(SUBJECT, &[key("old")]), now - Duration::from_secs(61));
        seen.read(&message(SUBJECT, &[key("b"), key("c")]), now - Duration::from_secs(59));
        assert!(!seen.has(key("old")) && seen.has(key("b")) && seen.has(key("c")));
        let mut index = DedupeIndex::default();
        index.insert(key("a"), 10, 0);
        index.insert(key("b"), 75, 15);
        assert_eq!((index.keys.len(), index.order.len()), (1, 1));
    }

    #[test]
    fn legacy_keys_are_checked_while_there_are_any() {
        let seen = DedupeStore::for_tests();
        let now = OffsetDateTime::now_utc();
        assert!(!seen.has_either(key("a"), || panic!("there are no old keys")));
        seen.read(&message(LEGACY_SUBJECT, &[key("old-a")]), now);
        assert!(seen.has_either(key("a"), || key("old-a")) && !seen.has_either(key("b"), || key("old-b")));
    }

    #[test]
    fn key_can_be_reserved_once() {
        let seen = DedupeStore::for_tests();
        let claim = seen.claim(key("a")).unwrap();
        assert!(seen.claim(key("a")).is_none() && seen.claim(key("b")).is_some());
        drop(claim);
        assert!(seen.claim(key("a")).is_some());
        let forgetful = DedupeStore::local(Duration::ZERO);
        forgetful.remember([key("a")]);
        assert!(!forgetful.has(key("a")));
    }
}

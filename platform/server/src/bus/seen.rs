//! Deliveries that were taken in, remembered for longer than JetStream does.
//!
//! A mark is 16 bytes of a digest. Every gateway appends its marks to the stream SEEN, many in one message, and follows that
//! stream, so each knows within milliseconds what the others have taken in, and all of it after a restart. To look one up
//! costs no round trip.
//!
//! A mark is made after the event's acknowledgement, so none can swallow an event that was never stored. What is lost with
//! a gateway that is killed is the marks of its last moment: until [`streams.dedupe_window`] is over JetStream itself knows
//! those ids, and then a delivery that comes again is stored again.
//!
//! [`streams.dedupe_window`]: crate::config::StreamsConfig::dedupe_window

use super::{Bus, BusError, streams::SEEN, tail::Start};
use bytes::Bytes;
use nerve_core::Name;
use sha2::{Digest, Sha256};
use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Marks that are held at most; the oldest go first. 64 bytes of memory each, or so.
const MOST: usize = 1 << 20;
/// How long marks are gathered before they are written.
const GATHER: Duration = Duration::from_millis(20);
/// The wait before they are written again, when the broker is away.
const AGAIN: Duration = Duration::from_millis(250);
/// Marks in one message.
const CHUNK: usize = 4096;
/// Marks that wait for the broker at most.
const WAITING: usize = 64 * CHUNK;
/// How long the broker may be silent while the marks of before are read; however many they are, they are read to the end.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a server that ends waits for its last marks to be written.
const LAST: Duration = Duration::from_secs(2);

/// Stands for one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Mark(u128);

impl Mark {
    /// How many bytes it is written in.
    pub(crate) const BYTES: usize = 16;

    /// The mark of what is known to a source by this `key`, in parts, of this `kind`.
    pub(crate) fn of(source: &Name, kind: &str, key: &[&str]) -> Self {
        let mut digest = Sha256::new().chain_update(source.as_str()).chain_update("\0").chain_update(kind);
        digest.update("\0");
        key.iter().for_each(|part| digest.update(part));
        Self::from_bytes(digest.finalize().split_at(Self::BYTES).0)
    }

    /// Reads one; of more bytes the last 16 count.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(0, |mark, byte| mark << 8 | u128::from(*byte)))
    }

    /// Writes it.
    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0.to_be_bytes()
    }
}

/// What was taken in within the window; clones are the same.
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
    marks: HashSet<Mark, foldhash::fast::RandomState>,
    /// The same, oldest first, each with the second it was made in.
    order: VecDeque<(i64, Mark)>,
    /// What is being stored at this moment.
    claimed: HashSet<Mark>,
    /// What is still to be written.
    unwritten: Vec<Mark>,
}

/// A delivery that is being stored; given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    seen: Seen,
    mark: Mark,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.seen.memory().claimed.remove(&self.mark);
    }
}

impl Memory {
    fn insert(&mut self, mark: Mark, at: i64, oldest: i64) {
        while self.order.len() >= MOST || self.order.front().is_some_and(|(made, _)| *made < oldest) {
            if let Some((_, gone)) = self.order.pop_front() {
                self.marks.remove(&gone);
            }
        }
        if at >= oldest && self.marks.insert(mark) {
            self.order.push_back((at, mark));
        }
    }
}

impl Seen {
    /// Remembers for `window`, and tells nobody.
    fn alone(window: Duration) -> Self {
        Self { shared: Arc::new(Shared { window, memory: Mutex::default(), written: Notify::new() }) }
    }

    /// For tests without a broker.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self::alone(Duration::from_secs(60))
    }

    /// What any gateway has taken in within `window`, and what it will until `end`; nothing for a window of zero.
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
        let what = "reading what was taken in";
        let stream = bus.jetstream().get_stream(SEEN).await.map_err(|error| BusError::unavailable(what, error))?;
        let (held, last) = (stream.cached_info().state.messages, stream.cached_info().state.last_sequence);
        let mut tail = bus.tail_stream(SEEN, vec!["seen.>".to_owned()], Start::First).await?;
        let mut sequence = 0;
        while held > 0 && sequence < last {
            let next = tokio::time::timeout(SILENCE, tail.next_message()).await;
            let (message, at, time) = next.map_err(|error| BusError::unavailable(what, error))?;
            sequence = at;
            seen.read(&message.payload, time);
        }
        let (follower, stop) = (seen.clone(), end.clone());
        tasks.spawn(async move {
            stop.run_until_cancelled(async {
                loop {
                    let (message, _, time) = tail.next_message().await;
                    follower.read(&message.payload, time);
                }
            })
            .await;
        });
        tasks.spawn(seen.clone().write_until(bus.clone(), end));
        Ok(seen)
    }

    /// Whether this was taken in.
    pub(crate) fn has(&self, mark: Mark) -> bool {
        self.memory().marks.contains(&mark)
    }

    /// The right to store what `mark` stands for; none while another has it.
    pub(crate) fn claim(&self, mark: Mark) -> Option<Claim> {
        self.memory().claimed.insert(mark).then(|| Claim { seen: self.clone(), mark })
    }

    /// Remembers what is stored: here at once, and elsewhere in a moment.
    pub(crate) fn remember(&self, marks: impl IntoIterator<Item = Mark>) {
        if self.shared.window.is_zero() {
            return;
        }
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let mut memory = self.memory();
        for mark in marks {
            memory.insert(mark, now, self.oldest(now));
            if memory.unwritten.len() < WAITING {
                memory.unwritten.push(mark);
            }
        }
        drop(memory);
        self.shared.written.notify_one();
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        // A panic elsewhere leaves no mark half made.
        self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn oldest(&self, now: i64) -> i64 {
        now.saturating_sub(i64::try_from(self.shared.window.as_secs()).unwrap_or(i64::MAX))
    }

    fn read(&self, batch: &[u8], time: OffsetDateTime) {
        let oldest = self.oldest(OffsetDateTime::now_utc().unix_timestamp());
        let mut memory = self.memory();
        for bytes in batch.chunks_exact(Mark::BYTES) {
            let mark = Mark::from_bytes(bytes);
            memory.insert(mark, time.unix_timestamp(), oldest);
        }
    }

    async fn write_until(self, bus: Bus, end: CancellationToken) {
        let writing = async {
            loop {
                self.shared.written.notified().await;
                tokio::time::sleep(GATHER).await;
                while let Err(error) = self.write(&bus).await {
                    tracing::debug!(%error, "what was taken in waits for the broker to be written down");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        };
        end.run_until_cancelled(writing).await;
        if !matches!(tokio::time::timeout(LAST, self.write(&bus)).await, Ok(Ok(()))) {
            tracing::warn!("the last deliveries are not written down: one that comes again may be stored again");
        }
    }

    /// Writes what is unwritten; what cannot be written waits for the next time.
    async fn write(&self, bus: &Bus) -> Result<(), BusError> {
        let unavailable = |error: async_nats::Error| BusError::unavailable("writing down what was taken in", error);
        loop {
            let chunk: Vec<Mark> = {
                let unwritten = &self.memory().unwritten;
                unwritten.iter().take(CHUNK).copied().collect()
            };
            if chunk.is_empty() {
                return Ok(());
            }
            if !bus.connected() {
                return Err(unavailable("there is no connection".into()));
            }
            let body: Bytes = chunk.iter().flat_map(|mark| mark.to_bytes()).collect();
            let sent = bus.jetstream().publish("seen.hooks", body).await.map_err(|error| unavailable(error.into()))?;
            sent.await.map_err(|error| unavailable(error.into()))?;
            self.memory().unwritten.drain(..chunk.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(key: &str) -> Mark {
        Mark::of(&Name::parse("s").unwrap(), "id", &[key])
    }

    #[test]
    fn a_mark_is_of_its_source_kind_and_key() {
        let other = Name::parse("t").unwrap();
        let marks = [mark("a"), mark("b"), Mark::of(&other, "id", &["a"]), Mark::of(&other, "signed", &["a"])];
        assert_eq!(marks.iter().collect::<HashSet<_>>().len(), marks.len());
        assert_eq!(mark("a"), mark("a"));
    }

    #[test]
    fn what_is_remembered_is_forgotten_after_the_window() {
        let seen = Seen::for_tests();
        seen.remember([mark("a")]);
        assert!(seen.has(mark("a")) && !seen.has(mark("b")));
        let now = OffsetDateTime::now_utc();
        let written = |key: &str| mark(key).to_bytes();
        seen.read(&written("old"), now - Duration::from_secs(61));
        seen.read(&[written("b"), written("c")].concat(), now - Duration::from_secs(59));
        assert!(!seen.has(mark("old")) && seen.has(mark("b")) && seen.has(mark("c")));
        let mut memory = Memory::default();
        memory.insert(mark("a"), 10, 0);
        memory.insert(mark("b"), 75, 15);
        assert_eq!((memory.marks.len(), memory.order.len()), (1, 1));
    }

    #[test]
    fn a_claim_is_one_at_a_time() {
        let seen = Seen::for_tests();
        let claim = seen.claim(mark("a")).unwrap();
        assert!(seen.claim(mark("a")).is_none() && seen.claim(mark("b")).is_some());
        drop(claim);
        assert!(seen.claim(mark("a")).is_some());
        let forgetful = Seen::alone(Duration::ZERO);
        forgetful.remember([mark("a")]);
        assert!(!forgetful.has(mark("a")));
    }
}

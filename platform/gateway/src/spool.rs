//! Webhooks on disk while the broker is away: for sources that say `spool = true`, and for them only.
//!
//! Whoever sends to such a source is answered 2xx once the events are on this gateway's disk, synced. They go into the log
//! in the order they came in, a source at a time, when the broker is back, be it after a `kill -9` of the gateway. While a source
//! has events here, what comes next for it waits behind them. What finds no room is answered 503.
//!
//! # Layout
//! - `disk`: the file, and the one thread that writes it. `drain`: from the file into the log.
//!
//! # Flow
//! the log cannot take an event → room is claimed → many requests' events are written and synced as one → 202 … the broker
//! answers → published under the same id, oldest first → removed from the file.

mod disk;
mod drain;

pub use drain::Drain;

use disk::{Disk, Entry, Row};
use nerve_core::{Event, Identity, Name};
use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

/// Events that one file holds at most: each is remembered in memory by its keys, about 100 bytes.
const MOST: usize = 1 << 20;

/// Events on disk, on their way into the log; clones are the same.
#[derive(Debug, Clone)]
pub struct Spool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    max_bytes: u64,
    held: Mutex<Held>,
    disk: Disk,
    arrived: Notify,
}

/// What is on disk or on its way there.
#[derive(Debug, Default)]
struct Held {
    /// Of what is on disk, synced: a sender that sends it again is told that it is accepted.
    keys: HashSet<Identity>,
    /// Events by source; none with zero.
    sources: BTreeMap<Name, usize>,
    events: usize,
    bytes: u64,
}

/// A delivery's events that go to disk together or not at all.
#[derive(Debug)]
pub(crate) struct Spooled {
    /// The source they came from.
    pub(crate) source: Name,
    /// Each event with its identity.
    pub(crate) events: Vec<(Identity, Event)>,
    /// The identity of what is signed, where it counts.
    pub(crate) signed: Option<Identity>,
    /// Whether the log was tried first, so that it may have them although nobody was told.
    pub(crate) tried: bool,
}

/// Why events are not on disk.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpoolError {
    /// There is no room: the sender has to try again.
    #[error("the spool is full; gateway.spool_max_bytes bounds it")]
    Full,
    /// Another gateway has the file.
    #[error("the spool {} is another gateway's: give each gateway a data.dir of its own", .0.display())]
    Taken(PathBuf),
    /// The disk, or what stands on it.
    #[error("{what} the spool {} failed; it holds webhooks that were answered 2xx, so keep the file", .path.display())]
    Disk {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The server is ending.
    #[error("the spool is closed")]
    Closed,
}

impl Held {
    /// Counts an event that takes room.
    fn add(&mut self, entry: &Entry) {
        *self.sources.entry(entry.source.clone()).or_default() += 1;
        self.events += 1;
        self.bytes += entry.size;
    }

    /// Counts it no more.
    fn remove(&mut self, entry: &Entry) {
        if let Some(count) = self.sources.get_mut(&entry.source) {
            *count = count.saturating_sub(1);
        }
        self.sources.retain(|_, count| *count > 0);
        self.events = self.events.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(entry.size);
    }

    fn tell(&self) {
        #[expect(clippy::cast_precision_loss, reason = "a gauge need not be exact beyond 2^52")]
        metrics::gauge!("nerve_gateway_spool_bytes").set(self.bytes as f64);
        #[expect(clippy::cast_precision_loss, reason = "a gauge need not be exact beyond 2^52")]
        metrics::gauge!("nerve_gateway_spool_events").set(self.events as f64);
    }
}

impl Spool {
    /// The spool at `path`, with what an earlier run left there; the file is made when the first event needs it.
    ///
    /// # Errors
    /// When the file is there and cannot be read, or is another gateway's.
    pub async fn open(path: &Path, max_bytes: u64, tasks: &TaskTracker) -> Result<Self, SpoolError> {
        let (disk, entries) = Disk::open(path.to_owned(), tasks).await?;
        let mut held = Held::default();
        for entry in &entries {
            held.add(entry);
            held.keys.extend(&entry.keys);
        }
        if held.events > 0 {
            tracing::info!(events = held.events, bytes = held.bytes, "webhooks of before wait in the spool");
        }
        held.tell();
        let shared = Shared { max_bytes, held: Mutex::new(held), disk, arrived: Notify::new() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Whether events of this source are on disk, or on their way there, so that others have to wait behind them.
    pub(crate) fn holds(&self, source: &Name) -> bool {
        self.held().sources.contains_key(source)
    }

    /// Whether what this key stands for is on disk.
    pub(crate) fn has(&self, key: Identity) -> bool {
        self.held().keys.contains(&key)
    }

    /// Whether it can take one more event.
    pub(crate) fn has_room(&self) -> bool {
        let held = self.held();
        held.events < MOST && held.bytes < self.shared.max_bytes
    }

    /// Puts a delivery's events on disk; they are synced when this returns.
    pub(crate) async fn put(&self, spooled: Spooled) -> Result<(), SpoolError> {
        let rows = rows_of(spooled);
        let claim = self.claim(rows.iter().map(|row| row.entry.clone()).collect())?;
        self.shared.disk.put(rows, claim).await
    }

    /// Takes room for these events, which count from now on, unless the claim is dropped.
    fn claim(&self, entries: Vec<Entry>) -> Result<Claim, SpoolError> {
        let mut held = self.held();
        let bytes: u64 = entries.iter().map(|entry| entry.size).sum();
        if held.events + entries.len() > MOST || held.bytes.saturating_add(bytes) > self.shared.max_bytes {
            return Err(SpoolError::Full);
        }
        entries.iter().for_each(|entry| held.add(entry));
        held.tell();
        Ok(Claim { spool: self.clone(), entries })
    }

    /// Forgets events that are no longer on disk.
    fn forget(&self, entries: &[Entry]) {
        let mut held = self.held();
        for entry in entries {
            held.remove(entry);
            for key in &entry.keys {
                held.keys.remove(key);
            }
        }
        held.tell();
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // A panic elsewhere leaves no row half counted that matters: the counts bound, they do not store.
        self.shared.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room for events that are being written. The disk's thread has it, so that events whose sender has left meanwhile
/// count all the same.
#[derive(Debug)]
struct Claim {
    spool: Spool,
    entries: Vec<Entry>,
}

impl Claim {
    /// They are on disk.
    fn keep(mut self) {
        let entries = std::mem::take(&mut self.entries);
        self.spool.held().keys.extend(entries.iter().flat_map(|entry| &entry.keys));
        self.spool.shared.arrived.notify_one();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut held = self.spool.held();
        self.entries.iter().for_each(|entry| held.remove(entry));
        held.tell();
    }
}

fn rows_of(spooled: Spooled) -> Vec<Row> {
    let last = spooled.events.len().saturating_sub(1);
    let row = |(at, (key, event)): (usize, (Identity, Event))| {
        // What is signed is known as long as one of its events is here.
        let keys = [Some(key), spooled.signed.filter(|_| at == last)].into_iter().flatten().collect();
        let entry = Entry { source: spooled.source.clone(), keys, size: disk::size_of(&event) };
        Row { entry, event, tried: spooled.tried }
    };
    spooled.events.into_iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests;

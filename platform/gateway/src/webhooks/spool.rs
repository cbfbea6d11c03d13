//! Webhooks on disk while NATS is unavailable, for sources with `spool = true`.
//!
//! Senders of such a source get 2xx once the events are synced to this gateway's disk. When NATS is available again, the events are
//! published in order per source, also after a `kill -9` of the gateway. While a source has events here, new ones queue behind them. When the
//! spool is full, senders get 503.
//!
//! # Layout
//! - `disk`: the SQLite file and its writer thread. `drain`: publishes from the file.
//!
//! # Flow
//! publish fails → reserve space → write and sync the events of many requests in one transaction → 202 … NATS is available → publish
//! under the same id, oldest first → delete from the file.

mod disk;
mod drain;

pub use drain::Drain;

use disk::{Disk, Entry, Row};
use nerve_core::{Event, Identity, Name};
use parking_lot::{Mutex, MutexGuard};
use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

/// Maximum number of events: their keys take about 100 bytes of memory each.
const MAX_EVENTS: usize = 1 << 20;

/// Events on disk; clones share the file.
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

/// Events on disk or being written.
#[derive(Debug, Default)]
struct Held {
    /// Keys of synced events, to accept duplicates of them.
    keys: HashSet<Identity>,
    /// Number of events per source, without zeros.
    sources: BTreeMap<Name, usize>,
    events: usize,
    bytes: u64,
}

/// The events of a delivery, written all or none.
#[derive(Debug)]
pub(crate) struct Spooled {
    /// The source.
    pub(crate) source: Name,
    /// Each event with its identity.
    pub(crate) events: Vec<(Identity, Event)>,
    /// The identity of the signed bytes, if the source deduplicates by them.
    pub(crate) signed: Option<Identity>,
    /// Whether publishing was tried first, so that the events may be stored without an acknowledgement.
    pub(crate) tried: bool,
}

/// Why events were not written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpoolError {
    /// The spool is full.
    #[error("the spool is full (gateway.spool_max_bytes)")]
    Full,
    /// Another gateway uses the file.
    #[error("the spool {} is in use by another gateway: give each gateway its own data.dir", .0.display())]
    Taken(PathBuf),
    /// The disk or the file fails.
    #[error("{what} the spool {} failed; it holds webhooks that were answered 2xx, so keep the file", .path.display())]
    Disk {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The server is shutting down.
    #[error("the spool is closed")]
    Closed,
}

impl Held {
    /// Counts an event.
    fn add(&mut self, entry: &Entry) {
        *self.sources.entry(entry.source.clone()).or_default() += 1;
        self.events += 1;
        self.bytes += entry.size;
    }

    /// No longer counts an event.
    fn remove(&mut self, entry: &Entry) {
        if let Some(count) = self.sources.get_mut(&entry.source) {
            *count = count.saturating_sub(1);
        }
        self.sources.retain(|_, count| *count > 0);
        self.events = self.events.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(entry.size);
    }

    fn update_metrics(&self) {
        #[expect(clippy::cast_precision_loss, reason = "a gauge need not be exact beyond 2^52")]
        metrics::gauge!("nerve_gateway_spool_bytes").set(self.bytes as f64);
        #[expect(clippy::cast_precision_loss, reason = "a gauge need not be exact beyond 2^52")]
        metrics::gauge!("nerve_gateway_spool_events").set(self.events as f64);
    }
}

impl Spool {
    /// Opens the spool at `path`, with the events of earlier runs. The file is created with the first event.
    ///
    /// # Errors
    /// When the file cannot be read or is in use by another gateway.
    pub async fn open(path: &Path, max_bytes: u64, tasks: &TaskTracker) -> Result<Self, SpoolError> {
        let (disk, entries) = Disk::open(path.to_owned(), tasks).await?;
        let mut held = Held::default();
        for entry in &entries {
            held.add(entry);
            held.keys.extend(&entry.keys);
        }
        if held.events > 0 {
            tracing::info!(events = held.events, bytes = held.bytes, "spool holds webhooks of an earlier run");
        }
        held.update_metrics();
        let shared = Shared { max_bytes, held: Mutex::new(held), disk, arrived: Notify::new() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Whether events of this source are queued, so that new ones have to queue behind them.
    pub(crate) fn holds(&self, source: &Name) -> bool {
        self.held().sources.contains_key(source)
    }

    /// Whether an event with this key is on disk.
    pub(crate) fn has(&self, key: Identity) -> bool {
        self.held().keys.contains(&key)
    }

    /// Whether there is space for another event.
    pub(crate) fn has_space(&self) -> bool {
        let held = self.held();
        held.events < MAX_EVENTS && held.bytes < self.shared.max_bytes
    }

    /// Writes and syncs the events of a delivery.
    ///
    /// # Errors
    /// When the spool is full or the disk fails.
    pub(crate) async fn put(&self, spooled: Spooled) -> Result<(), SpoolError> {
        let rows = rows_of(spooled);
        let claim = self.claim(rows.iter().map(|row| row.entry.clone()).collect())?;
        self.shared.disk.put(rows, claim).await
    }

    /// Reserves space for these events until the claim is dropped.
    fn claim(&self, entries: Vec<Entry>) -> Result<Claim, SpoolError> {
        let mut held = self.held();
        let bytes: u64 = entries.iter().map(|entry| entry.size).sum();
        if held.events + entries.len() > MAX_EVENTS || held.bytes.saturating_add(bytes) > self.shared.max_bytes {
            return Err(SpoolError::Full);
        }
        entries.iter().for_each(|entry| held.add(entry));
        held.update_metrics();
        Ok(Claim { spool: self.clone(), entries })
    }

    /// No longer counts events that were deleted from disk.
    fn forget(&self, entries: &[Entry]) {
        let mut held = self.held();
        for entry in entries {
            held.remove(entry);
            for key in &entry.keys {
                held.keys.remove(key);
            }
        }
        held.update_metrics();
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // After a panic elsewhere the counts may be off; they limit the spool and do not store anything.
        self.shared.held.lock()
    }
}

/// Space for events that are being written. The writer thread holds it, so that the events count even if their sender disconnects.
#[derive(Debug)]
struct Claim {
    spool: Spool,
    entries: Vec<Entry>,
}

impl Claim {
    /// The events are synced.
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
        held.update_metrics();
    }
}

fn rows_of(spooled: Spooled) -> Vec<Row> {
    let last = spooled.events.len().saturating_sub(1);
    let row = |(at, (key, event)): (usize, (Identity, Event))| {
        // The signed key stays as long as the last of its events.
        let keys = [Some(key), spooled.signed.filter(|_| at == last)].into_iter().flatten().collect();
        let entry = Entry { source: spooled.source.clone(), keys, size: disk::size_of(&event) };
        Row { entry, event, tried: spooled.tried }
    };
    spooled.events.into_iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests;

//! Publishes from the spool: in order, each event once.

use crate::webhooks::spool::{
    Spool,
    disk::{Row, StoredRow},
};
use futures::future::join_all;
use nerve_broker::bus::{Bus, DedupeStore, FastPublisher, PublishError};
use nerve_core::{Event, Identity, Name, Origin};
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::Duration,
};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// First wait before publishing is retried; it doubles with each failure, since each retry reads the file.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Maximum wait, also after a disk failure.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Publishes the events of a spool.
#[derive(Debug)]
pub struct Drain {
    spool: Spool,
    bus: Bus,
    batches: FastPublisher,
    dedupe_store: DedupeStore,
    /// JetStream's dedupe window.
    window: Duration,
    /// Rows that may have been published already.
    uncertain: HashSet<i64>,
}

/// The result of publishing the first rows.
enum Outcome {
    /// This number of rows is stored.
    Stored(usize),
    /// The first row is invalid.
    Refused(String),
    /// NATS is unavailable.
    Unavailable,
}

impl Drain {
    /// `window` is JetStream's dedupe window.
    pub fn new(
        spool: Spool,
        (bus, batches): (Bus, FastPublisher),
        dedupe_store: DedupeStore,
        window: Duration,
    ) -> Self {
        Self { spool, bus, batches, dedupe_store, window, uncertain: HashSet::new() }
    }

    /// Publishes events as they are written, until `end`.
    pub async fn run(mut self, end: CancellationToken) {
        end.run_until_cancelled(async {
            // A gateway that was killed may have published its last chunk without deleting it.
            let mut unknown = true;
            let mut wait = RETRY_INTERVAL;
            loop {
                while self.spool.held().events == 0 {
                    unknown = false;
                    self.spool.shared.arrived.notified().await;
                }
                if !self.bus.connected() {
                    wait = RETRY_INTERVAL;
                } else if self.chunk(&mut unknown).await {
                    wait = RETRY_INTERVAL;
                    continue;
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(MAX_RETRY_INTERVAL);
            }
        })
        .await;
    }

    /// Publishes the oldest rows, in order per source. Returns `false` if a retry has to wait.
    async fn chunk(&mut self, unknown: &mut bool) -> bool {
        let rows = match self.spool.shared.disk.oldest().await {
            Ok(rows) if rows.is_empty() => return false,
            Ok(rows) => rows,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the spool cannot be drained");
                return false;
            }
        };
        if std::mem::take(unknown) {
            self.uncertain.extend(rows.iter().map(|placed| placed.sequence));
        }
        let Some(stored) = self.stored_before(&rows).await else { return false };
        let mut sources: BTreeMap<Name, VecDeque<StoredRow>> = BTreeMap::new();
        for placed in rows {
            sources.entry(placed.row.entry.source.clone()).or_default().push_back(placed);
        }
        let sources = sources.into_values().map(|rows| self.publish_source(rows, &stored));
        let ended: Vec<SourceRows> = join_all(sources).await;
        let all = ended.iter().all(|source| source.left.is_empty());
        let mut gone = Vec::new();
        for source in ended {
            self.uncertain.extend(source.left.iter().map(|placed| placed.sequence));
            gone.extend(source.gone);
        }
        self.take_out(gone).await;
        all
    }

    /// Publishes the rows of a source until one fails.
    async fn publish_source(&self, mut left: VecDeque<StoredRow>, stored: &HashSet<i64>) -> SourceRows {
        let mut gone = Vec::new();
        while let Some(first) = left.front() {
            let outcome = match stored.contains(&first.sequence) {
                true => Outcome::Stored(1),
                false => self.publish(left.iter().take_while(|placed| !stored.contains(&placed.sequence))).await,
            };
            match outcome {
                Outcome::Stored(count) => gone.extend(left.drain(..count).map(|placed| (placed, None))),
                Outcome::Refused(why) => gone.extend(left.pop_front().map(|placed| (placed, Some(why)))),
                Outcome::Unavailable => break,
            }
        }
        SourceRows { gone, left }
    }

    async fn publish(&self, rows: impl Iterator<Item = &StoredRow>) -> Outcome {
        let events: Vec<_> = rows.map(identified).collect();
        let published = async {
            for (_, event) in &events {
                self.bus.admit(event).await?;
            }
            self.batches.publish_some(&events).await
        };
        match published.await {
            Ok((count, _)) => Outcome::Stored(count),
            Err(PublishError::Invalid(why)) => Outcome::Refused(why),
            Err(PublishError::Unavailable(error)) => {
                tracing::debug!(%error, "a spooled webhook is retried later");
                Outcome::Unavailable
            }
        }
    }

    /// Rows that are in the log already: another gateway stored them, or this one did without getting the acknowledgement, and JetStream's
    /// dedupe window may have passed. `None` if the log cannot be read.
    async fn stored_before(&self, rows: &[StoredRow]) -> Option<HashSet<i64>> {
        let accepted = |placed: &&StoredRow| {
            let (id, event) = identified(placed);
            let source = &placed.row.entry.source;
            // An older Nerve knows an event by its id alone, which not every source's events are known by.
            match id == Origin::source(source).identify(event) {
                true => {
                    self.dedupe_store.has_either(id, || Identity::of_legacy_webhook(source, &event.source, &event.id))
                }
                false => self.dedupe_store.has(id),
            }
        };
        let mut stored: HashSet<i64> = rows.iter().filter(accepted).map(|placed| placed.sequence).collect();
        let forgotten = OffsetDateTime::now_utc() - self.window / 2;
        let doubtful = |placed: &&StoredRow| {
            let perhaps = placed.row.tried || self.uncertain.contains(&placed.sequence);
            // An older Nerve, which recorded another key, published it under another message id.
            let forgotten = placed.at <= forgotten || is_of_older(placed);
            perhaps && forgotten && !stored.contains(&placed.sequence)
        };
        let doubtful: Vec<&StoredRow> = rows.iter().filter(doubtful).collect();
        let Some(since) = doubtful.iter().map(|placed| placed.at).min() else { return Some(stored) };
        let events: Vec<_> = doubtful.iter().map(|placed| identified(placed)).collect();
        match self.bus.stored_since(&events, since).await {
            Ok(known) => {
                let known = doubtful.iter().zip(known).filter(|(_, known)| *known);
                stored.extend(known.map(|(placed, _)| placed.sequence));
                Some(stored)
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "the spool waits: the log cannot be read");
                None
            }
        }
    }

    /// Removes rows from the file, and puts those aside that the log refuses.
    async fn take_out(&mut self, gone: Vec<(StoredRow, Option<String>)>) {
        let mut stored = Vec::new();
        for (placed, refused) in &gone {
            self.uncertain.remove(&placed.sequence);
            match refused {
                None => stored.push(placed.sequence),
                Some(why) => {
                    let event = &placed.row.event;
                    tracing::error!(
                        source = %placed.row.entry.source, id = event.id, why,
                        "a spooled webhook cannot be stored, and stays in the spool's file"
                    );
                    while let Err(error) = self.spool.shared.disk.refuse(placed.sequence, why.clone()).await {
                        wait_for_disk(&error).await;
                    }
                }
            }
        }
        while let Err(error) = self.spool.shared.disk.remove(stored.clone()).await {
            wait_for_disk(&error).await;
        }
        // Before they are forgotten here, so that at no moment nobody knows them.
        let known = gone.iter().filter(|(_, refused)| refused.is_none());
        self.dedupe_store.remember(known.flat_map(|(placed, _)| placed.row.entry.keys.clone()));
        let entries: Vec<_> = gone.into_iter().map(|(placed, _)| placed.row.entry).collect();
        self.spool.forget(&entries);
    }
}

/// The event of a row, with its identity: the one that it was accepted under.
fn identified(placed: &StoredRow) -> (Identity, &Event) {
    let Row { entry, event, .. } = &placed.row;
    let accepted_under = entry.keys.first().copied().filter(|_| !is_of_older(placed));
    (accepted_under.unwrap_or_else(|| Origin::source(&entry.source).identify(event)), event)
}

/// Whether an older Nerve put it there, which knew events by other keys.
fn is_of_older(placed: &StoredRow) -> bool {
    let Row { entry, event, .. } = &placed.row;
    entry.keys.first() == Some(&Identity::of_legacy_webhook(&entry.source, &event.source, &event.id))
}

/// What came of one source's rows.
struct SourceRows {
    /// Those that are done with, and why the log refused one.
    gone: Vec<(StoredRow, Option<String>)>,
    /// Those that could not be stored, or not known to be.
    left: VecDeque<StoredRow>,
}

async fn wait_for_disk(error: &super::SpoolError) {
    tracing::error!(error = error as &dyn std::error::Error, "the spool's file cannot be written; trying again");
    tokio::time::sleep(MAX_RETRY_INTERVAL).await;
}

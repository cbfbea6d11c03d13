//! From the spool's file into the log: in order, each event once.

use super::{
    Spool,
    disk::{Placed, Row},
};
use futures::future::join_all;
use nerve_broker::bus::{Batches, Bus, PublishError, Seen};
use nerve_core::{Event, Identity, Name, Origin};
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::Duration,
};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// The wait before the log is tried again; it doubles with each try in vain, since each reads the file.
const AGAIN: Duration = Duration::from_millis(250);
/// The longest of these waits, and the wait before a disk that failed is tried again.
const LATER: Duration = Duration::from_secs(5);

/// Drains one spool into the log.
#[derive(Debug)]
pub struct Drain {
    spool: Spool,
    bus: Bus,
    batches: Batches,
    seen: Seen,
    /// How long JetStream itself knows an id.
    window: Duration,
    /// Rows that may be in the log already, although they are in the file.
    uncertain: HashSet<i64>,
}

/// What came of the first rows.
enum Outcome {
    /// So many are in the log.
    Stored(usize),
    /// The log will never take the first.
    Refused(String),
    /// Not now.
    Away,
}

impl Drain {
    /// `window` is how long JetStream itself knows an id.
    pub fn new(spool: Spool, (bus, batches): (Bus, Batches), seen: Seen, window: Duration) -> Self {
        Self { spool, bus, batches, seen, window, uncertain: HashSet::new() }
    }

    /// Drains whenever there is something, until `end`.
    pub async fn run(mut self, end: CancellationToken) {
        end.run_until_cancelled(async {
            // A gateway that was killed may have published what it did not live to remove: its last chunk, at most.
            let mut unknown = true;
            let mut wait = AGAIN;
            loop {
                while self.spool.held().events == 0 {
                    unknown = false;
                    self.spool.shared.arrived.notified().await;
                }
                if !self.bus.connected() {
                    wait = AGAIN;
                } else if self.chunk(&mut unknown).await {
                    wait = AGAIN;
                    continue;
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LATER);
            }
        })
        .await;
    }

    /// Publishes the oldest rows, each source's in their order; false when something has to be waited for.
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
        let mut lanes: BTreeMap<Name, VecDeque<Placed>> = BTreeMap::new();
        for placed in rows {
            lanes.entry(placed.row.entry.source.clone()).or_default().push_back(placed);
        }
        let lanes = lanes.into_values().map(|rows| self.lane(rows, &stored));
        let ended: Vec<Lane> = join_all(lanes).await;
        let all = ended.iter().all(|lane| lane.left.is_empty());
        let mut gone = Vec::new();
        for lane in ended {
            self.uncertain.extend(lane.left.iter().map(|placed| placed.sequence));
            gone.extend(lane.gone);
        }
        self.take_out(gone).await;
        all
    }

    /// One source's rows, until one cannot be stored now.
    async fn lane(&self, mut left: VecDeque<Placed>, stored: &HashSet<i64>) -> Lane {
        let mut gone = Vec::new();
        while let Some(first) = left.front() {
            let outcome = match stored.contains(&first.sequence) {
                true => Outcome::Stored(1),
                false => self.publish(left.iter().take_while(|placed| !stored.contains(&placed.sequence))).await,
            };
            match outcome {
                Outcome::Stored(count) => gone.extend(left.drain(..count).map(|placed| (placed, None))),
                Outcome::Refused(why) => gone.extend(left.pop_front().map(|placed| (placed, Some(why)))),
                Outcome::Away => break,
            }
        }
        Lane { gone, left }
    }

    async fn publish(&self, rows: impl Iterator<Item = &Placed>) -> Outcome {
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
                tracing::debug!(%error, "a spooled webhook waits");
                Outcome::Away
            }
        }
    }

    /// The rows that the log has: another gateway stored them, or this one did and was not told, and JetStream may have
    /// forgotten their ids. None when the log cannot be read now.
    async fn stored_before(&self, rows: &[Placed]) -> Option<HashSet<i64>> {
        let accepted = |placed: &&Placed| {
            let (id, event) = identified(placed);
            let source = &placed.row.entry.source;
            // An older Nerve knows an event by its id alone, which not every source's events are known by.
            match id == Origin::source(source).identify(event) {
                true => self.seen.has_either(id, || Identity::of_legacy_webhook(source, &event.source, &event.id)),
                false => self.seen.has(id),
            }
        };
        let mut stored: HashSet<i64> = rows.iter().filter(accepted).map(|placed| placed.sequence).collect();
        let forgotten = OffsetDateTime::now_utc() - self.window / 2;
        let doubtful = |placed: &&Placed| {
            let perhaps = placed.row.tried || self.uncertain.contains(&placed.sequence);
            // An older Nerve, which recorded another key, published it under another message id.
            let forgotten = placed.at <= forgotten || is_of_older(placed);
            perhaps && forgotten && !stored.contains(&placed.sequence)
        };
        let doubtful: Vec<&Placed> = rows.iter().filter(doubtful).collect();
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
    async fn take_out(&mut self, gone: Vec<(Placed, Option<String>)>) {
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
        self.seen.remember(known.flat_map(|(placed, _)| placed.row.entry.keys.clone()));
        let entries: Vec<_> = gone.into_iter().map(|(placed, _)| placed.row.entry).collect();
        self.spool.forget(&entries);
    }
}

/// The event of a row, with its identity: the one that it was accepted under.
fn identified(placed: &Placed) -> (Identity, &Event) {
    let Row { entry, event, .. } = &placed.row;
    let accepted_under = entry.keys.first().copied().filter(|_| !is_of_older(placed));
    (accepted_under.unwrap_or_else(|| Origin::source(&entry.source).identify(event)), event)
}

/// Whether an older Nerve put it there, which knew events by other keys.
fn is_of_older(placed: &Placed) -> bool {
    let Row { entry, event, .. } = &placed.row;
    entry.keys.first() == Some(&Identity::of_legacy_webhook(&entry.source, &event.source, &event.id))
}

/// What came of one source's rows.
struct Lane {
    /// Those that are done with, and why the log refused one.
    gone: Vec<(Placed, Option<String>)>,
    /// Those that could not be stored, or not known to be.
    left: VecDeque<Placed>,
}

async fn wait_for_disk(error: &super::SpoolError) {
    tracing::error!(error = error as &dyn std::error::Error, "the spool's file cannot be written; trying again");
    tokio::time::sleep(LATER).await;
}

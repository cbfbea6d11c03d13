//! From the spool's file into the log: in order, each event once.

use super::{Spool, disk::Placed};
use crate::bus::{Bus, PublishError, Seen};
use futures::future::join_all;
use nerve_core::Name;
use std::{
    collections::{BTreeMap, HashSet},
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
pub(crate) struct Drain {
    spool: Spool,
    bus: Bus,
    seen: Seen,
    /// How long JetStream itself knows an id.
    window: Duration,
    /// Rows that may be in the log already, although they are in the file.
    uncertain: HashSet<i64>,
}

/// What came of one row.
enum Outcome {
    /// It is in the log.
    Stored,
    /// The log will never take it.
    Refused(String),
    /// Not now.
    Away,
}

impl Drain {
    pub(crate) fn new(spool: Spool, bus: Bus, seen: Seen, window: Duration) -> Self {
        Self { spool, bus, seen, window, uncertain: HashSet::new() }
    }

    /// Drains whenever there is something, until `end`.
    pub(crate) async fn run(mut self, end: CancellationToken) {
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
        let mut lanes: BTreeMap<Name, Vec<Placed>> = BTreeMap::new();
        for placed in rows {
            lanes.entry(placed.row.entry.source.clone()).or_default().push(placed);
        }
        let lanes = lanes.into_values().map(|rows| self.lane(rows, &stored));
        let ended: Vec<Lane> = join_all(lanes).await;
        let all = ended.iter().all(|lane| lane.stopped_at.is_none());
        let mut gone = Vec::new();
        for lane in ended {
            self.uncertain.extend(lane.stopped_at);
            gone.extend(lane.gone);
        }
        self.take_out(gone).await;
        all
    }

    /// One source's rows, until one cannot be stored now.
    async fn lane(&self, rows: Vec<Placed>, stored: &HashSet<i64>) -> Lane {
        let mut lane = Lane::default();
        for placed in rows {
            let outcome = match stored.contains(&placed.sequence) {
                true => Outcome::Stored,
                false => self.publish(&placed).await,
            };
            match outcome {
                Outcome::Stored => lane.gone.push((placed, None)),
                Outcome::Refused(why) => lane.gone.push((placed, Some(why))),
                Outcome::Away => {
                    lane.stopped_at = Some(placed.sequence);
                    break;
                }
            }
        }
        lane
    }

    async fn publish(&self, placed: &Placed) -> Outcome {
        match self.bus.publish(&placed.row.event).await {
            Ok(_) => Outcome::Stored,
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
        let marked = |placed: &&Placed| placed.row.entry.marks.first().is_some_and(|mark| self.seen.has(*mark));
        let mut stored: HashSet<i64> = rows.iter().filter(marked).map(|placed| placed.sequence).collect();
        let forgotten = OffsetDateTime::now_utc() - self.window / 2;
        let doubtful = |placed: &&Placed| {
            let perhaps = placed.row.tried || self.uncertain.contains(&placed.sequence);
            perhaps && placed.at <= forgotten && !stored.contains(&placed.sequence)
        };
        let doubtful: Vec<&Placed> = rows.iter().filter(doubtful).collect();
        let Some(since) = doubtful.iter().map(|placed| placed.at).min() else { return Some(stored) };
        let events: Vec<_> = doubtful.iter().map(|placed| &placed.row.event).collect();
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
        self.seen.remember(known.flat_map(|(placed, _)| placed.row.entry.marks.clone()));
        let entries: Vec<_> = gone.into_iter().map(|(placed, _)| placed.row.entry).collect();
        self.spool.forget(&entries);
    }
}

/// What came of one source's rows.
#[derive(Default)]
struct Lane {
    /// Those that are done with, and why the log refused one.
    gone: Vec<(Placed, Option<String>)>,
    /// The first that could not be stored.
    stopped_at: Option<i64>,
}

async fn wait_for_disk(error: &super::SpoolError) {
    tracing::error!(error = error as &dyn std::error::Error, "the spool's file cannot be written; trying again");
    tokio::time::sleep(LATER).await;
}

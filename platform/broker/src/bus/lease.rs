//! Extends every delivery in flight, of every function, from one timer.
//!
//! A short ack wait brings a dead worker's events back within seconds; the extensions keep it from
//! bringing back those of a worker that is only busy.

use super::Bus;
use async_nats::Subject;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// JetStream's acknowledgement that a message is being worked on.
const IN_PROGRESS: &[u8] = b"+WPI";

#[derive(Debug)]
struct Entry {
    reply: Subject,
    due: Instant,
}

/// The deliveries in flight of this process.
#[derive(Debug, Clone)]
pub struct Leases {
    entries: Arc<Mutex<HashMap<u64, Entry>>>,
    next: Arc<AtomicU64>,
    period: Duration,
}

impl Leases {
    /// How long the broker waits for a delivery that nobody extends.
    pub fn ack_wait(&self) -> Duration {
        self.period * 3
    }

    /// Starts the timer: a delivery is extended each third of `ack_wait`, until `stop`.
    pub fn start(bus: &Bus, ack_wait: Duration, stop: CancellationToken, tasks: &TaskTracker) -> Self {
        let leases = Self { entries: Arc::default(), next: Arc::default(), period: ack_wait / 3 };
        let (timer, client) = (leases.clone(), bus.client().clone());
        tasks.spawn(async move {
            // Entries come due at any moment; looking four times a period is soon enough for all of them.
            let mut ticks = tokio::time::interval((timer.period / 4).max(Duration::from_millis(10)));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                for reply in timer.take_due() {
                    if let Err(error) = client.publish(reply, IN_PROGRESS.into()).await {
                        tracing::warn!(%error, "a delivery could not be extended and may come again");
                    }
                }
            }
        });
        leases
    }

    /// Extends the delivery with this reply subject until the lease is dropped.
    pub(super) fn take(&self, reply: Subject) -> Lease {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, Entry { reply, due: Instant::now() + self.period });
        Lease { leases: self.clone(), id }
    }

    fn take_due(&self) -> Vec<Subject> {
        let now = Instant::now();
        let mut due = Vec::new();
        for entry in self.lock().values_mut().filter(|entry| entry.due <= now) {
            entry.due = now + self.period;
            due.push(entry.reply.clone());
        }
        due
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Entry>> {
        // A panic elsewhere leaves the map whole: every change is one call.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps one delivery extended for as long as it lives.
#[derive(Debug)]
pub(super) struct Lease {
    leases: Leases,
    id: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.lock().remove(&self.id);
    }
}

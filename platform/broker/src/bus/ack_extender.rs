//! Extends the ack deadline of every delivery in flight, from one timer.
//!
//! A short ack wait lets the broker redeliver a crashed worker's events within seconds; in-progress acks prevent that
//! for the events of a busy worker.

use super::Bus;
use async_nats::Subject;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// JetStream's in-progress ack.
const IN_PROGRESS: &[u8] = b"+WPI";

#[derive(Debug)]
struct PendingAck {
    reply: Subject,
    due: Instant,
}

/// Extends the deliveries in flight of this process.
#[derive(Debug, Clone)]
pub struct AckExtender {
    entries: Arc<Mutex<HashMap<u64, PendingAck>>>,
    next: Arc<AtomicU64>,
    period: Duration,
}

impl AckExtender {
    /// The ack wait of the consumers: the broker redelivers a message without an ack after this time.
    pub fn ack_wait(&self) -> Duration {
        self.period * 3
    }

    /// Starts the timer, which extends each delivery every third of `ack_wait`, until `stop`.
    pub fn start(bus: &Bus, ack_wait: Duration, stop: CancellationToken, tasks: &TaskTracker) -> Self {
        let extender = Self { entries: Arc::default(), next: Arc::default(), period: ack_wait / 3 };
        let (timer, client) = (extender.clone(), bus.client().clone());
        tasks.spawn(async move {
            // Four checks per period are precise enough for all deadlines.
            let mut ticks = tokio::time::interval((timer.period / 4).max(Duration::from_millis(10)));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                for reply in timer.due_replies() {
                    if let Err(error) = client.publish(reply, IN_PROGRESS.into()).await {
                        tracing::warn!(%error, "cannot extend a delivery; it may be redelivered");
                    }
                }
            }
        });
        extender
    }

    /// Extends the delivery with this reply subject until the returned guard is dropped.
    pub(super) fn take(&self, reply: Subject) -> Extension {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.entries.lock().insert(id, PendingAck { reply, due: Instant::now() + self.period });
        Extension { extender: self.clone(), id }
    }

    fn due_replies(&self) -> Vec<Subject> {
        let now = Instant::now();
        let mut due = Vec::new();
        for entry in self.entries.lock().values_mut().filter(|entry| entry.due <= now) {
            entry.due = now + self.period;
            due.push(entry.reply.clone());
        }
        due
    }
}

/// Extends one delivery until it is dropped.
#[derive(Debug)]
pub(super) struct Extension {
    extender: AckExtender,
    id: u64,
}

impl Drop for Extension {
    fn drop(&mut self) {
        self.extender.entries.lock().remove(&self.id);
    }
}

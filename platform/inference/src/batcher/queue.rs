//! The queue of a model's jobs, ordered by length.

use super::{
    BatchLimits, Job, JobError,
    job_handle::{Cancellation, RunningBatch},
};
use nerve_core::shares::Slot;
use parking_lot::{Condvar, Mutex};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// A queued job.
pub(super) struct QueuedJob<J, R> {
    pub(super) job: J,
    pub(super) reply: oneshot::Sender<Result<R, JobError>>,
    pub(super) cancellation: Arc<Cancellation>,
    pub(super) since: Instant,
    /// Its slot in the queue's share, until its result is sent.
    pub(super) _slot: Slot,
}

/// Receiver of a job's result.
pub(super) struct Reply<R> {
    sender: oneshot::Sender<Result<R, JobError>>,
    pub(super) cancellation: Arc<Cancellation>,
    _slot: Slot,
}

impl<R> Reply<R> {
    pub(super) fn send(self, result: Result<R, JobError>) {
        // Fails if the caller has dropped its handle.
        drop(self.sender.send(result));
    }
}

/// A batch taken from the queue.
pub(super) struct TakenBatch<J, R> {
    pub(super) jobs: Vec<J>,
    pub(super) replies: Vec<Reply<R>>,
    pub(super) running: RunningBatch,
}

/// Order of jobs: group, length, age.
type Key = (u64, usize, Age);

/// Age of a job: round, and sequence number in the round.
type Age = (u64, u64);

struct State<J, R> {
    waiting: BTreeMap<Key, QueuedJob<J, R>>,
    next: u64,
    /// The current round; a new call starts in the next one (start-time fair queuing).
    round: u64,
    closed: bool,
}

pub(super) struct Queue<J, R> {
    state: Mutex<State<J, R>>,
    changed: Condvar,
    depth: metrics::Gauge,
    waited: metrics::Histogram,
}

impl<J: Job, R> Queue<J, R> {
    pub(super) fn new(name: &str) -> Self {
        Self {
            state: Mutex::new(State { waiting: BTreeMap::new(), next: 0, round: 0, closed: false }),
            changed: Condvar::new(),
            depth: metrics::gauge!("nerve_onnx_queue_depth", "model" => name.to_owned()),
            waited: metrics::histogram!("nerve_onnx_queue_seconds", "model" => name.to_owned()),
        }
    }

    /// Queues a job in the round after `last`, that of the call's previous job.
    pub(super) fn push(&self, queued_job: QueuedJob<J, R>, last: &mut u64) {
        let mut state = self.state.lock();
        state.next += 1;
        *last = state.round.max(*last) + 1;
        let key = (queued_job.job.group(), queued_job.job.length(), (*last, state.next));
        state.waiting.insert(key, queued_job);
        self.update_depth(&state);
        drop(state);
        self.changed.notify_one();
    }

    /// Waits for the next batch; `None` once the queue is closed.
    pub(super) fn take(&self, limits: &BatchLimits) -> Option<TakenBatch<J, R>> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            state.waiting.retain(|_, queued_job| !queued_job.cancellation.is_cancelled());
            if let Some(keys) = select_batch(&state.waiting, limits) {
                let oldest = keys.iter().map(|(_, _, (round, _))| *round).min().unwrap_or_default();
                state.round = state.round.max(oldest);
                let queued_jobs: Vec<_> = keys.iter().filter_map(|key| state.waiting.remove(key)).collect();
                self.update_depth(&state);
                drop(state);
                return Some(self.begin(queued_jobs));
            }
            self.changed.wait(&mut state);
        }
    }

    fn begin(&self, queued_jobs: Vec<QueuedJob<J, R>>) -> TakenBatch<J, R> {
        let running = RunningBatch::begin(queued_jobs.iter().map(|queued_job| &queued_job.cancellation));
        let (mut jobs, mut replies) = (Vec::with_capacity(queued_jobs.len()), Vec::with_capacity(queued_jobs.len()));
        for QueuedJob { job, reply, cancellation, since, _slot } in queued_jobs {
            self.waited.record(since.elapsed());
            jobs.push(job);
            replies.push(Reply { sender: reply, cancellation, _slot });
        }
        TakenBatch { jobs, replies, running }
    }

    /// Closes the queue: threads end, and queued jobs fail.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.changed.notify_all();
        for (_, queued_job) in waiting {
            drop(queued_job.reply.send(Err(JobError::Closed)));
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().waiting.is_empty()
    }

    /// Sleeps until the delay ends or the queue is closed. Returns whether it is closed.
    pub(super) fn sleep_unless_closed(&self, wait: Duration) -> bool {
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, |state| !state.closed, wait);
        state.closed
    }

    fn update_depth(&self, state: &State<J, R>) {
        // Queue lengths are far below the integer precision of an f64.
        #[expect(clippy::cast_precision_loss)]
        self.depth.set(state.waiting.len() as f64);
    }
}

/// Selects the oldest job and the jobs of its group nearest in length that fit the limits.
fn select_batch<J: Job, R>(waiting: &BTreeMap<Key, QueuedJob<J, R>>, limits: &BatchLimits) -> Option<Vec<Key>> {
    let oldest = *waiting.keys().min_by_key(|(_, _, age)| *age)?;
    let (group, length, _) = oldest;
    let mut shorter = waiting.range((group, 0, (0, 0))..oldest).rev().map(|(key, _)| *key).peekable();
    let mut longer =
        waiting.range(oldest..=(group, usize::MAX, (u64::MAX, u64::MAX))).skip(1).map(|(key, _)| *key).peekable();
    let (mut chosen, mut sum, mut longest) = (vec![oldest], length, length);
    while chosen.len() < limits.jobs {
        let fits = |key: &Key| {
            let padded = longest.max(key.1) * (chosen.len() + 1);
            padded <= limits.tokens && (padded - sum - key.1) * 100 <= padded * limits.padding
        };
        let (below, above) = (shorter.peek().filter(|key| fits(key)), longer.peek().filter(|key| fits(key)));
        let next = match (below, above) {
            (Some(below), Some(above)) if length - below.1 < above.1 - length => shorter.next(),
            (_, Some(_)) => longer.next(),
            (Some(_), None) => shorter.next(),
            (None, None) => None,
        };
        let Some(next) = next else { break };
        longest = longest.max(next.1);
        sum += next.1;
        chosen.push(next);
    }
    Some(chosen)
}

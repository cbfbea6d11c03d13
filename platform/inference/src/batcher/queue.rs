//! The jobs that wait for a model, in order of length.

use super::{
    Job, JobError, Plan,
    ticket::{Caller, Running},
};
use nerve_core::shares::Slot;
use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// A job that waits.
pub(super) struct Entry<J, R> {
    pub(super) job: J,
    pub(super) reply: oneshot::Sender<Result<R, JobError>>,
    pub(super) caller: Arc<Caller>,
    pub(super) since: Instant,
    /// Its share of the queue's bound, until it has been answered.
    pub(super) _slot: Slot,
}

/// Where a job's result goes.
pub(super) struct Reply<R> {
    sender: oneshot::Sender<Result<R, JobError>>,
    pub(super) caller: Arc<Caller>,
    _slot: Slot,
}

impl<R> Reply<R> {
    pub(super) fn send(self, result: Result<R, JobError>) {
        // A caller that has left wants no result.
        drop(self.sender.send(result));
    }
}

/// A batch, taken out of the queue.
pub(super) struct Taken<J, R> {
    pub(super) jobs: Vec<J>,
    pub(super) replies: Vec<Reply<R>>,
    pub(super) running: Running,
}

/// By group, then length, then age.
type Key = (u64, usize, Age);

/// Which turn a job has, and which of that turn it is.
type Age = (u64, u64);

struct State<J, R> {
    waiting: BTreeMap<Key, Entry<J, R>>,
    next: u64,
    /// The turn that jobs are taken of: a call that begins now begins with the next one (start-time fair queueing).
    turn: u64,
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
            state: Mutex::new(State { waiting: BTreeMap::new(), next: 0, turn: 0, closed: false }),
            changed: Condvar::new(),
            depth: metrics::gauge!("nerve_onnx_queue_depth", "model" => name.to_owned()),
            waited: metrics::histogram!("nerve_onnx_queue_seconds", "model" => name.to_owned()),
        }
    }

    /// Queues a job in the turn after `last`, the one of its call's job before.
    pub(super) fn push(&self, entry: Entry<J, R>, last: &mut u64) {
        let mut state = self.lock();
        state.next += 1;
        *last = state.turn.max(*last) + 1;
        let key = (entry.job.group(), entry.job.length(), (*last, state.next));
        state.waiting.insert(key, entry);
        self.show_depth(&state);
        drop(state);
        self.changed.notify_one();
    }

    /// The next batch, once there is one; none when the queue is closed.
    pub(super) fn take(&self, plan: &Plan) -> Option<Taken<J, R>> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            state.waiting.retain(|_, entry| !entry.caller.has_left());
            if let Some(keys) = choose(&state.waiting, plan) {
                let oldest = keys.iter().map(|(_, _, (turn, _))| *turn).min().unwrap_or_default();
                state.turn = state.turn.max(oldest);
                let entries: Vec<_> = keys.iter().filter_map(|key| state.waiting.remove(key)).collect();
                self.show_depth(&state);
                drop(state);
                return Some(self.begin(entries));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn begin(&self, entries: Vec<Entry<J, R>>) -> Taken<J, R> {
        let running = Running::begin(entries.iter().map(|entry| &entry.caller));
        let (mut jobs, mut replies) = (Vec::with_capacity(entries.len()), Vec::with_capacity(entries.len()));
        for Entry { job, reply, caller, since, _slot } in entries {
            self.waited.record(since.elapsed());
            jobs.push(job);
            replies.push(Reply { sender: reply, caller, _slot });
        }
        Taken { jobs, replies, running }
    }

    /// Ends the threads; what waits is dropped, and its callers are told.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.changed.notify_all();
        for (_, entry) in waiting {
            drop(entry.reply.send(Err(JobError::Closed)));
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// Sleeps, but not past the queue's end; whether it is closed.
    pub(super) fn sleep_unless_closed(&self, wait: Duration) -> bool {
        let slept = self.changed.wait_timeout_while(self.lock(), wait, |state| !state.closed);
        slept.unwrap_or_else(PoisonError::into_inner).0.closed
    }

    fn show_depth(&self, state: &State<J, R>) {
        // A bounded queue is far shorter than where an f64 loses whole numbers.
        #[expect(clippy::cast_precision_loss)]
        self.depth.set(state.waiting.len() as f64);
    }

    fn lock(&self) -> MutexGuard<'_, State<J, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The oldest job and, in its group, those nearest to it in length that fit the plan beside it.
fn choose<J: Job, R>(waiting: &BTreeMap<Key, Entry<J, R>>, plan: &Plan) -> Option<Vec<Key>> {
    let oldest = *waiting.keys().min_by_key(|(_, _, age)| *age)?;
    let (group, length, _) = oldest;
    let mut shorter = waiting.range((group, 0, (0, 0))..oldest).rev().map(|(key, _)| *key).peekable();
    let mut longer =
        waiting.range(oldest..=(group, usize::MAX, (u64::MAX, u64::MAX))).skip(1).map(|(key, _)| *key).peekable();
    let (mut chosen, mut sum, mut longest) = (vec![oldest], length, length);
    while chosen.len() < plan.jobs {
        let fits = |key: &Key| {
            let padded = longest.max(key.1) * (chosen.len() + 1);
            padded <= plan.tokens && (padded - sum - key.1) * 100 <= padded * plan.padding
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

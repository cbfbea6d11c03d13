//! Batches what many callers ask of one model.
//!
//! Each session has a thread of its own. Callers put jobs into one bounded queue, ordered by length; a thread that
//! is free takes the oldest job and, around it, the jobs nearest in length, as many as fit the plan. So no job waits
//! for ever, and next to nothing is spent on padding.
//!
//! Calls take turns: the n-th job of a call is as old as the n-th job of any other call that began at the same time, so that one
//! text does not wait behind the thousands of another call. Events and requests share the queue's bound fairly.
//!
//! A caller that leaves takes its job with it: one that waits is dropped, and a batch that nobody waits for any
//! longer is stopped. A session that panics is made again, and costs only the jobs it was running.

mod queue;
#[cfg(test)]
mod tests;
mod ticket;

use crate::{
    batcher::{
        queue::{Entry, Queue, Taken},
        ticket::Running,
    },
    engine::{self, MakeEngine},
};
use nerve_core::shares::{Share, Shares, Slot};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Instant,
};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

pub(crate) use ticket::{Stop, Ticket};

/// What goes into a batch.
pub(crate) trait Job: Send + 'static {
    /// What it costs, in tokens or rows.
    fn length(&self) -> usize;

    /// Only jobs of one group can be in one batch.
    fn group(&self) -> u64;
}

/// How batches are made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Jobs in one batch.
    pub(crate) jobs: usize,
    /// Tokens in one batch, padding included; a job that is longer goes alone.
    pub(crate) tokens: usize,
    /// The most of a batch that may be padding, in percent.
    pub(crate) padding: usize,
    /// Jobs that wait or run.
    pub(crate) queue: usize,
}

/// Who calls: each kind has a share of the queue's bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// A function, for its events.
    #[default]
    Events,
    /// A request that waits for its answer.
    Request,
}

/// The turns of one call's jobs.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    kind: CallKind,
    last: u64,
}

impl Turns {
    /// The turns of a call that begins.
    pub(crate) fn of(kind: CallKind) -> Self {
        Self { kind, last: 0 }
    }
}

/// Why a job has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JobError {
    /// The model refused it.
    #[error("{0}")]
    Failed(String),
    /// The thread panicked while it ran.
    #[error("the model's thread panicked; the log has the message")]
    Panicked,
    /// Everything waits already.
    #[error("{0} texts wait for this model already")]
    Busy(usize),
    /// The model is being closed.
    #[error("the model is being closed")]
    Closed,
}

/// Runs one batch: one result a job, in their order, or the failure of the batch.
pub(crate) type Engine<J, R> = Box<dyn FnMut(&[J], &Stop) -> Result<Vec<R>, String>>;

/// One model's queue and threads. Dropping it ends the threads once what runs has ended.
pub(crate) struct Batcher<J: Job, R> {
    queue: Arc<Queue<J, R>>,
    events: Share,
    requests: Share,
    plan: Plan,
}

impl<J: Job, R: Send + 'static> Batcher<J, R> {
    /// Starts `threads` threads and waits until each has its engine; the error is the first one's.
    pub(crate) fn start(
        name: &str,
        threads: usize,
        plan: Plan,
        tasks: &TaskTracker,
        make: Arc<MakeEngine<Engine<J, R>>>,
    ) -> Result<Self, String> {
        let slots = Shares::new(plan.queue);
        let batcher = Self { queue: Arc::new(Queue::new(name)), events: slots.share(), requests: slots.share(), plan };
        let (ready, made) = std::sync::mpsc::channel();
        for index in 0..threads.max(1) {
            let worker = Worker { queue: batcher.queue.clone(), plan, make: make.clone(), name: name.to_owned() };
            let (ready, token) = (ready.clone(), tasks.token());
            let spawned = thread::Builder::new().name(format!("onnx-{index}")).spawn(move || {
                worker.run(&ready);
                drop(token);
            });
            spawned.map_err(|error| format!("a thread for the model cannot be started: {error}"))?;
        }
        drop(ready);
        for _ in 0..threads.max(1) {
            made.recv().map_err(|_| "the model's thread ended while it was loaded".to_owned())??;
        }
        Ok(batcher)
    }

    /// Waits for room, then queues the job; the ticket's result comes when it has run.
    pub(crate) async fn submit(&self, job: J, turns: &mut Turns) -> Ticket<R> {
        let share = match turns.kind {
            CallKind::Events => &self.events,
            CallKind::Request => &self.requests,
        };
        let slot = share.acquire().await;
        self.enqueue(job, slot, turns)
    }

    /// Whether there is room for one more job of a request just now.
    pub(crate) fn has_room(&self) -> Result<(), JobError> {
        if self.requests.has_capacity() { Ok(()) } else { Err(JobError::Busy(self.plan.queue)) }
    }

    #[cfg(test)]
    fn queue_is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn enqueue(&self, job: J, slot: Slot, turns: &mut Turns) -> Ticket<R> {
        let (reply, result) = oneshot::channel();
        let (ticket, caller) = Ticket::new(result);
        self.queue.push(Entry { job, reply, caller, since: Instant::now(), _slot: slot }, &mut turns.last);
        ticket
    }
}

impl<J: Job, R> Drop for Batcher<J, R> {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// One thread's share of the work.
struct Worker<J: Job, R> {
    queue: Arc<Queue<J, R>>,
    plan: Plan,
    make: Arc<MakeEngine<Engine<J, R>>>,
    name: String,
}

impl<J: Job, R: Send + 'static> Worker<J, R> {
    fn run(self, ready: &std::sync::mpsc::Sender<Result<(), String>>) {
        let mut engine = match engine::make(&*self.make) {
            Ok(engine) => engine,
            // Nobody listening means that another thread failed first.
            Err(error) => return drop(ready.send(Err(error))),
        };
        drop(ready.send(Ok(())));
        let meters = Meters::of(&self.name);
        while let Some(taken) = self.queue.take(&self.plan) {
            if !self.serve(&mut engine, taken, &meters) {
                let sleep = |wait| self.queue.sleep_unless_closed(wait);
                let Some(remade) = engine::remake(&self.name, &*self.make, sleep) else { return };
                engine = remade;
            }
        }
    }

    /// Runs a batch and answers it; `false` when the engine panicked and is of no more use.
    fn serve(&self, engine: &mut Engine<J, R>, taken: Taken<J, R>, meters: &Meters) -> bool {
        let Taken { jobs, replies, running } = taken;
        meters.batch(&jobs);
        let outcome = catch_unwind(AssertUnwindSafe(|| engine(&jobs, running.stop())));
        match outcome {
            Ok(Ok(results)) if results.len() == replies.len() => {
                running.finish();
                for (reply, result) in replies.into_iter().zip(results) {
                    reply.send(Ok(result));
                }
                true
            }
            Ok(Ok(results)) => {
                let error = format!("the model gave {} results for {} texts", results.len(), replies.len());
                replies.into_iter().for_each(|reply| reply.send(Err(JobError::Failed(error.clone()))));
                true
            }
            // One job that the model cannot take must not cost its neighbours theirs.
            Ok(Err(_)) if replies.len() > 1 => self.serve_apart(engine, jobs, replies, meters),
            Ok(Err(error)) => {
                replies.into_iter().for_each(|reply| reply.send(Err(JobError::Failed(error.clone()))));
                true
            }
            Err(_) => {
                tracing::error!(model = self.name, "a batch panicked: the model is loaded again");
                replies.into_iter().for_each(|reply| reply.send(Err(JobError::Panicked)));
                false
            }
        }
    }

    fn serve_apart(
        &self,
        engine: &mut Engine<J, R>,
        jobs: Vec<J>,
        replies: Vec<queue::Reply<R>>,
        meters: &Meters,
    ) -> bool {
        let mut usable = true;
        for (job, reply) in jobs.into_iter().zip(replies) {
            if !usable || reply.caller.has_left() {
                reply.send(Err(JobError::Panicked));
                continue;
            }
            let running = Running::begin(std::iter::once(&reply.caller));
            usable = self.serve(engine, Taken { jobs: vec![job], replies: vec![reply], running }, meters);
        }
        usable
    }
}

/// What a model's batches are measured by.
struct Meters {
    jobs: metrics::Histogram,
    tokens: metrics::Counter,
    padding: metrics::Counter,
}

impl Meters {
    fn of(name: &str) -> Self {
        Self {
            jobs: metrics::histogram!("nerve_onnx_batch_size", "model" => name.to_owned()),
            tokens: metrics::counter!("nerve_onnx_tokens_total", "model" => name.to_owned()),
            padding: metrics::counter!("nerve_onnx_padding_tokens_total", "model" => name.to_owned()),
        }
    }

    fn batch<J: Job>(&self, jobs: &[J]) {
        let longest = jobs.iter().map(Job::length).max().unwrap_or_default();
        let tokens: usize = jobs.iter().map(Job::length).sum();
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        // A batch has few jobs, far below where an f64 loses whole numbers.
        #[expect(clippy::cast_precision_loss)]
        self.jobs.record(jobs.len() as f64);
        self.tokens.increment(count(tokens));
        self.padding.increment(count(longest * jobs.len() - tokens));
    }
}

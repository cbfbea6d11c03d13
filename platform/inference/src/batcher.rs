//! Batches the jobs of many callers of one model.
//!
//! Each session has its own thread. Callers submit jobs to a bounded queue, ordered by length. A free thread takes the
//! oldest job and, around it, the jobs nearest in length that fit [`BatchLimits`]. So no job starves, and little is
//! spent on padding.
//!
//! Calls are scheduled fairly: the n-th job of a call is as old as the n-th job of any other call that started at the
//! same time, so that one text does not wait behind thousands of another call. Events and requests have fair shares of
//! the queue.
//!
//! Dropping a [`JobHandle`] cancels its job: a queued job is dropped, and a batch whose jobs are all cancelled is
//! stopped. A session that panics is reloaded and fails only the jobs of its batch.

mod job_handle;
mod queue;
#[cfg(test)]
mod tests;

use crate::{
    batcher::{
        job_handle::RunningBatch,
        queue::{Queue, QueuedJob, TakenBatch},
    },
    engine::{self, EngineFactory},
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

pub(crate) use job_handle::{JobHandle, StopSignal};

/// A job of a batch.
pub(crate) trait Job: Send + 'static {
    /// Cost of the job in tokens or rows.
    fn length(&self) -> usize;

    /// Batch compatibility: a batch contains jobs of one group only.
    fn group(&self) -> u64;
}

/// Limits of batches and of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchLimits {
    /// Maximum number of jobs per batch.
    pub(crate) jobs: usize,
    /// Maximum number of tokens per batch, including padding; a longer job runs alone.
    pub(crate) tokens: usize,
    /// Maximum percentage of padding in a batch.
    pub(crate) padding: usize,
    /// Maximum number of queued and running jobs.
    pub(crate) queue: usize,
}

/// Kind of caller; each kind has a share of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// A function, for its events.
    #[default]
    Events,
    /// An HTTP request that waits for its result.
    Request,
}

/// Fair-queuing position of one call's jobs.
#[derive(Debug, Default)]
pub(crate) struct CallRounds {
    kind: CallKind,
    last: u64,
}

impl CallRounds {
    /// The position of a new call.
    pub(crate) fn of(kind: CallKind) -> Self {
        Self { kind, last: 0 }
    }
}

/// Why a job has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JobError {
    /// The model rejected it.
    #[error("{0}")]
    Failed(String),
    /// The thread panicked.
    #[error("the model's thread panicked; see the log")]
    Panicked,
    /// The queue is full.
    #[error("queue full: {0} texts are queued for this model (`onnx.queue` in the settings)")]
    Busy(usize),
    /// The model is closing.
    #[error("the model is closing")]
    Closed,
}

/// Runs one batch. Returns one result per job, in order, or the error of the batch.
pub(crate) type Engine<J, R> = Box<dyn FnMut(&[J], &StopSignal) -> Result<Vec<R>, String>>;

/// Queue and threads of one model. When dropped, threads end after their current batch.
pub(crate) struct Batcher<J: Job, R> {
    queue: Arc<Queue<J, R>>,
    events: Share,
    requests: Share,
    limits: BatchLimits,
}

impl<J: Job, R: Send + 'static> Batcher<J, R> {
    /// Starts `threads` threads and waits until each has created its engine.
    ///
    /// # Errors
    /// The first error of an engine.
    pub(crate) fn start(
        name: &str,
        threads: usize,
        limits: BatchLimits,
        tasks: &TaskTracker,
        factory: Arc<EngineFactory<Engine<J, R>>>,
    ) -> Result<Self, String> {
        let slots = Shares::new(limits.queue);
        let batcher =
            Self { queue: Arc::new(Queue::new(name)), events: slots.share(), requests: slots.share(), limits };
        let (ready, created) = std::sync::mpsc::channel();
        for index in 0..threads.max(1) {
            let worker =
                Worker { queue: batcher.queue.clone(), limits, factory: factory.clone(), name: name.to_owned() };
            let (ready, token) = (ready.clone(), tasks.token());
            let spawned = thread::Builder::new().name(format!("onnx-{index}")).spawn(move || {
                worker.run(&ready);
                drop(token);
            });
            spawned.map_err(|error| format!("cannot start a thread for the model: {error}"))?;
        }
        drop(ready);
        for _ in 0..threads.max(1) {
            created.recv().map_err(|_| "the model's thread ended during loading".to_owned())??;
        }
        Ok(batcher)
    }

    /// Waits for queue capacity, then queues the job.
    pub(crate) async fn submit(&self, job: J, rounds: &mut CallRounds) -> JobHandle<R> {
        let share = match rounds.kind {
            CallKind::Events => &self.events,
            CallKind::Request => &self.requests,
        };
        let slot = share.acquire().await;
        self.enqueue(job, slot, rounds)
    }

    /// Whether the queue has capacity for one more job of a request.
    ///
    /// # Errors
    /// [`JobError::Busy`] if it has none.
    pub(crate) fn check_capacity(&self) -> Result<(), JobError> {
        if self.requests.has_capacity() { Ok(()) } else { Err(JobError::Busy(self.limits.queue)) }
    }

    #[cfg(test)]
    fn queue_is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    fn enqueue(&self, job: J, slot: Slot, rounds: &mut CallRounds) -> JobHandle<R> {
        let (reply, result) = oneshot::channel();
        let (job_handle, cancellation) = JobHandle::new(result);
        self.queue.push(QueuedJob { job, reply, cancellation, since: Instant::now(), _slot: slot }, &mut rounds.last);
        job_handle
    }
}

impl<J: Job, R> Drop for Batcher<J, R> {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// One thread of the batcher.
struct Worker<J: Job, R> {
    queue: Arc<Queue<J, R>>,
    limits: BatchLimits,
    factory: Arc<EngineFactory<Engine<J, R>>>,
    name: String,
}

impl<J: Job, R: Send + 'static> Worker<J, R> {
    fn run(self, ready: &std::sync::mpsc::Sender<Result<(), String>>) {
        let mut engine = match engine::create(&*self.factory) {
            Ok(engine) => engine,
            // The receiver is gone if another thread failed first.
            Err(error) => return drop(ready.send(Err(error))),
        };
        drop(ready.send(Ok(())));
        let batch_metrics = BatchMetrics::of(&self.name);
        while let Some(batch) = self.queue.take(&self.limits) {
            if !self.run_batch(&mut engine, batch, &batch_metrics) {
                let sleep = |wait| self.queue.sleep_unless_closed(wait);
                let Some(recreated) = engine::recreate(&self.name, &*self.factory, sleep) else { return };
                engine = recreated;
            }
        }
    }

    /// Runs a batch and sends its results. Returns `false` if the engine panicked and must be recreated.
    fn run_batch(&self, engine: &mut Engine<J, R>, batch: TakenBatch<J, R>, batch_metrics: &BatchMetrics) -> bool {
        let TakenBatch { jobs, replies, running } = batch;
        batch_metrics.batch(&jobs);
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
                let error = format!("the model returned {} results for {} texts", results.len(), replies.len());
                replies.into_iter().for_each(|reply| reply.send(Err(JobError::Failed(error.clone()))));
                true
            }
            // One rejected job must not fail the others of its batch.
            Ok(Err(_)) if replies.len() > 1 => self.run_separately(engine, jobs, replies, batch_metrics),
            Ok(Err(error)) => {
                replies.into_iter().for_each(|reply| reply.send(Err(JobError::Failed(error.clone()))));
                true
            }
            Err(_) => {
                tracing::error!(model = self.name, "a batch panicked; reloading the model");
                replies.into_iter().for_each(|reply| reply.send(Err(JobError::Panicked)));
                false
            }
        }
    }

    fn run_separately(
        &self,
        engine: &mut Engine<J, R>,
        jobs: Vec<J>,
        replies: Vec<queue::Reply<R>>,
        batch_metrics: &BatchMetrics,
    ) -> bool {
        let mut usable = true;
        for (job, reply) in jobs.into_iter().zip(replies) {
            if !usable || reply.cancellation.is_cancelled() {
                reply.send(Err(JobError::Panicked));
                continue;
            }
            let running = RunningBatch::begin(std::iter::once(&reply.cancellation));
            usable =
                self.run_batch(engine, TakenBatch { jobs: vec![job], replies: vec![reply], running }, batch_metrics);
        }
        usable
    }
}

/// Metrics of a model's batches.
struct BatchMetrics {
    jobs: metrics::Histogram,
    tokens: metrics::Counter,
    padding: metrics::Counter,
}

impl BatchMetrics {
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
        // Batch sizes are far below the integer precision of an f64.
        #[expect(clippy::cast_precision_loss)]
        self.jobs.record(jobs.len() as f64);
        self.tokens.increment(count(tokens));
        self.padding.increment(count(longest * jobs.len() - tokens));
    }
}

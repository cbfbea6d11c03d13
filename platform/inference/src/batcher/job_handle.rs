//! Job handles and cancellation.

use super::JobError;
use parking_lot::Mutex;
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tokio::sync::oneshot;

/// Handle of a job's pending result. Dropping it cancels the job.
pub(crate) struct JobHandle<R> {
    result: oneshot::Receiver<Result<R, JobError>>,
    cancellation: Arc<Cancellation>,
}

impl<R> JobHandle<R> {
    pub(super) fn new(result: oneshot::Receiver<Result<R, JobError>>) -> (Self, Arc<Cancellation>) {
        let cancellation = Arc::new(Cancellation::default());
        (Self { result, cancellation: cancellation.clone() }, cancellation)
    }
}

impl<R> Future for JobHandle<R> {
    type Output = Result<R, JobError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The sender was dropped without a result, so the thread panicked outside of the engine.
        Pin::new(&mut self.result).poll(context).map(|result| result.unwrap_or(Err(JobError::Panicked)))
    }
}

impl<R> Drop for JobHandle<R> {
    fn drop(&mut self) {
        self.cancellation.cancel();
    }
}

/// Cancellation state of a job, and the batch that runs it.
#[derive(Debug, Default)]
pub(super) struct Cancellation {
    cancelled: AtomicBool,
    batch: Mutex<Option<Arc<Batch>>>,
}

impl Cancellation {
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    fn cancel(&self) {
        let batch = self.batch.lock().take();
        if self.cancelled.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(batch) = batch
            && batch.waiting.fetch_sub(1, Ordering::AcqRel) == 1
        {
            batch.stop.signal();
        }
    }

    /// Adds the job to its batch. Returns `false` if it is already cancelled.
    fn join(&self, batch: &Arc<Batch>) -> bool {
        let mut joined = self.batch.lock();
        let is_waiting = !self.is_cancelled();
        *joined = is_waiting.then(|| batch.clone());
        is_waiting
    }
}

#[derive(Debug, Default)]
struct Batch {
    waiting: AtomicUsize,
    stop: StopSignal,
}

/// A running batch.
#[derive(Debug)]
pub(super) struct RunningBatch(Arc<Batch>);

impl RunningBatch {
    pub(super) fn begin<'c>(cancellations: impl Iterator<Item = &'c Arc<Cancellation>>) -> Self {
        let batch = Arc::new(Batch::default());
        // One extra while jobs are added, so that a cancellation does not stop the batch early.
        batch.waiting.store(1, Ordering::Release);
        for cancellation in cancellations {
            batch.waiting.fetch_add(1, Ordering::AcqRel);
            if !cancellation.join(&batch) {
                batch.waiting.fetch_sub(1, Ordering::AcqRel);
            }
        }
        if batch.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            batch.stop.signal();
        }
        Self(batch)
    }

    pub(super) fn stop(&self) -> &StopSignal {
        &self.0.stop
    }

    /// Marks the batch as finished, so it can no longer be stopped.
    pub(super) fn finish(&self) {
        self.0.stop.clear();
    }
}

type Terminate = Box<dyn Fn() + Send>;

/// Stop signal of a running batch.
#[derive(Default)]
pub(crate) struct StopSignal {
    stopped: AtomicBool,
    terminate: Mutex<Option<Terminate>>,
}

impl StopSignal {
    /// Whether the batch was stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Registers a callback for the stop signal; it runs immediately if the batch was already stopped.
    pub(crate) fn on_stop(&self, terminate: impl Fn() + Send + 'static) {
        let mut kept = self.terminate.lock();
        if self.is_stopped() {
            terminate();
        }
        *kept = Some(Box::new(terminate));
    }

    fn signal(&self) {
        let terminate = self.terminate.lock();
        self.stopped.store(true, Ordering::Release);
        if let Some(terminate) = terminate.as_ref() {
            terminate();
        }
    }

    fn clear(&self) {
        *self.terminate.lock() = None;
    }
}

impl std::fmt::Debug for StopSignal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StopSignal(stopped: {})", self.is_stopped())
    }
}

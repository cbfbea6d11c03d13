//! A caller's hold on its job, and what happens when it lets go.

use super::JobError;
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tokio::sync::oneshot;

/// A job's result to come. Dropping it withdraws the job.
pub(crate) struct Ticket<R> {
    result: oneshot::Receiver<Result<R, JobError>>,
    caller: Arc<Caller>,
}

impl<R> Ticket<R> {
    pub(super) fn new(result: oneshot::Receiver<Result<R, JobError>>) -> (Self, Arc<Caller>) {
        let caller = Arc::new(Caller::default());
        (Self { result, caller: caller.clone() }, caller)
    }
}

impl<R> Future for Ticket<R> {
    type Output = Result<R, JobError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // A thread that ends without a word has panicked where nothing could catch it.
        Pin::new(&mut self.result).poll(context).map(|result| result.unwrap_or(Err(JobError::Panicked)))
    }
}

impl<R> Drop for Ticket<R> {
    fn drop(&mut self) {
        self.caller.leave();
    }
}

/// Whether somebody still waits for a job, and the batch it runs in.
#[derive(Debug, Default)]
pub(super) struct Caller {
    left: AtomicBool,
    batch: Mutex<Option<Arc<Batch>>>,
}

impl Caller {
    pub(super) fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    fn leave(&self) {
        let batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner).take();
        if self.left.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(batch) = batch
            && batch.waiting.fetch_sub(1, Ordering::AcqRel) == 1
        {
            batch.stop.ask();
        }
    }

    /// Ties the job to its batch; `false` when its caller has left already.
    fn join(&self, batch: &Arc<Batch>) -> bool {
        let mut joined = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = !self.has_left();
        *joined = waits.then(|| batch.clone());
        waits
    }
}

#[derive(Debug, Default)]
struct Batch {
    waiting: AtomicUsize,
    stop: Stop,
}

/// A batch that runs.
#[derive(Debug)]
pub(super) struct Running(Arc<Batch>);

impl Running {
    pub(super) fn begin<'c>(callers: impl Iterator<Item = &'c Arc<Caller>>) -> Self {
        let batch = Arc::new(Batch::default());
        // One too many while they join, so that nobody who leaves now stops it early.
        batch.waiting.store(1, Ordering::Release);
        for caller in callers {
            batch.waiting.fetch_add(1, Ordering::AcqRel);
            if !caller.join(&batch) {
                batch.waiting.fetch_sub(1, Ordering::AcqRel);
            }
        }
        if batch.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            batch.stop.ask();
        }
        Self(batch)
    }

    pub(super) fn stop(&self) -> &Stop {
        &self.0.stop
    }

    /// There is nothing to stop any longer.
    pub(super) fn finish(&self) {
        self.0.stop.forget();
    }
}

type Terminate = Box<dyn Fn() + Send>;

/// Asks a batch that runs to end early.
#[derive(Default)]
pub(crate) struct Stop {
    asked: AtomicBool,
    terminate: Mutex<Option<Terminate>>,
}

impl Stop {
    /// Whether the batch may end without a result.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// What to call when it is asked; called at once if it was asked already.
    pub(crate) fn on_ask(&self, terminate: impl Fn() + Send + 'static) {
        let mut kept = self.terminate.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_asked() {
            terminate();
        }
        *kept = Some(Box::new(terminate));
    }

    fn ask(&self) {
        let terminate = self.terminate.lock().unwrap_or_else(PoisonError::into_inner);
        self.asked.store(true, Ordering::Release);
        if let Some(terminate) = terminate.as_ref() {
            terminate();
        }
    }

    fn forget(&self) {
        *self.terminate.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stop(asked: {})", self.is_asked())
    }
}

//! The runner of one revision of a function: three consumers and direct calls, one function.

use super::{
    REOPEN_INTERVAL, StatusEntry, WorkerShared,
    collector::Collector,
    emission::EmissionPolicy,
    invocation::{ActiveDelivery, Invoker, Meters},
    reopen::reopen_until,
};
use nerve_broker::bus::{BusError, DEAD, Puller, RunHistory, TIMERS, consumer_name};
use nerve_core::{Context, Fault, Function, FunctionError, Name, manifest::Batch};
use nerve_registry::{Entry, FunctionRecord};
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

/// One revision of a function. It receives events until `stop`.
pub(super) struct Runner {
    shared: WorkerShared,
    name: Name,
    revision: u64,
    record: FunctionRecord,
    invoker: Arc<Invoker>,
    stop: CancellationToken,
    /// The running work of this revision. The function is closed after it.
    work: TaskTracker,
}

impl Runner {
    pub(super) fn new(
        shared: &WorkerShared,
        name: &Name,
        entry: &Entry<FunctionRecord>,
        function: Arc<dyn Function>,
        stop: CancellationToken,
    ) -> Self {
        let spec = Arc::new(entry.record.spec.clone());
        let invoker = Invoker {
            shared: shared.clone(),
            policy: EmissionPolicy {
                function: name.clone(),
                spec: spec.clone(),
                max_hops: shared.max_hops,
                retries: Arc::default(),
            },
            revision: entry.revision,
            function,
            meters: Meters::of(name),
            running: Semaphore::new(spec.concurrency),
            committed: Arc::default(),
        };
        Self {
            shared: shared.clone(),
            name: name.clone(),
            revision: entry.revision,
            record: entry.record.clone(),
            invoker: Arc::new(invoker),
            stop,
            work: TaskTracker::new(),
        }
    }

    /// Receives events until `stop`, finishes the running ones, and closes the function.
    pub(super) async fn run(self) {
        let spec = &self.record.spec;
        let capacity = spec.concurrency * spec.batch.size;
        let stream = self.intake(&self.record.stream, capacity, spec.batch);
        // Delayed retries have as many slots as new events, so neither delays the other.
        let due = self.intake(TIMERS, capacity, spec.batch);
        // Redriven dead letters have one separate slot, so that a backlog of new events does not delay them.
        let redriven = self.intake(DEAD, 1, Batch { size: 1, wait: Duration::ZERO });
        tokio::join!(stream, due, redriven, self.direct_calls());
        self.work.close();
        self.work.wait().await;
        self.invoker.function.close().await;
        tracing::debug!(function = %self.name, revision = self.revision, "closed");
    }

    async fn intake(&self, stream: &str, capacity: usize, batch: Batch) {
        let failed = async |error| {
            tracing::warn!(function = %self.name, stream, %error, "consumer failed; reopening it");
            if matches!(error, BusError::NotFound(_)) {
                self.restore_consumers().await;
            }
        };
        reopen_until(&self.stop, || self.pull(stream, capacity, batch), failed).await;
    }

    /// Recreates the deleted consumers of a function that is still deployed.
    async fn restore_consumers(&self) {
        match self.shared.registry.function(&self.name).await {
            Ok(Some(entry)) if entry.revision == self.revision => {}
            // Removed or replaced: the supervisor is about to receive the change.
            Ok(_) | Err(_) => return,
        }
        if let Err(error) = self.shared.registry.ensure_consumers(&self.name, &self.record).await {
            let error = format!("consumer cannot be created: {error}");
            tracing::error!(function = %self.name, error);
            self.shared.statuses.set(&self.name, StatusEntry::Failed { error });
        }
    }

    /// Pulls until `stop`. Any other end is an error.
    async fn pull(&self, stream: &str, capacity: usize, batch: Batch) -> Result<(), BusError> {
        let slots = Arc::new(Semaphore::new(capacity));
        let mut puller = Puller::start(&self.shared.pulling, &slots, (stream, &consumer_name(&self.name))).await?;
        // A runner that has been stopped must not overwrite the status of its successor.
        if stream == self.record.stream && !self.stop.is_cancelled() {
            self.shared
                .statuses
                .set(&self.name, StatusEntry::Running { revision: self.revision, liveness: puller.liveness() });
        }
        let mut gathered: Vec<ActiveDelivery> = Vec::with_capacity(batch.size);
        let mut deadline = Instant::now();
        loop {
            let full = gathered.len() >= batch.size;
            let due = !gathered.is_empty() && (full || batch.wait.is_zero() || Instant::now() >= deadline);
            if due {
                let invoker = self.invoker.clone();
                self.work.spawn(invoker.handle(std::mem::take(&mut gathered)));
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                pulled = puller.next() => {
                    let (delivery, slot) = pulled?;
                    if gathered.is_empty() {
                        deadline = Instant::now() + batch.wait;
                    }
                    gathered.push(ActiveDelivery::new(delivery, slot));
                }
                () = tokio::time::sleep_until(deadline), if !gathered.is_empty() => {}
            }
        }
        for ActiveDelivery { delivery, .. } in gathered {
            self.give_back(delivery).await?;
        }
        for delivery in puller.stop().await? {
            self.give_back(delivery).await?;
        }
        Ok(())
    }

    /// Returns an unstarted delivery to the broker. This is no attempt.
    async fn give_back(&self, delivery: nerve_broker::bus::Delivery) -> Result<(), BusError> {
        let bus = &self.shared.bus;
        let history = match delivery.delivered {
            1 => RunHistory::default(),
            _ => match bus.run_history(&self.name, &delivery).await {
                Ok(history) => history,
                Err(_) => return delivery.retry_after(Duration::ZERO).await,
            },
        };
        bus.release_recorded(&self.name, delivery, history).await
    }

    /// Serves direct calls, concurrently up to the function's concurrency.
    async fn direct_calls(&self) {
        let slots = Arc::new(Semaphore::new(self.record.spec.concurrency));
        while !self.stop.is_cancelled() {
            let mut calls = match self.shared.bus.invocations(&self.name).await {
                Ok(calls) => calls,
                Err(error) => {
                    tracing::warn!(function = %self.name, %error, "cannot subscribe to direct calls; retrying");
                    self.stop.run_until_cancelled(tokio::time::sleep(REOPEN_INTERVAL)).await;
                    continue;
                }
            };
            loop {
                let Some(Ok(slot)) = self.stop.run_until_cancelled(slots.clone().acquire_owned()).await else { break };
                let next = self.stop.run_until_cancelled(self.shared.bus.next_invocation(&mut calls)).await;
                let Some(Some(call)) = next else { break };
                let invoker = self.invoker.clone();
                self.work.spawn(async move {
                    let outcome = match call.event().await {
                        Ok(event) => invoker.call(event).await,
                        Err(error) => Err(error),
                    };
                    call.answer(outcome).await;
                    drop(slot);
                });
            }
        }
    }
}

impl Invoker {
    /// Runs the function once and returns its output events without publishing them.
    async fn call(&self, event: nerve_core::Event) -> Result<Vec<nerve_core::Event>, FunctionError> {
        let collector = Arc::new(Collector {
            policy: self.policy.clone(),
            input: event.clone(),
            events: Mutex::default(),
            catalogue: self.shared.catalogue.clone(),
        });
        let context = Context {
            emitter: collector.clone(),
            views: Some(self.shared.views.clone()),
            quotas: self.shared.catalogue.borrow().quotas.clone(),
        };
        let (function, revision) = (self.policy.function.as_str(), self.revision);
        let span = tracing::info_span!("invoke", function, revision, event = event.id.as_str());
        let run = self.function.invoke(vec![event], context).instrument(span);
        let outcomes = self.shared.stops.work.run_until_cancelled(run).await;
        let outcome = outcomes.and_then(|mut outcomes| outcomes.pop());
        let interrupted = || FunctionError::new(Fault::Interrupted, "the worker is shutting down");
        collector.take(outcome.ok_or_else(interrupted)??)
    }
}

//! One revision of a function at work: four intakes, one function.

use super::{
    REOPEN, Shared, Slot,
    emission::{Collector, Outlet},
    invocation::{Invoker, Meters, Taken},
};
use nerve_broker::bus::{BusError, DEAD, Puller, RunHistory, TIMERS, consumer_name};
use nerve_core::{Context, Fault, Function, FunctionError, Name, manifest::Batch};
use nerve_registry::{Entry, FunctionRecord};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// One revision of a function, taking events until its `stop`.
pub(super) struct Runner {
    shared: Shared,
    name: Name,
    revision: u64,
    record: FunctionRecord,
    invoker: Arc<Invoker>,
    stop: CancellationToken,
    /// What this revision still has; the function is closed when all of it is done.
    work: TaskTracker,
}

impl Runner {
    pub(super) fn new(
        shared: &Shared,
        name: &Name,
        entry: &Entry<FunctionRecord>,
        function: Arc<dyn Function>,
        stop: CancellationToken,
    ) -> Self {
        let spec = Arc::new(entry.record.spec.clone());
        let invoker = Invoker {
            shared: shared.clone(),
            outlet: Outlet {
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

    /// Takes events until `stop`, finishes what it has, and closes the function.
    pub(super) async fn run(self) {
        let spec = &self.record.spec;
        let capacity = spec.concurrency * spec.batch.size;
        let stream = self.intake(&self.record.stream, capacity, spec.batch);
        // Delayed retries have slots of their own, as many as new events: neither makes the other wait.
        let due = self.intake(TIMERS, capacity, spec.batch);
        // Redriven letters have one slot of their own, so that a backlog of new events does not hold them up.
        let redriven = self.intake(DEAD, 1, Batch { size: 1, wait: Duration::ZERO });
        tokio::join!(stream, due, redriven, self.direct_calls());
        self.work.close();
        self.work.wait().await;
        self.invoker.function.close().await;
        tracing::debug!(function = %self.name, revision = self.revision, "closed");
    }

    async fn intake(&self, stream: &str, capacity: usize, batch: Batch) {
        while !self.stop.is_cancelled() {
            let Err(error) = self.pull(stream, capacity, batch).await else { return };
            tracing::warn!(function = %self.name, stream, %error, "the consumer is opened again");
            if matches!(error, BusError::NotFound(_)) {
                self.restore_consumers().await;
            }
            self.stop.run_until_cancelled(tokio::time::sleep(REOPEN)).await;
        }
    }

    /// Makes the consumers again, which somebody deleted under a function that is still deployed.
    async fn restore_consumers(&self) {
        match self.shared.registry.function(&self.name).await {
            Ok(Some(entry)) if entry.revision == self.revision => {}
            // Removed or replaced: the supervisor is about to hear of it.
            Ok(_) | Err(_) => return,
        }
        if let Err(error) = self.shared.registry.ensure_consumers(&self.name, &self.record).await {
            let error = format!("its consumer cannot be made: {error}");
            tracing::error!(function = %self.name, error);
            self.shared.statuses.set(&self.name, Slot::Failed { error });
        }
    }

    /// Pulls until `stop`, which is the only end that is no error.
    async fn pull(&self, stream: &str, capacity: usize, batch: Batch) -> Result<(), BusError> {
        let slots = Arc::new(Semaphore::new(capacity));
        let mut puller = Puller::start(&self.shared.pulling, &slots, (stream, &consumer_name(&self.name))).await?;
        // A runner that was stopped meanwhile would overwrite the status of the one that replaces it.
        if stream == self.record.stream && !self.stop.is_cancelled() {
            self.shared
                .statuses
                .set(&self.name, Slot::Running { revision: self.revision, liveness: puller.liveness() });
        }
        let mut gathered: Vec<Taken> = Vec::with_capacity(batch.size);
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
                taken = puller.next() => {
                    let (delivery, slot) = taken?;
                    if gathered.is_empty() {
                        deadline = Instant::now() + batch.wait;
                    }
                    gathered.push(Taken::new(delivery, slot));
                }
                () = tokio::time::sleep_until(deadline), if !gathered.is_empty() => {}
            }
        }
        for Taken { delivery, .. } in gathered {
            self.give_back(delivery).await?;
        }
        for delivery in puller.stop().await? {
            self.give_back(delivery).await?;
        }
        Ok(())
    }

    /// Gives back what was not started: that is no attempt.
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

    /// Takes direct calls, as many at once as the function's concurrency.
    async fn direct_calls(&self) {
        let slots = Arc::new(Semaphore::new(self.record.spec.concurrency));
        while !self.stop.is_cancelled() {
            let mut calls = match self.shared.bus.invocations(&self.name).await {
                Ok(calls) => calls,
                Err(error) => {
                    tracing::warn!(function = %self.name, %error, "direct calls cannot be taken");
                    self.stop.run_until_cancelled(tokio::time::sleep(REOPEN)).await;
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
    /// Runs the function once and returns what it emitted, unpublished.
    async fn call(&self, event: nerve_core::Event) -> Result<Vec<nerve_core::Event>, FunctionError> {
        let collector = Arc::new(Collector {
            outlet: self.outlet.clone(),
            input: event.clone(),
            events: Mutex::default(),
            catalogue: self.shared.catalogue.clone(),
        });
        let context = Context {
            emitter: collector.clone(),
            views: Some(self.shared.views.clone()),
            quotas: self.shared.catalogue.borrow().quotas.clone(),
        };
        let run = self.function.invoke(vec![event], context);
        let outcomes = self.shared.stops.work.run_until_cancelled(run).await;
        let outcome = outcomes.and_then(|mut outcomes| outcomes.pop());
        let interrupted = || FunctionError::new(Fault::Interrupted, "the worker is shutting down");
        collector.take(outcome.ok_or_else(interrupted)??)
    }
}

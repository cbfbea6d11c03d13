//! One revision of a sink at work: three intakes, one endpoint.

use super::{
    super::{REOPEN, Shared, Slot},
    delivery::Poster,
};
use nerve_broker::bus::{BusError, DEAD, Puller, TIMERS, consumer_name};
use nerve_registry::{Entry, SinkRecord};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Takes events for a sink until its `stop`.
pub(super) struct Runner {
    pub(super) shared: Shared,
    pub(super) entry: Entry<SinkRecord>,
    pub(super) poster: Arc<Poster>,
    pub(super) stop: CancellationToken,
    /// What this revision still has.
    pub(super) work: TaskTracker,
}

impl Runner {
    /// Takes events until `stop`, and ends what it has.
    pub(super) async fn run(self) {
        while let Err(error) = self.shared.registry.ensure_sink_consumers(&self.entry.name, &self.entry.record).await {
            self.failed(&error);
            if self.stop.run_until_cancelled(tokio::time::sleep(REOPEN)).await.is_none() {
                return;
            }
        }
        let spec = &self.entry.record.spec;
        let in_stream = if spec.order { 1 } else { spec.concurrency };
        let stream = self.intake(&self.entry.record.stream, in_stream);
        let due = self.intake(TIMERS, spec.concurrency);
        // Redriven letters have one slot of their own, so that a backlog of new events does not hold them up.
        tokio::join!(stream, due, self.intake(DEAD, 1));
        self.work.close();
        self.work.wait().await;
        tracing::debug!(sink = %self.entry.name, revision = self.entry.revision, "closed");
    }

    async fn intake(&self, stream: &str, capacity: usize) {
        while !self.stop.is_cancelled() {
            let Err(error) = self.pull(stream, capacity).await else { return };
            tracing::warn!(sink = %self.entry.name, stream, %error, "the consumer is opened again");
            if matches!(error, BusError::NotFound(_)) {
                self.restore_consumers().await;
            }
            self.stop.run_until_cancelled(tokio::time::sleep(REOPEN)).await;
        }
    }

    /// Makes the consumers again, which somebody deleted under a sink that is still deployed.
    async fn restore_consumers(&self) {
        match self.shared.registry.sink(&self.entry.name).await {
            Ok(Some(entry)) if entry.revision == self.entry.revision => {}
            // Removed or replaced: the reconciler is about to hear of it.
            Ok(_) | Err(_) => return,
        }
        let made = self.shared.registry.ensure_sink_consumers(&self.entry.name, &self.entry.record).await;
        if let Err(error) = made {
            self.failed(&error);
        }
    }

    fn failed(&self, error: &BusError) {
        let error = format!("its consumer cannot be made: {error}");
        tracing::error!(sink = %self.entry.name, error);
        self.shared.sink_statuses.set(&self.entry.name, Slot::Failed { error });
    }

    /// Pulls until `stop`, which is the only end that is no error.
    async fn pull(&self, stream: &str, capacity: usize) -> Result<(), BusError> {
        let slots = Arc::new(Semaphore::new(capacity));
        let consumer = consumer_name(&self.entry.name);
        let mut puller = Puller::start(&self.shared.pulling, &slots, (stream, &consumer)).await?;
        if stream == self.entry.record.stream {
            let running = Slot::Running { revision: self.entry.revision, liveness: puller.liveness() };
            self.shared.sink_statuses.set(&self.entry.name, running);
        }
        while let Some(taken) = self.stop.run_until_cancelled(puller.next()).await {
            let (delivery, slot) = taken?;
            self.work.spawn(self.poster.clone().handle(delivery, slot));
        }
        puller.give_back().await
    }
}

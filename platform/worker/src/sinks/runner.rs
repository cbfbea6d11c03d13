//! The runner of one revision of a sink: three consumers, one endpoint.

use super::{
    super::{REOPEN_INTERVAL, StatusEntry, WorkerShared, reopen::reopen_until},
    delivery::Dispatcher,
};
use nerve_broker::bus::{BusError, DEAD, Puller, TIMERS, consumer_name};
use nerve_registry::{Entry, SinkRecord};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, field::Empty};

/// Receives the events of a sink until `stop`.
pub(super) struct Runner {
    pub(super) shared: WorkerShared,
    pub(super) entry: Entry<SinkRecord>,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) stop: CancellationToken,
    /// The running work of this revision.
    pub(super) work: TaskTracker,
}

impl Runner {
    /// Receives events until `stop`, and finishes the running ones.
    pub(super) async fn run(self) {
        let (sink, revision) = (self.entry.name.as_str(), self.entry.revision);
        let ready = self.create_consumers().instrument(tracing::info_span!("deploy", sink, revision));
        if self.stop.run_until_cancelled(ready).await.is_none() {
            return;
        }
        let spec = &self.entry.record.spec;
        let in_stream = if spec.order { 1 } else { spec.concurrency };
        let stream = self.intake(&self.entry.record.stream, in_stream);
        let due = self.intake(TIMERS, spec.concurrency);
        // Redriven dead letters have one separate slot, so that a backlog of new events does not delay them.
        tokio::join!(stream, due, self.intake(DEAD, 1));
        self.work.close();
        self.work.wait().await;
        tracing::debug!(sink = %self.entry.name, revision = self.entry.revision, "closed");
    }

    /// Creates the sink's consumers, however long the broker refuses.
    async fn create_consumers(&self) {
        while let Err(error) = self.shared.registry.ensure_sink_consumers(&self.entry.name, &self.entry.record).await {
            self.failed(&error);
            tokio::time::sleep(REOPEN_INTERVAL).await;
        }
    }

    async fn intake(&self, stream: &str, capacity: usize) {
        let failed = async |error| {
            tracing::warn!(sink = %self.entry.name, stream, %error, "consumer failed; reopening it");
            if matches!(error, BusError::NotFound(_)) {
                self.restore_consumers().await;
            }
        };
        reopen_until(&self.stop, || self.pull(stream, capacity), failed).await;
    }

    /// Recreates the deleted consumers of a sink that is still deployed.
    async fn restore_consumers(&self) {
        match self.shared.registry.sink(&self.entry.name).await {
            Ok(Some(entry)) if entry.revision == self.entry.revision => {}
            // Removed or replaced: the reconciler is about to receive the change.
            Ok(_) | Err(_) => return,
        }
        let ensured = self.shared.registry.ensure_sink_consumers(&self.entry.name, &self.entry.record).await;
        if let Err(error) = ensured {
            self.failed(&error);
        }
    }

    fn failed(&self, error: &BusError) {
        let error = format!("consumer cannot be created: {error}");
        tracing::error!(sink = %self.entry.name, error);
        self.shared.sink_statuses.set(&self.entry.name, StatusEntry::Failed { error });
    }

    /// Pulls until `stop`. Any other end is an error.
    async fn pull(&self, stream: &str, capacity: usize) -> Result<(), BusError> {
        let slots = Arc::new(Semaphore::new(capacity));
        let consumer = consumer_name(&self.entry.name);
        let mut puller = Puller::start(&self.shared.pulling, &slots, (stream, &consumer)).await?;
        if stream == self.entry.record.stream {
            let running = StatusEntry::Running { revision: self.entry.revision, liveness: puller.liveness() };
            self.shared.sink_statuses.set(&self.entry.name, running);
        }
        while let Some(pulled) = self.stop.run_until_cancelled(puller.next()).await {
            let (delivery, slot) = pulled?;
            let (sink, stream, sequence) = (self.entry.name.as_str(), &*delivery.stream, delivery.sequence);
            let span = tracing::info_span!("delivery", sink, stream, sequence, event = Empty);
            self.work.spawn(self.dispatcher.clone().handle(delivery, slot).instrument(span));
        }
        puller.give_back().await
    }
}

//! Deliveries that came before: what became of them, and how they go on.

use super::{
    failure,
    invocation::{Invoker, Taken},
};
use nerve_broker::bus::{BusError, Delivery, Resumption};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use time::OffsetDateTime;

/// The wait before an event that cannot run now is delivered again.
const POSTPONED: Duration = Duration::from_secs(1);
/// How often an event is given back as its worker is never idle, before it runs beside others.
const MAX_POSTPONED: u32 = 30;

impl Invoker {
    /// Looks at a delivery that came before, and returns it if it runs as any other. One that must run alone does so here.
    pub(super) async fn resume(self: &Arc<Self>, mut taken: Taken) -> Option<Taken> {
        let (bus, function) = (&self.shared.bus, &self.outlet.function);
        taken.history = match bus.run_history(function, &taken.delivery).await {
            Ok(history) => history,
            Err(error) => {
                tracing::debug!(%function, error = &error as &dyn std::error::Error, "an event waits for the broker");
                failure::give_back(taken.delivery).await;
                return None;
            }
        };
        // Otherwise both would run.
        if taken.history.may_have_delayed_copy(&taken.delivery)
            && let Err(error) = taken.delivery.delete_delayed_retry(function).await
        {
            tracing::debug!(%function, error = &error as &dyn std::error::Error, "an event waits for the broker");
            failure::give_back(taken.delivery).await;
            return None;
        }
        let resumption = taken.history.resume(&taken.delivery, self.outlet.spec.retry.attempts);
        taken.delivery.attempt = taken.history.failed + 1;
        if taken.delivery.may_be_legacy
            && let Ok(event) = taken.delivery.event().await
        {
            match bus.legacy_results(function, &event).await {
                Ok(older) => taken.older = older,
                Err(_) => {
                    failure::give_back(taken.delivery).await;
                    return None;
                }
            }
        }
        // Also where the earlier attempt failed: it may have failed since the broker did not confirm that its results are stored.
        if self.may_be_forgotten(&taken.delivery) {
            match self.committed(&taken.delivery).await {
                Ok(None) => {}
                Ok(Some(first)) => {
                    self.acknowledge_committed(taken, first).await;
                    return None;
                }
                Err(error) => {
                    tracing::debug!(%function, error = &error as &dyn std::error::Error, "an event waits for the broker");
                    failure::give_back(taken.delivery).await;
                    return None;
                }
            }
        }
        match resumption {
            Resumption::Run => Some(taken),
            Resumption::Exhausted => {
                self.count("exhausted");
                failure::bury(&self.shared, &self.outlet, self.revision, taken).await;
                None
            }
            Resumption::RunAlone if taken.history.postponed >= MAX_POSTPONED => Some(taken),
            Resumption::RunAlone => {
                self.run_alone(taken).await;
                None
            }
        }
    }

    async fn run_alone(self: &Arc<Self>, mut taken: Taken) {
        let (bus, function) = (&self.shared.bus, &self.outlet.function);
        let stop = self.shared.stops.work.clone();
        let Some(alone) = stop.run_until_cancelled(self.shared.isolation.alone()).await else {
            return self.give_back(taken).await;
        };
        let Some(_alone) = alone else {
            taken.history.postponed += 1;
            self.postpone(taken).await;
            return;
        };
        taken.history.start_alone(&taken.delivery);
        if let Err(error) = bus.record_run(function, &taken.delivery, &taken.history).await {
            tracing::debug!(%function, error = &error as &dyn std::error::Error, "an event waits for the broker");
            return failure::give_back(taken.delivery).await;
        }
        tracing::info!(%function, sequence = taken.delivery.sequence, "an event that was in flight when a worker ended runs alone");
        self.run(vec![taken]).await;
    }

    /// Has the broker deliver an event again a moment later, which is no attempt; others run meanwhile.
    pub(super) async fn postpone(&self, mut taken: Taken) {
        let (bus, function) = (&self.shared.bus, &self.outlet.function);
        taken.history.end_released(&taken.delivery);
        let recorded = bus.record_run(function, &taken.delivery, &taken.history).await;
        if let Err(error) = recorded.and(taken.delivery.retry_after(POSTPONED).await) {
            tracing::debug!(%function, error = &error as &dyn std::error::Error, "an event comes again after the ack wait");
        }
    }

    /// Whether JetStream may have forgotten the ids of the run's results.
    fn may_be_forgotten(&self, delivery: &Delivery) -> bool {
        let age = OffsetDateTime::now_utc() - delivery.provenance.input.stored();
        // The attempt whose results are asked for is younger than the event. This attempt looks again before it publishes, if it takes
        // the other half of the window.
        age >= self.shared.dedupe_window / 2
    }

    /// The sequence of the run's first result in the log.
    async fn committed(&self, delivery: &Delivery) -> Result<Option<u64>, BusError> {
        let run = delivery.run(&self.outlet.function);
        let asked = Instant::now();
        self.committed.lock().await.find(&self.shared.bus, run, asked).await
    }

    /// Acknowledges an event whose results are in the log already.
    async fn acknowledge_committed(&self, taken: Taken, first: u64) {
        let function = &self.outlet.function;
        let copied = self.shared.bus.copy_committed(taken.delivery.run(function), first).await;
        if let Err(error) = copied {
            tracing::debug!(%function, error = &error as &dyn std::error::Error, "an event waits for the broker");
            return failure::give_back(taken.delivery).await;
        }
        self.count("duplicate");
        if let Err(error) = taken.delivery.ack().await {
            tracing::warn!(%function, %error, "ack failed; the event will be redelivered");
        }
    }
}

//! Repeated deliveries: the outcome of the earlier attempts decides how they continue.

use super::{
    failure,
    invocation::{ActiveDelivery, Invoker},
};
use nerve_broker::bus::{BusError, Delivery, Resumption};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use time::OffsetDateTime;

/// The wait before a postponed event is redelivered.
const POSTPONE_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum postponements of an event that must run alone. After them it runs beside others.
const MAX_POSTPONED: u32 = 30;

impl Invoker {
    /// Resumes a repeated delivery. Returns it if it can run in a batch; runs it here if it must run alone.
    pub(super) async fn resume(self: &Arc<Self>, mut active: ActiveDelivery) -> Option<ActiveDelivery> {
        let (bus, function) = (&self.shared.bus, &self.policy.function);
        active.history = match bus.run_history(function, &active.delivery).await {
            Ok(history) => history,
            Err(error) => {
                tracing::debug!(%function, error = &error as &dyn std::error::Error, "event waits for the broker");
                failure::give_back(active.delivery).await;
                return None;
            }
        };
        // Without this the delayed retry would run too.
        if active.history.may_have_delayed_copy(&active.delivery)
            && let Err(error) = active.delivery.delete_delayed_retry(function).await
        {
            tracing::debug!(%function, error = &error as &dyn std::error::Error, "event waits for the broker");
            failure::give_back(active.delivery).await;
            return None;
        }
        let resumption = active.history.resume(&active.delivery, self.policy.spec.retry.attempts);
        active.delivery.attempt = active.history.failed + 1;
        if active.delivery.may_be_legacy
            && let Ok(event) = active.delivery.event().await
        {
            match bus.legacy_results(function, &event).await {
                Ok(older) => active.older = older,
                Err(_) => {
                    failure::give_back(active.delivery).await;
                    return None;
                }
            }
        }
        // Also after a failed attempt: it may have failed because the broker did not confirm that its results were stored.
        if self.may_be_forgotten(&active.delivery) {
            match self.committed(&active.delivery).await {
                Ok(None) => {}
                Ok(Some(first)) => {
                    self.acknowledge_committed(active, first).await;
                    return None;
                }
                Err(error) => {
                    tracing::debug!(%function, error = &error as &dyn std::error::Error, "event waits for the broker");
                    failure::give_back(active.delivery).await;
                    return None;
                }
            }
        }
        match resumption {
            Resumption::Run => Some(active),
            Resumption::Exhausted => {
                self.count("exhausted");
                failure::dead_letter(&self.shared, &self.policy, self.revision, active).await;
                None
            }
            Resumption::RunAlone if active.history.postponed >= MAX_POSTPONED => Some(active),
            Resumption::RunAlone => {
                self.run_alone(active).await;
                None
            }
        }
    }

    async fn run_alone(self: &Arc<Self>, mut active: ActiveDelivery) {
        let (bus, function) = (&self.shared.bus, &self.policy.function);
        let stop = self.shared.stops.work.clone();
        let Some(alone) = stop.run_until_cancelled(self.shared.isolation.alone()).await else {
            return self.give_back(active).await;
        };
        let Some(_alone) = alone else {
            active.history.postponed += 1;
            self.postpone(active).await;
            return;
        };
        active.history.start_alone(&active.delivery);
        if let Err(error) = bus.record_run(function, &active.delivery, &active.history).await {
            tracing::debug!(%function, error = &error as &dyn std::error::Error, "event waits for the broker");
            return failure::give_back(active.delivery).await;
        }
        tracing::info!(%function, sequence = active.delivery.sequence, "running alone an event that was in flight when a worker crashed");
        self.run(vec![active]).await;
    }

    /// Returns an event to the broker for redelivery after [`POSTPONE_INTERVAL`]. This is no attempt.
    pub(super) async fn postpone(&self, mut active: ActiveDelivery) {
        let (bus, function) = (&self.shared.bus, &self.policy.function);
        active.history.end_released(&active.delivery);
        let recorded = bus.record_run(function, &active.delivery, &active.history).await;
        if let Err(error) = recorded.and(active.delivery.retry_after(POSTPONE_INTERVAL).await) {
            tracing::debug!(%function, error = &error as &dyn std::error::Error, "nak failed; the event is redelivered after the ack wait");
        }
    }

    /// Whether JetStream may have forgotten the ids of the run's results.
    fn may_be_forgotten(&self, delivery: &Delivery) -> bool {
        let age = OffsetDateTime::now_utc() - delivery.provenance.input.stored();
        // Earlier attempts are younger than the event. This attempt checks once more before it publishes if it takes
        // longer than the other half of the window.
        age >= self.shared.dedupe_window / 2
    }

    /// Returns the sequence of the run's first result in EVENTS.
    async fn committed(&self, delivery: &Delivery) -> Result<Option<u64>, BusError> {
        let run = delivery.run(&self.policy.function);
        let asked = Instant::now();
        self.committed.lock().await.find(&self.shared.bus, run, asked).await
    }

    /// Acknowledges an event whose results are already stored.
    async fn acknowledge_committed(&self, active: ActiveDelivery, first: u64) {
        let function = &self.policy.function;
        let copied = self.shared.bus.copy_committed(active.delivery.run(function), first).await;
        if let Err(error) = copied {
            tracing::debug!(%function, error = &error as &dyn std::error::Error, "event waits for the broker");
            return failure::give_back(active.delivery).await;
        }
        self.count("duplicate");
        if let Err(error) = active.delivery.ack().await {
            tracing::warn!(%function, %error, "ack failed; the event will be redelivered");
        }
    }
}

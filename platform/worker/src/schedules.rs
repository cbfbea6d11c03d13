//! Schedules: publishes one event for each tick of the broker. Workers share the ticks.

use super::{WorkerShared, reopen::reopen_until};
use nerve_broker::bus::{BusError, Delivery, PublishError, Puller, TICKS_CONSUMER, TIMERS};
use nerve_core::{Event, Name, ScheduleSpec};
use std::{sync::Arc, time::Duration};
use time::OffsetDateTime;
use tokio::sync::Semaphore;

/// Maximum ticks that are processed concurrently.
const MAX_CONCURRENT_TICKS: usize = 16;
/// The wait before a tick is retried while the broker is unavailable.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Serves ticks until the intake stops.
pub(super) async fn run(shared: &WorkerShared) {
    let failed = async |error| tracing::debug!(%error, "schedules wait for the broker");
    reopen_until(&shared.stops.intake, || serve(shared), failed).await;
}

/// Waits until a schedule is deployed, then pulls ticks.
async fn serve(shared: &WorkerShared) -> Result<(), BusError> {
    let (stop, mut catalogue) = (&shared.stops.intake, shared.catalogue.clone());
    let any = async { catalogue.wait_for(|catalogue| !catalogue.schedules.is_empty()).await.is_ok() };
    if stop.run_until_cancelled(any).await != Some(true) {
        return Ok(());
    }
    shared.registry.ensure_ticks_consumer().await?;
    let deployed = shared.catalogue.borrow().clone();
    for (name, entry) in &deployed.schedules {
        shared.registry.ensure_schedule(name, &entry.record.spec).await?;
    }
    let slots = Arc::new(Semaphore::new(MAX_CONCURRENT_TICKS));
    let mut puller = Puller::start(&shared.pulling, &slots, (TIMERS, TICKS_CONSUMER)).await?;
    while let Some(pulled) = stop.run_until_cancelled(puller.next()).await {
        let (delivery, _slot) = pulled?;
        tick(shared, delivery).await?;
    }
    puller.give_back().await
}

async fn tick(shared: &WorkerShared, delivery: Delivery) -> Result<(), BusError> {
    let Some(name) = delivery.tick() else { return delivery.ack().await };
    let spec = shared.catalogue.borrow().schedules.get(&name).map(|entry| entry.record.spec.clone());
    // The schedule has just been removed.
    let Some(spec) = spec else { return delivery.ack().await };
    match shared.bus.publish_own(&event_of(&name, &spec, delivery.sequence)).await {
        Ok(_) => delivery.ack().await,
        Err(PublishError::Invalid(why)) => {
            tracing::error!(schedule = %name, why, "scheduled event cannot be published: correct `data` of the schedule");
            delivery.ack().await
        }
        Err(PublishError::Unavailable(error)) => {
            tracing::debug!(schedule = %name, %error, "tick waits for the broker");
            delivery.retry_after(RETRY_INTERVAL).await
        }
    }
}

/// Builds the event of a tick. Its id is the same at each delivery of the tick.
fn event_of(name: &Name, spec: &ScheduleSpec, tick: u64) -> Event {
    let data = spec.data.as_ref().map_or_else(|| "{}".to_owned(), ToString::to_string);
    let event = Event::new(format!("{name}-{tick}"), format!("/schedules/{name}"), spec.emit.clone());
    let mut event = event.with_data("application/json", data);
    event.time = Some(OffsetDateTime::now_utc());
    event
}

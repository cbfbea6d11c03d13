//! Schedules: each tick that the broker makes becomes one event, whichever worker takes it.

use super::{REOPEN, Shared};
use nerve_broker::bus::{BusError, Delivery, PublishError, Puller, TICKS_CONSUMER, TIMERS};
use nerve_core::{Event, Name, ScheduleSpec};
use std::{sync::Arc, time::Duration};
use time::OffsetDateTime;
use tokio::sync::Semaphore;

/// Ticks in hand at once.
const SLOTS: usize = 16;
/// The wait of a tick for a broker that is away.
const AGAIN: Duration = Duration::from_secs(1);

/// Takes ticks until the intake stops.
pub(super) async fn run(shared: &Shared) {
    let stop = shared.stops.intake.clone();
    while !stop.is_cancelled() {
        if let Err(error) = serve(shared).await {
            tracing::debug!(%error, "the schedules wait for the broker");
        }
        stop.run_until_cancelled(tokio::time::sleep(REOPEN)).await;
    }
}

/// Follows what is deployed, so that a worker without schedules asks for nothing.
async fn serve(shared: &Shared) -> Result<(), BusError> {
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
    let slots = Arc::new(Semaphore::new(SLOTS));
    let mut puller = Puller::start(&shared.pulling, &slots, (TIMERS, TICKS_CONSUMER)).await?;
    while let Some(taken) = stop.run_until_cancelled(puller.next()).await {
        let (delivery, _slot) = taken?;
        tick(shared, delivery).await?;
    }
    puller.give_back().await
}

async fn tick(shared: &Shared, delivery: Delivery) -> Result<(), BusError> {
    let Some(name) = delivery.tick() else { return delivery.ack().await };
    let spec = shared.catalogue.borrow().schedules.get(&name).map(|entry| entry.record.spec.clone());
    // Removed a moment ago.
    let Some(spec) = spec else { return delivery.ack().await };
    match shared.bus.publish_own(&event_of(&name, &spec, delivery.sequence)).await {
        Ok(_) => delivery.ack().await,
        Err(PublishError::Invalid(why)) => {
            tracing::error!(schedule = %name, why, "its event cannot be published: correct its `data`");
            delivery.ack().await
        }
        Err(PublishError::Unavailable(error)) => {
            tracing::debug!(schedule = %name, %error, "a tick waits for the broker");
            delivery.retry_after(AGAIN).await
        }
    }
}

/// The event of a tick; a tick that is delivered twice has one id.
fn event_of(name: &Name, spec: &ScheduleSpec, tick: u64) -> Event {
    let data = spec.data.as_ref().map_or_else(|| "{}".to_owned(), ToString::to_string);
    let event = Event::new(format!("{name}-{tick}"), format!("/schedules/{name}"), spec.emit.clone());
    let mut event = event.with_data("application/json", data);
    event.time = Some(OffsetDateTime::now_utc());
    event
}

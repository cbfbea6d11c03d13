//! `control.retry_requested`: a dead letter goes back to its function, or the last step of an answer is taken again.

use super::Shared;
use crate::bus::{
    BodyError, BusError, Delivery, EVENTS, PublishError, Puller, REQUESTS, Retried, RetryRequest, loose_ends,
};
use nerve_core::{Event, EventType, Identity, answer};
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// The wait before a broken intake is opened again, and before a request is tried again that met a broker away.
const AGAIN: Duration = Duration::from_millis(500);

/// Takes requests until the worker stops.
pub(super) async fn serve(shared: Shared) {
    let stop = shared.stops.intake.clone();
    while !stop.is_cancelled() {
        if let Err(error) = take(&shared).await {
            tracing::warn!(%error, "requests to try again are not heard of");
        }
        stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await;
    }
}

async fn take(shared: &Shared) -> Result<(), BusError> {
    shared.bus.ensure_retry_requests(shared.pulling.leases.ack_wait()).await?;
    let slots = Arc::new(Semaphore::new(1));
    let mut puller = Puller::start(&shared.pulling, &slots, (EVENTS, REQUESTS)).await?;
    loop {
        tokio::select! {
            biased;
            () = shared.stops.intake.cancelled() => return puller.give_back().await,
            taken = puller.next() => {
                let (delivery, _slot) = taken?;
                settle(shared, delivery).await?;
            }
        }
    }
}

async fn settle(shared: &Shared, delivery: Delivery) -> Result<(), BusError> {
    let event = match delivery.event().await {
        Ok(event) => event,
        Err(BodyError::Gone(_)) => return delivery.ack().await,
        Err(BodyError::Bus(_)) => return delivery.retry_after(AGAIN).await,
    };
    let retried = match retry(shared, &event).await {
        Ok(retried) => retried,
        Err(BusError::Unavailable { .. }) => return delivery.retry_after(AGAIN).await,
        Err(why) => Retried { reason: Some(why.to_string()), ..Retried::default() },
    };
    let retried = Retried { request: event.id.clone(), ..retried };
    match shared.bus.tell_retried(&event, &retried).await {
        Ok(()) => delivery.ack().await,
        Err(PublishError::Unavailable(_)) => delivery.retry_after(AGAIN).await,
        Err(error @ PublishError::Invalid(_)) => {
            tracing::error!(%error, "what came of a request to try again cannot be told");
            delivery.ack().await
        }
    }
}

async fn retry(shared: &Shared, event: &Event) -> Result<Retried, BusError> {
    let refused = |why: &str| BusError::refused("trying again", why);
    let request: RetryRequest = serde_json::from_slice(&event.data).map_err(|error| refused(&error.to_string()))?;
    match request {
        RetryRequest { dead_letter: Some(letter), .. } => one_letter(shared, event, letter).await,
        RetryRequest { answer: Some(id), .. } => {
            Ok(Retried { answer: Some(id.clone()), ..of_answer(shared, event, &id).await? })
        }
        RetryRequest { .. } => Err(refused("say `dead_letter` or `answer`")),
    }
}

async fn one_letter(shared: &Shared, event: &Event, letter: u64) -> Result<Retried, BusError> {
    let dead = shared.bus.dead_letter(letter).await?;
    shared.bus.reopen_answer(answer::id_of(&dead.event), &event.id).await?;
    shared.registry.redrive(letter).await?;
    Ok(Retried { dead_letters: vec![letter], ..Retried::default() })
}

/// What failed for an answer goes back to its functions; where nothing failed, as it was stopped, its last step is
/// taken again.
async fn of_answer(shared: &Shared, event: &Event, id: &str) -> Result<Retried, BusError> {
    let refused = |why: &str| BusError::refused(format!("trying the answer {id} again"), why);
    let state = shared.bus.answer_state(id).await?;
    if state.is_some_and(|state| state.ended && !state.failed) {
        return Err(refused("it is done"));
    }
    let traced = shared.bus.trace(id, None).await?;
    let (dead_letters, leaves) = loose_ends(&traced);
    if !dead_letters.is_empty() {
        shared.bus.reopen_answer(id, &event.id).await?;
        for letter in &dead_letters {
            shared.registry.redrive(*letter).await?;
        }
        return Ok(Retried { dead_letters, ..Retried::default() });
    }
    let leads_on = |ty: &str| {
        let catalogue = shared.catalogue.borrow();
        EventType::parse(ty)
            .is_ok_and(|ty| catalogue.takers(&ty).any(|name| catalogue.leads_to(name, answer::GENERATED)))
    };
    let Some(last) = leaves.into_iter().rev().find(|leaf| leads_on(&leaf.ty)) else {
        return Err(refused(
            "no event of it leads to an answer: it was never asked for, or so long ago that it is gone",
        ));
    };
    shared.bus.reopen_answer(id, &event.id).await?;
    let request = format!("{}#{}", event.source, event.id);
    shared.bus.republish(last.sequence, Identity::of_copy(&request, &last.sequence.to_string())).await?;
    Ok(Retried { event: Some(last.id.clone()), ..Retried::default() })
}

//! `control.retry_requested`: a dead letter goes back to its function, or the last step of an answer is taken again.

use super::Shared;
use futures::FutureExt;
use nerve_broker::bus::{
    BodyError, BusError, Delivery, EVENTS, PublishError, Puller, RETRY_CONSUMER, Resumption, RetryOutcome,
    RetryRequest, RunHistory, unfinished_leaves,
};
use nerve_core::{Event, EventType, Fault, FunctionError, Identity, Name, answer};
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// The wait before a broken intake is opened again, and before a request is delivered again that nothing is known of.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// The wait before a request is delivered again that did not run.
const POSTPONED: Duration = Duration::from_secs(1);
/// How often a request waits for its worker to be idle before it runs beside others.
const MAX_POSTPONED: u32 = 30;
/// The waits between attempts at a request: somebody waits for what comes of it.
const BACKOFF: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// Attempts at a request.
const MAX_ATTEMPTS: u32 = 5;

/// Takes requests until the worker stops.
pub(super) async fn serve(shared: Shared) {
    let stop = shared.stops.intake.clone();
    while !stop.is_cancelled() {
        if let Err(error) = take(&shared).await {
            tracing::warn!(%error, "requests to try again are not heard of");
        }
        stop.run_until_cancelled(tokio::time::sleep(RETRY_INTERVAL)).await;
    }
}

async fn take(shared: &Shared) -> Result<(), BusError> {
    shared.bus.ensure_retry_requests(shared.pulling.leases.ack_wait()).await?;
    let slots = Arc::new(Semaphore::new(1));
    let mut puller = Puller::start(&shared.pulling, &slots, (EVENTS, RETRY_CONSUMER)).await?;
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

/// A request that was delivered, and what is known of its earlier attempts.
struct Request {
    delivery: Delivery,
    history: RunHistory,
}

/// Takes a request to its end, as the invocation of a function would be: one that fails, or ends a worker, is tried
/// [`MAX_ATTEMPTS`] times, and then refused.
async fn settle(shared: &Shared, delivery: Delivery) -> Result<(), BusError> {
    let mut request = Request { delivery, history: RunHistory::default() };
    if request.delivery.delivered > 1 || request.delivery.may_have_run {
        request.history = match shared.bus.run_history(&function()?, &request.delivery).await {
            Ok(history) => history,
            Err(_) => return request.delivery.retry_after(RETRY_INTERVAL).await,
        };
        match request.history.resume(&request.delivery, MAX_ATTEMPTS) {
            Resumption::Run => {}
            Resumption::Exhausted => return request.refuse(shared).await,
            Resumption::RunAlone if request.history.postponed >= MAX_POSTPONED => {}
            Resumption::RunAlone => {
                let Some(_alone) = shared.isolation.alone().await else { return request.postpone(shared).await };
                request.history.start_alone(&request.delivery);
                if shared.bus.record_run(&function()?, &request.delivery, &request.history).await.is_err() {
                    return request.delivery.retry_after(RETRY_INTERVAL).await;
                }
                return request.run(shared).await;
            }
        }
    }
    let _shared = shared.isolation.share().await;
    request.run(shared).await
}

impl Request {
    async fn run(self, shared: &Shared) -> Result<(), BusError> {
        let event = match self.delivery.event().await {
            Ok(event) => event,
            Err(BodyError::Gone(_)) => return self.delivery.ack().await,
            Err(BodyError::Bus(_)) => return self.delivery.retry_after(RETRY_INTERVAL).await,
        };
        // A panic costs this attempt, and not the requests of this worker.
        let outcome = AssertUnwindSafe(retry(shared, &event)).catch_unwind().await;
        let retried = match outcome {
            Ok(Ok(retried)) => retried,
            Ok(Err(error @ BusError::Unavailable { .. })) if shared.bus.connected() => {
                let why = with_causes(&error);
                return self.fail(shared, FunctionError::new(Fault::Retry { after: None }, why)).await;
            }
            // The broker is unavailable, which is no failure of the request.
            Ok(Err(BusError::Unavailable { .. })) => return self.postpone(shared).await,
            Ok(Err(why)) => RetryOutcome { reason: Some(why.to_string()), ..RetryOutcome::default() },
            Err(_) => {
                let why = "the worker panicked; its log has the message";
                return self.fail(shared, FunctionError::new(Fault::Crash, why)).await;
            }
        };
        self.answer(shared, &event, retried).await
    }

    /// Says what came of the request, and acknowledges it.
    async fn answer(self, shared: &Shared, event: &Event, retried: RetryOutcome) -> Result<(), BusError> {
        let retried = RetryOutcome { request: event.id.clone(), ..retried };
        match shared.bus.publish_retry_outcome(event, &retried).await {
            Ok(()) => self.delivery.ack().await,
            Err(PublishError::Unavailable(_)) => self.delivery.retry_after(RETRY_INTERVAL).await,
            Err(error @ PublishError::Invalid(_)) => {
                tracing::error!(%error, "what came of a request to try again cannot be told");
                self.delivery.ack().await
            }
        }
    }

    async fn fail(mut self, shared: &Shared, error: FunctionError) -> Result<(), BusError> {
        tracing::warn!(error = error.message, "a request to try again failed");
        self.history.end_failed(&self.delivery, error);
        let failed = usize::try_from(self.history.failed).unwrap_or(usize::MAX);
        let Some(wait) = BACKOFF.get(failed.saturating_sub(1)) else {
            return self.refuse(shared).await;
        };
        if let Err(error) = shared.bus.record_run(&function()?, &self.delivery, &self.history).await {
            tracing::warn!(%error, "a failed attempt is not recorded, and does not count");
        }
        self.delivery.retry_after(*wait).await
    }

    /// Has the broker deliver the request again a moment later, which is no attempt.
    async fn postpone(mut self, shared: &Shared) -> Result<(), BusError> {
        self.history.postponed += 1;
        self.history.end_released(&self.delivery);
        if let Err(error) = shared.bus.record_run(&function()?, &self.delivery, &self.history).await {
            tracing::debug!(%error, "a request to try again waits for the broker");
        }
        self.delivery.retry_after(POSTPONED).await
    }

    /// Gives the request up, as its last attempt failed.
    async fn refuse(self, shared: &Shared) -> Result<(), BusError> {
        let event = match self.delivery.event().await {
            Ok(event) => event,
            Err(BodyError::Gone(_)) => return self.delivery.ack().await,
            Err(BodyError::Bus(_)) => return self.delivery.retry_after(RETRY_INTERVAL).await,
        };
        let last = self.history.failures.last().map_or("it failed", |attempt| attempt.error.message.as_str());
        let reason = format!("it failed {} times: {last}", self.history.failed);
        self.answer(shared, &event, RetryOutcome { reason: Some(reason), ..RetryOutcome::default() }).await
    }
}

/// The name that attempts at requests are recorded under, as those of a function are under its own.
fn function() -> Result<Name, BusError> {
    Name::parse(RETRY_CONSUMER).map_err(|error| BusError::refused("trying again", error))
}

fn with_causes(error: &BusError) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn retry(shared: &Shared, event: &Event) -> Result<RetryOutcome, BusError> {
    let refused = |why: &str| BusError::refused("trying again", why);
    let request: RetryRequest = serde_json::from_slice(&event.data).map_err(|error| refused(&error.to_string()))?;
    match request {
        RetryRequest { dead_letter: Some(letter), .. } => one_letter(shared, event, letter).await,
        RetryRequest { answer: Some(id), .. } => {
            Ok(RetryOutcome { answer: Some(id.clone()), ..of_answer(shared, event, &id).await? })
        }
        RetryRequest { .. } => Err(refused("say `dead_letter` or `answer`")),
    }
}

async fn one_letter(shared: &Shared, event: &Event, letter: u64) -> Result<RetryOutcome, BusError> {
    let dead = shared.bus.dead_letter(letter).await?;
    shared.bus.reopen_answer(answer::id_of(&dead.event), &event.id).await?;
    shared.registry.redrive(letter).await?;
    Ok(RetryOutcome { dead_letters: vec![letter], ..RetryOutcome::default() })
}

/// What failed for an answer goes back to its functions; where nothing failed, as it was stopped, its last step is
/// taken again.
async fn of_answer(shared: &Shared, event: &Event, id: &str) -> Result<RetryOutcome, BusError> {
    let refused = |why: &str| BusError::refused(format!("trying the answer {id} again"), why);
    let state = shared.bus.answer_state(id).await?;
    if state.is_some_and(|state| state.ended && !state.failed) {
        return Err(refused("it is done"));
    }
    let trace = shared.bus.trace(id, None).await?;
    let (dead_letters, leaves) = unfinished_leaves(&trace.events);
    if !dead_letters.is_empty() {
        shared.bus.reopen_answer(id, &event.id).await?;
        for letter in &dead_letters {
            shared.registry.redrive(*letter).await?;
        }
        return Ok(RetryOutcome { dead_letters, ..RetryOutcome::default() });
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
    Ok(RetryOutcome { event: Some(last.id.clone()), ..RetryOutcome::default() })
}

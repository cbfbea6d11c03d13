//! Retry requests (`control.retry_requested`): redrives a dead letter, or repeats the last step of an answer.

use super::{WorkerShared, reopen::reopen_until};
use futures::FutureExt;
use nerve_broker::bus::{
    BodyError, BusError, Delivery, EVENTS, PublishError, Puller, RETRY_CONSUMER, Resumption, RetryOutcome, RunHistory,
    unfinished_leaves,
};
use nerve_core::{Event, EventType, Fault, FunctionError, Identity, Name, answer};
use nerve_events::control::ControlRetryRequested;
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// The wait before a request is redelivered whose history cannot be read.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// The wait before a postponed request is redelivered.
const POSTPONE_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum postponements of a request that must run alone. After them it runs beside others.
const MAX_POSTPONED: u32 = 30;
/// The waits between attempts at a request. They are short, as a user waits for the outcome.
const BACKOFF: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// Maximum attempts at a request.
const MAX_ATTEMPTS: u32 = 5;

/// Serves requests until the worker stops.
pub(super) async fn serve(shared: WorkerShared) {
    let failed = async |error| tracing::warn!(%error, "cannot pull retry requests; retrying");
    reopen_until(&shared.stops.intake, || pull(&shared), failed).await;
}

async fn pull(shared: &WorkerShared) -> Result<(), BusError> {
    shared.bus.ensure_retry_requests(shared.pulling.leases.ack_wait()).await?;
    let slots = Arc::new(Semaphore::new(1));
    let mut puller = Puller::start(&shared.pulling, &slots, (EVENTS, RETRY_CONSUMER)).await?;
    loop {
        tokio::select! {
            biased;
            () = shared.stops.intake.cancelled() => return puller.give_back().await,
            pulled = puller.next() => {
                let (delivery, _slot) = pulled?;
                settle(shared, delivery).await?;
            }
        }
    }
}

/// A delivered request and its run history.
struct Request {
    delivery: Delivery,
    history: RunHistory,
}

/// Processes a request like an event of a function. One that fails, or crashes a worker, is rejected after [`MAX_ATTEMPTS`]
/// attempts.
async fn settle(shared: &WorkerShared, delivery: Delivery) -> Result<(), BusError> {
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
    async fn run(self, shared: &WorkerShared) -> Result<(), BusError> {
        let event = match self.delivery.event().await {
            Ok(event) => event,
            Err(BodyError::Gone(_)) => return self.delivery.ack().await,
            Err(BodyError::Bus(_)) => return self.delivery.retry_after(RETRY_INTERVAL).await,
        };
        // A panic fails this attempt only.
        let outcome = AssertUnwindSafe(retry(shared, &event)).catch_unwind().await;
        let retried = match outcome {
            Ok(Ok(retried)) => retried,
            Ok(Err(error @ BusError::Unavailable { .. })) if shared.bus.connected() => {
                let why = with_causes(&error);
                return self.fail(shared, FunctionError::new(Fault::Retry { after: None }, why)).await;
            }
            // An unavailable broker is no failure of the request.
            Ok(Err(BusError::Unavailable { .. })) => return self.postpone(shared).await,
            Ok(Err(why)) => RetryOutcome { reason: Some(why.to_string()), ..RetryOutcome::default() },
            Err(_) => {
                let why = "the worker panicked; its log has the message";
                return self.fail(shared, FunctionError::new(Fault::Crash, why)).await;
            }
        };
        self.answer(shared, &event, retried).await
    }

    /// Publishes the outcome of the request and acknowledges it.
    async fn answer(self, shared: &WorkerShared, event: &Event, retried: RetryOutcome) -> Result<(), BusError> {
        match shared.bus.publish_retry_outcome(event, &retried).await {
            Ok(()) => self.delivery.ack().await,
            Err(PublishError::Unavailable(_)) => self.delivery.retry_after(RETRY_INTERVAL).await,
            Err(error @ PublishError::Invalid(_)) => {
                tracing::error!(%error, "outcome of a retry request cannot be published");
                self.delivery.ack().await
            }
        }
    }

    async fn fail(mut self, shared: &WorkerShared, error: FunctionError) -> Result<(), BusError> {
        tracing::warn!(error = error.message, "retry request failed");
        self.history.end_failed(&self.delivery, error);
        let failed = usize::try_from(self.history.failed).unwrap_or(usize::MAX);
        let Some(wait) = BACKOFF.get(failed.saturating_sub(1)) else {
            return self.refuse(shared).await;
        };
        if let Err(error) = shared.bus.record_run(&function()?, &self.delivery, &self.history).await {
            tracing::warn!(%error, "failed attempt could not be recorded and does not count");
        }
        self.delivery.retry_after(*wait).await
    }

    /// Returns the request to the broker for redelivery after [`POSTPONE_INTERVAL`]. This is no attempt.
    async fn postpone(mut self, shared: &WorkerShared) -> Result<(), BusError> {
        self.history.postponed += 1;
        self.history.end_released(&self.delivery);
        if let Err(error) = shared.bus.record_run(&function()?, &self.delivery, &self.history).await {
            tracing::debug!(%error, "retry request waits for the broker");
        }
        self.delivery.retry_after(POSTPONE_INTERVAL).await
    }

    /// Rejects the request after its last attempt failed.
    async fn refuse(self, shared: &WorkerShared) -> Result<(), BusError> {
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

/// The function name under which attempts at requests are recorded.
fn function() -> Result<Name, BusError> {
    Name::parse(RETRY_CONSUMER).map_err(|error| BusError::refused("retrying", error))
}

fn with_causes(error: &BusError) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn retry(shared: &WorkerShared, event: &Event) -> Result<RetryOutcome, BusError> {
    let refused = |why: &str| BusError::refused("retrying", why);
    let request: ControlRetryRequested =
        serde_json::from_slice(&event.data).map_err(|error| refused(&error.to_string()))?;
    match request {
        ControlRetryRequested { dead_letter: Some(id), .. } => retry_dead_letter(shared, event, id).await,
        ControlRetryRequested { answer: Some(id), .. } => {
            Ok(RetryOutcome { answer: Some(id.clone()), ..retry_answer(shared, event, &id).await? })
        }
        ControlRetryRequested { .. } => Err(refused("`dead_letter` or `answer` is required")),
    }
}

async fn retry_dead_letter(shared: &WorkerShared, event: &Event, id: u64) -> Result<RetryOutcome, BusError> {
    let dead = shared.bus.dead_letter(id).await?;
    shared.bus.reopen_answer(answer::id_of(&dead.event), &event.id).await?;
    shared.registry.redrive(id).await?;
    Ok(RetryOutcome { dead_letters: vec![id], ..RetryOutcome::default() })
}

/// Redrives the dead letters of an answer. Without dead letters, as after a cancellation, republishes its last event that leads
/// to an answer.
async fn retry_answer(shared: &WorkerShared, event: &Event, id: &str) -> Result<RetryOutcome, BusError> {
    let refused = |why: &str| BusError::refused(format!("retrying the answer {id}"), why);
    let state = shared.bus.answer_state(id).await?;
    if state.is_some_and(|state| state.ended && !state.failed) {
        return Err(refused("the answer is complete"));
    }
    let trace = shared.bus.trace(id, None).await?;
    let (dead_letters, leaves) = unfinished_leaves(&trace.events);
    if !dead_letters.is_empty() {
        shared.bus.reopen_answer(id, &event.id).await?;
        for id in &dead_letters {
            shared.registry.redrive(*id).await?;
        }
        return Ok(RetryOutcome { dead_letters, ..RetryOutcome::default() });
    }
    let leads_on = |ty: &str| {
        let catalogue = shared.catalogue.borrow();
        EventType::parse(ty)
            .is_ok_and(|ty| catalogue.consumers(&ty).any(|name| catalogue.leads_to(name, answer::GENERATED)))
    };
    let Some(last) = leaves.into_iter().rev().find(|leaf| leads_on(&leaf.ty)) else {
        return Err(refused("answer not found or expired: no event of it leads to an answer"));
    };
    shared.bus.reopen_answer(id, &event.id).await?;
    let request = format!("{}#{}", event.source, event.id);
    shared.bus.republish(last.sequence, Identity::of_copy(&request, &last.sequence.to_string())).await?;
    Ok(RetryOutcome { event: Some(last.id.clone()), ..RetryOutcome::default() })
}

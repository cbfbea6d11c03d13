//! One batch, from delivery to verdict: invoke, publish the results, then acknowledge.

use super::{
    WorkerShared,
    emission::{EmissionPolicy, Publisher},
    failure,
    in_flight::InFlightRecord,
    tools,
};
use futures::FutureExt;
use nerve_broker::bus::{BodyError, CommittedResults, Delivery, LegacyResults, RunHistory, RunResult};
use nerve_core::{Context, Event, Fault, Function, FunctionError, Name, Outcome};
use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tracing::{Instrument, Span, field::Empty};

/// A delivery in progress: its run history and the slot it occupies.
pub(super) struct ActiveDelivery {
    pub(super) delivery: Delivery,
    pub(super) history: RunHistory,
    /// The results that an older Nerve stored for it.
    pub(super) older: LegacyResults,
    /// The time of the last lookup of results of other attempts at the same run.
    pub(super) since: Instant,
    /// `None` once its results wait to be stored, which holds reserved memory instead.
    pub(super) slot: Option<OwnedSemaphorePermit>,
    /// Its record among the running events.
    running: Option<InFlightRecord>,
    /// The span of its log lines; disabled until its event is decoded.
    pub(super) span: Span,
}

impl ActiveDelivery {
    /// Creates a delivery with an empty history.
    pub(super) fn new(delivery: Delivery, slot: OwnedSemaphorePermit) -> Self {
        let (history, older) = (RunHistory::default(), LegacyResults::default());
        Self { delivery, history, older, since: Instant::now(), slot: Some(slot), running: None, span: Span::none() }
    }
}

/// Runs one revision of a function.
pub(super) struct Invoker {
    pub(super) shared: WorkerShared,
    pub(super) policy: EmissionPolicy,
    pub(super) revision: u64,
    pub(super) function: Arc<dyn Function>,
    pub(super) meters: Meters,
    /// Limits concurrent invocations. Slots alone would admit more than `concurrency` batches when batches are not full.
    pub(super) running: Semaphore,
    /// The function's results in EVENTS, read after the dedupe window.
    pub(super) committed: Arc<Mutex<CommittedResults>>,
}

/// The metrics of every event, looked up once.
pub(super) struct Meters {
    seconds: metrics::Histogram,
    ok: metrics::Counter,
}

impl Meters {
    pub(super) fn of(function: &Name) -> Self {
        Self {
            seconds: metrics::histogram!("nerve_function_seconds", "function" => function.to_string()),
            ok: outcomes(function, "ok"),
        }
    }
}

fn outcomes(function: &Name, outcome: &'static str) -> metrics::Counter {
    metrics::counter!("nerve_function_events_total", "function" => function.to_string(), "outcome" => outcome)
}

impl Invoker {
    /// Processes a batch. Every delivery is acknowledged, or will be redelivered.
    pub(super) async fn handle(self: Arc<Self>, batch: Vec<ActiveDelivery>) {
        let mut fresh = Vec::with_capacity(batch.len());
        for active in batch {
            // A redrive that was interrupted before its dead letter was deleted may repeat the same run; so may a delayed retry.
            let is_first = active.delivery.delivered == 1 && !active.delivery.may_have_run;
            if is_first && !active.delivery.is_copy() {
                fresh.push(active);
            } else {
                let (stream, sequence) = (&*active.delivery.stream, active.delivery.sequence);
                let function = self.policy.function.as_str();
                let span = tracing::info_span!("delivery", function, stream, sequence, event = Empty);
                let active = ActiveDelivery { span: span.clone(), ..active };
                fresh.extend(Box::pin(self.resume(active).instrument(span)).await);
            }
        }
        if fresh.is_empty() {
            return;
        }
        let stop = self.shared.stops.work.clone();
        let begin = async { (self.running.acquire().await, self.shared.isolation.share().await) };
        let Some((Ok(_running), _shared)) = stop.run_until_cancelled(begin).await else {
            for active in fresh {
                self.give_back(active).await;
            }
            return;
        };
        self.run(fresh).await;
    }

    /// Runs admitted deliveries and acknowledges them.
    pub(super) async fn run(self: &Arc<Self>, batch: Vec<ActiveDelivery>) {
        let (mut active, events) = self.unpack(batch).await;
        if events.is_empty() {
            return;
        }
        if let Some(in_flight) = &self.shared.in_flight {
            for ActiveDelivery { delivery, running, .. } in &mut active {
                *running = in_flight.enter(&self.policy.function, &delivery.stream, delivery.sequence);
            }
        }
        let inputs = events.iter().cloned().zip(&mut active);
        let publisher = Arc::new(Publisher::new(&self.shared, &self.policy, &self.committed, inputs));
        let spec = &self.policy.spec;
        let decode = |event| if tools::is_call(spec, &event) { tools::arguments_of(event) } else { event };
        let events: Vec<Event> = events.into_iter().map(decode).collect();
        let span = self.invocation_span(&active);
        let started = Instant::now();
        let Some(outcomes) = self.unless_cancelled(events, &publisher).instrument(span).await else {
            for active in active {
                self.skip(active).await;
            }
            return;
        };
        self.meters.seconds.record(started.elapsed().as_secs_f64());
        let mut ended = active.into_iter().zip(outcomes).enumerate();
        let finish = |(index, (mut active, outcome)): (usize, (ActiveDelivery, Outcome))| {
            let span = std::mem::replace(&mut active.span, Span::none());
            self.finish(&publisher, index, active, outcome).instrument(span)
        };
        // Most batches have one event, which needs no `join_all`.
        match (ended.next(), ended.len()) {
            (Some(only), 0) => finish(only).await,
            (first, _) => drop(futures::future::join_all(first.into_iter().chain(ended).map(finish)).await),
        }
    }

    /// Decodes the events of a batch. Settles invalid and cancelled ones.
    async fn unpack(&self, batch: Vec<ActiveDelivery>) -> (Vec<ActiveDelivery>, Vec<Event>) {
        let (mut kept, mut events) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for mut active in batch {
            match active.delivery.event().await {
                Ok(event) if self.shared.cancellations.is_cancelled(&event) => self.skip(active).await,
                Ok(event) => {
                    let (function, id) = (self.policy.function.as_str(), event.id.as_str());
                    match active.span.is_none() {
                        true => active.span = tracing::info_span!("delivery", function, event = id),
                        false => drop(active.span.record("event", id)),
                    }
                    events.push(event);
                    kept.push(active);
                }
                Err(error @ BodyError::Gone(_)) => {
                    Box::pin(self.fail(active, FunctionError::new(Fault::Invalid, error.to_string()))).await;
                }
                Err(BodyError::Bus(error)) => {
                    let (function, sequence) = (&self.policy.function, active.delivery.sequence);
                    tracing::warn!(%function, sequence, error = &error as &dyn std::error::Error, "event body cannot be read; retrying");
                    Box::pin(self.postpone(active)).await;
                }
            }
        }
        (kept, events)
    }

    /// The span of one run of the function: inside the delivery's span, or with the count of events for a larger batch.
    fn invocation_span(&self, batch: &[ActiveDelivery]) -> Span {
        let revision = self.revision;
        match batch {
            [only] => tracing::info_span!(parent: &only.span, "invoke", revision),
            _ => {
                tracing::info_span!("invoke", function = self.policy.function.as_str(), revision, events = batch.len())
            }
        }
    }

    /// Returns the outcomes, or `None` if the answer of a single event is cancelled meanwhile. A larger batch may hold events of
    /// several answers and is not cancelled.
    async fn unless_cancelled(&self, events: Vec<Event>, publisher: &Arc<Publisher>) -> Option<Vec<Outcome>> {
        let running = match events.as_slice() {
            [only] => self.shared.cancellations.running(only),
            _ => return Some(self.invoke(events, publisher).await),
        };
        running.token.run_until_cancelled(self.invoke(events, publisher)).await
    }

    /// Acknowledges an event of a cancelled answer.
    pub(super) async fn skip(&self, active: ActiveDelivery) {
        self.count("cancelled");
        if let Err(error) = active.delivery.ack().await {
            tracing::debug!(function = %self.policy.function, %error, "ack of a cancelled event failed; it will be redelivered");
        }
    }

    /// Returns one outcome per event, also if the function fails or panics.
    async fn invoke(&self, events: Vec<Event>, publisher: &Arc<Publisher>) -> Vec<Outcome> {
        let count = events.len();
        let context = Context {
            emitter: publisher.clone(),
            views: Some(self.shared.views.clone()),
            quotas: self.shared.catalogue.borrow().quotas.clone(),
        };
        // A panic in a built-in function fails this batch, not the worker.
        let run = AssertUnwindSafe(self.function.invoke(events, context)).catch_unwind();
        let all = |fault, message: &str| vec![Err(FunctionError::new(fault, message)); count];
        match self.shared.stops.work.run_until_cancelled(run).await {
            Some(Ok(outcomes)) if outcomes.len() == count => outcomes,
            Some(Ok(outcomes)) => {
                let message = format!("the function returned {} outcomes for {count} events", outcomes.len());
                all(Fault::Crash, &message)
            }
            Some(Err(_)) => all(Fault::Crash, "the function panicked; the worker's log has the message"),
            None => all(Fault::Interrupted, "the worker is shutting down"),
        }
    }

    async fn finish(
        self: &Arc<Self>,
        publisher: &Arc<Publisher>,
        index: usize,
        mut active: ActiveDelivery,
        outcome: Outcome,
    ) {
        let results = outcome.and_then(|emissions| publisher.prepare(index, emissions));
        let results = match results {
            Ok(results) => results,
            // Boxed: it is rare, and its future is far larger than that of a successful event.
            Err(error) => return Box::pin(self.fail(active, error)).await,
        };
        // A set waits milliseconds for its batch; its slot is freed meanwhile. With a concurrency of 1 the results of an event are
        // stored before the next one runs.
        let several = results.len() > 1 && self.policy.spec.concurrency > 1 && !active.history.is_alone();
        let bytes = || results.iter().map(|result| result.event.data.len()).sum();
        match several.then(|| self.shared.sets.try_reserve(bytes())).flatten() {
            None => self.store(publisher, index, active, results).await,
            Some(room) => {
                active.slot = None;
                let (invoker, publisher) = (self.clone(), publisher.clone());
                let store = async move {
                    invoker.store(&publisher, index, active, results).await;
                    drop(room);
                };
                self.shared.tasks.spawn(store.in_current_span());
            }
        }
    }

    /// Publishes the results of an event, and acknowledges it.
    async fn store(&self, publisher: &Publisher, index: usize, active: ActiveDelivery, results: Vec<RunResult>) {
        if let Err(error) = publisher.publish(index, &results).await {
            return Box::pin(self.fail(active, error)).await;
        }
        self.meters.ok.increment(1);
        let ActiveDelivery { delivery, slot, .. } = active;
        if let Err(error) = delivery.ack().await {
            tracing::warn!(function = %self.policy.function, %error, "ack failed; the event will be redelivered");
        }
        drop(slot);
    }

    /// Retries or dead-letters a failed event.
    async fn fail(&self, active: ActiveDelivery, error: FunctionError) {
        self.count(match error.fault {
            Fault::Invalid => "invalid",
            Fault::Retry { .. } => "retry",
            Fault::Timeout => "timeout",
            Fault::Crash => "crash",
            Fault::Interrupted => "interrupted",
        });
        failure::settle(&self.shared, &self.policy, self.revision, active, error).await;
    }

    /// Returns an event to the broker that was not started, or was interrupted. This is no attempt.
    pub(super) async fn give_back(&self, active: ActiveDelivery) {
        failure::release_recorded(&self.shared, &self.policy, active.delivery, active.history).await;
    }

    pub(super) fn count(&self, outcome: &'static str) {
        outcomes(&self.policy.function, outcome).increment(1);
    }
}

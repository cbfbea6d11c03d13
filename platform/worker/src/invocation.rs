//! One batch, from delivery to verdict: invoke, publish the results, then settle.

use super::{
    Shared,
    emission::{Outlet, Publisher},
    failure,
    in_flight::Running,
    tools,
};
use futures::FutureExt;
use nerve_broker::bus::{BodyError, CommittedResults, Delivery, LegacyResults, RunHistory, RunResult};
use nerve_core::{Context, Event, Fault, Function, FunctionError, Name, Outcome};
use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

/// A delivery, what is known of its earlier attempts, and the slot it occupies.
pub(super) struct Taken {
    pub(super) delivery: Delivery,
    pub(super) history: RunHistory,
    /// What an older worker stored of its results.
    pub(super) older: LegacyResults,
    /// Since when other attempts at the same run are not known of.
    pub(super) since: Instant,
    /// `None` once its results wait to be stored, in room of their own.
    pub(super) slot: Option<OwnedSemaphorePermit>,
    /// Where it is recorded as running.
    running: Option<Running>,
}

impl Taken {
    /// A delivery of which nothing is known yet.
    pub(super) fn new(delivery: Delivery, slot: OwnedSemaphorePermit) -> Self {
        let (history, older) = (RunHistory::default(), LegacyResults::default());
        Self { delivery, history, older, since: Instant::now(), slot: Some(slot), running: None }
    }
}

/// Runs one revision of a function.
pub(super) struct Invoker {
    pub(super) shared: Shared,
    pub(super) outlet: Outlet,
    pub(super) revision: u64,
    pub(super) function: Arc<dyn Function>,
    pub(super) meters: Meters,
    /// Invocations at once: batches that are not full would otherwise be more than the manifest says.
    pub(super) running: Semaphore,
    /// The function's results in the log, read where JetStream may have forgotten their ids.
    pub(super) committed: Arc<Mutex<CommittedResults>>,
}

/// The meters that every event moves, looked up once.
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
    /// Takes a batch to its end: every delivery is settled, or left to come again.
    pub(super) async fn handle(self: Arc<Self>, batch: Vec<Taken>) {
        let mut fresh = Vec::with_capacity(batch.len());
        for taken in batch {
            // A redrive that was cut off before its dead letter was deleted may be repeated, and is the same run; so is a delayed retry.
            let is_first = taken.delivery.delivered == 1 && !taken.delivery.may_have_run;
            if is_first && !taken.delivery.is_copy() {
                fresh.push(taken);
            } else if let Some(taken) = Box::pin(self.resume(taken)).await {
                fresh.push(taken);
            }
        }
        if fresh.is_empty() {
            return;
        }
        let stop = self.shared.stops.work.clone();
        let begin = async { (self.running.acquire().await, self.shared.isolation.share().await) };
        let Some((Ok(_running), _shared)) = stop.run_until_cancelled(begin).await else {
            for taken in fresh {
                self.give_back(taken).await;
            }
            return;
        };
        self.run(fresh).await;
    }

    /// Runs deliveries that were admitted, and settles them.
    pub(super) async fn run(self: &Arc<Self>, batch: Vec<Taken>) {
        let (mut taken, events) = self.unpack(batch).await;
        if events.is_empty() {
            return;
        }
        if let Some(in_flight) = &self.shared.in_flight {
            for Taken { delivery, running, .. } in &mut taken {
                *running = in_flight.enter(&self.outlet.function, &delivery.stream, delivery.sequence);
            }
        }
        let inputs = events.iter().cloned().zip(&mut taken);
        let publisher = Arc::new(Publisher::new(&self.shared, &self.outlet, &self.committed, inputs));
        let spec = &self.outlet.spec;
        let given = |event| if tools::is_call(spec, &event) { tools::given(event) } else { event };
        let events: Vec<Event> = events.into_iter().map(given).collect();
        let started = Instant::now();
        let Some(outcomes) = self.unless_cancelled(events, &publisher).await else {
            for taken in taken {
                self.pass_over(taken).await;
            }
            return;
        };
        self.meters.seconds.record(started.elapsed().as_secs_f64());
        let mut ended = taken.into_iter().zip(outcomes).enumerate();
        let finish = |(index, (taken, outcome))| self.finish(&publisher, index, taken, outcome);
        // Most functions take one event at a time, which needs no set of futures.
        match (ended.next(), ended.len()) {
            (Some(only), 0) => finish(only).await,
            (first, _) => drop(futures::future::join_all(first.into_iter().chain(ended).map(finish)).await),
        }
    }

    /// The events of a batch, with their bodies; what cannot be an event, or is not wanted, is settled here.
    async fn unpack(&self, batch: Vec<Taken>) -> (Vec<Taken>, Vec<Event>) {
        let (mut kept, mut events) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for taken in batch {
            match taken.delivery.event().await {
                Ok(event) if self.shared.cancels.is_cancelled(&event) => self.pass_over(taken).await,
                Ok(event) => {
                    events.push(event);
                    kept.push(taken);
                }
                Err(error @ BodyError::Gone(_)) => {
                    Box::pin(self.fail(taken, FunctionError::new(Fault::Invalid, error.to_string()))).await;
                }
                Err(BodyError::Bus(error)) => {
                    let (function, sequence) = (&self.outlet.function, taken.delivery.sequence);
                    tracing::warn!(%function, sequence, error = &error as &dyn std::error::Error, "the body of an event cannot be read now");
                    Box::pin(self.postpone(taken)).await;
                }
            }
        }
        (kept, events)
    }

    /// The outcomes, or none when the answer that a single event is for is cancelled meanwhile. The events of a larger
    /// batch are of many answers, and go on together.
    async fn unless_cancelled(&self, events: Vec<Event>, publisher: &Arc<Publisher>) -> Option<Vec<Outcome>> {
        let running = match events.as_slice() {
            [only] => self.shared.cancels.running(only),
            _ => return Some(self.invoke(events, publisher).await),
        };
        running.token.run_until_cancelled(self.invoke(events, publisher)).await
    }

    /// Settles an event of an answer that nobody wants any more.
    pub(super) async fn pass_over(&self, taken: Taken) {
        self.count("cancelled");
        if let Err(error) = taken.delivery.ack().await {
            tracing::debug!(function = %self.outlet.function, %error, "a cancelled event will come again");
        }
    }

    /// One outcome an event, whatever the function does.
    async fn invoke(&self, events: Vec<Event>, publisher: &Arc<Publisher>) -> Vec<Outcome> {
        let count = events.len();
        let context = Context {
            emitter: publisher.clone(),
            views: Some(self.shared.views.clone()),
            quotas: self.shared.catalogue.borrow().quotas.clone(),
        };
        // A built-in function that panics costs this batch, not the worker.
        let run = AssertUnwindSafe(self.function.invoke(events, context)).catch_unwind();
        let all = |fault, message: &str| vec![Err(FunctionError::new(fault, message)); count];
        match self.shared.stops.work.run_until_cancelled(run).await {
            Some(Ok(outcomes)) if outcomes.len() == count => outcomes,
            Some(Ok(outcomes)) => {
                let message = format!("it answered {} of {count} events", outcomes.len());
                all(Fault::Crash, &message)
            }
            Some(Err(_)) => all(Fault::Crash, "it panicked; the worker's log has the message"),
            None => all(Fault::Interrupted, "the worker is shutting down"),
        }
    }

    async fn finish(self: &Arc<Self>, publisher: &Arc<Publisher>, index: usize, mut taken: Taken, outcome: Outcome) {
        let results = outcome.and_then(|emissions| publisher.prepare(index, emissions));
        let results = match results {
            Ok(results) => results,
            // Boxed, since it is rare and its future is far larger than that of an event that goes well.
            Err(error) => return Box::pin(self.fail(taken, error)).await,
        };
        // A set waits milliseconds for its batch; meanwhile its slot is another event's. Where events run one by one, the results of
        // one are stored before the next one runs.
        let several = results.len() > 1 && self.outlet.spec.concurrency > 1 && !taken.history.is_alone();
        let bytes = || results.iter().map(|result| result.event.data.len()).sum();
        match several.then(|| self.shared.sets.try_reserve(bytes())).flatten() {
            None => self.store(publisher, index, taken, results).await,
            Some(room) => {
                taken.slot = None;
                let (invoker, publisher) = (self.clone(), publisher.clone());
                self.shared.tasks.spawn(async move {
                    invoker.store(&publisher, index, taken, results).await;
                    drop(room);
                });
            }
        }
    }

    /// Publishes the results of an event, and acknowledges it.
    async fn store(&self, publisher: &Publisher, index: usize, taken: Taken, results: Vec<RunResult>) {
        if let Err(error) = publisher.publish(index, &results).await {
            return Box::pin(self.fail(taken, error)).await;
        }
        self.meters.ok.increment(1);
        let Taken { delivery, slot, .. } = taken;
        if let Err(error) = delivery.ack().await {
            tracing::warn!(function = %self.outlet.function, %error, "ack failed; the event will be redelivered");
        }
        drop(slot);
    }

    /// Settles an event that failed: it is tried again, or becomes a dead letter.
    async fn fail(&self, taken: Taken, error: FunctionError) {
        self.count(match error.fault {
            Fault::Invalid => "invalid",
            Fault::Retry { .. } => "retry",
            Fault::Timeout => "timeout",
            Fault::Crash => "crash",
            Fault::Interrupted => "interrupted",
        });
        failure::settle(&self.shared, &self.outlet, self.revision, taken, error).await;
    }

    /// Gives an event back that was not started, or not finished for no fault of its own.
    pub(super) async fn give_back(&self, taken: Taken) {
        failure::release_recorded(&self.shared, &self.outlet, taken.delivery, taken.history).await;
    }

    pub(super) fn count(&self, outcome: &'static str) {
        outcomes(&self.outlet.function, outcome).increment(1);
    }
}

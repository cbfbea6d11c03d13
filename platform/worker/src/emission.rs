//! What a function publishes, as events whose ids do not change from one attempt to the next.
//!
//! What it returns is a set: all of it is stored or nothing, and the first set that is stored stands for its run. What it emits
//! before it returns is stored at once: events under ids of their content, parts of an answer under ids of their index.

use super::{
    Shared,
    failure::WaitingRetries,
    input_state::{InputState, MAX_EMISSIONS, too_many},
    invocation::Taken,
    tools,
};
use async_trait::async_trait;
use nerve_broker::bus::{
    Bus, CommittedResults, DuplicateReason, DuplicateScope, MAX_RESULTS, PublishError, ResultSetOutcome,
    ResultSetPublisher, RunResult,
};
use nerve_core::{
    Emission, Event, Fault, FunctionError, FunctionSpec, Identity, Name, Run,
    answer::{self, Part},
    event::{CAUSATION_ID, CORRELATION_ID, PARTITION_KEY, TRACEPARENT},
    function::Emitter,
    manifest,
    tool::{self, Tool},
};
use nerve_registry::Catalogue;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use time::OffsetDateTime;
use tokio::{sync::watch, time::Instant};

/// How long a result waits for the broker before its event is retried: running a function again costs more.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(120);
/// The wait between two attempts to publish.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Turns emissions into events: knows the function, and what it may publish.
#[derive(Debug, Clone)]
pub(super) struct Outlet {
    pub(super) function: Name,
    pub(super) spec: Arc<FunctionSpec>,
    /// The most results that may lead to one; see [`Event::hops`].
    pub(super) max_hops: u32,
    /// Its events that wait with its consumer for their next attempt.
    pub(super) retries: Arc<WaitingRetries>,
}

impl Outlet {
    /// The source of its events.
    fn source(&self) -> String {
        format!("/functions/{}", self.function)
    }

    /// How many results lead to an emission of `input`: one more than to the input. The steps of an agent do not count, as its budget
    /// bounds them, and neither do the answers of its tools.
    fn hops(&self, input: &Event, emission: &Emission) -> u32 {
        let is_agent =
            matches!(&self.spec.run, manifest::RuntimeSpec::Builtin { function, .. } if function == tool::AGENT);
        let is_step = is_agent && tool::is_step(emission.ty.as_str());
        input.hops().saturating_add(u32::from(!is_step && !tools::is_call(&self.spec, input)))
    }

    /// The event for an emission of `input`; refuses a type that the manifest does not let it publish, and one too many in a
    /// circle of functions.
    pub(super) fn event(&self, input: &Event, id: Identity, emission: Emission) -> Result<Event, FunctionError> {
        let function = &self.function;
        if !self.spec.may_emit(&emission.ty) {
            let message = format!(
                "it emitted `{}`, which its manifest does not allow: add it to emits of [function.{function}]",
                emission.ty
            );
            return Err(FunctionError::new(Fault::Invalid, message));
        }
        let hops = self.hops(input, &emission);
        if hops > self.max_hops {
            let message = format!(
                "`{}` would be the result number {hops} in a row, each of the one before, and worker.max_hops allows {}: \
                 functions that lead to each other go on without end, and `nerve deploy --dry-run` names them",
                emission.ty, self.max_hops
            );
            return Err(FunctionError::new(Fault::Invalid, message));
        }
        let mut event = Event::new(format!("{function}-{id}"), self.source(), emission.ty)
            .with_data(emission.content_type.unwrap_or_else(|| "application/json".to_owned()), emission.data)
            .with_extension(CORRELATION_ID, input.extension(CORRELATION_ID).unwrap_or(&input.id))
            .with_extension(CAUSATION_ID, input.id.as_str())
            .with_hops(hops);
        event.subject = emission.subject;
        event.time = Some(OffsetDateTime::now_utc());
        let inherited = [
            (TRACEPARENT, input.extension(TRACEPARENT).map(str::to_owned)),
            (PARTITION_KEY, emission.partition_key.or_else(|| input.extension(PARTITION_KEY).map(str::to_owned))),
        ];
        for (name, value) in inherited {
            if let Some(value) = value {
                event.extensions.insert(name.to_owned(), value);
            }
        }
        Ok(event)
    }
}

/// Publishes what `store` stores; while the broker is unavailable it waits, as only the result of finished work is at stake.
pub(super) async fn publish<T, F>(mut store: impl FnMut() -> F) -> Result<T, FunctionError>
where
    F: Future<Output = Result<T, PublishError>>,
{
    let deadline = Instant::now() + PUBLISH_TIMEOUT;
    loop {
        match store().await {
            Ok(stored) => return Ok(stored),
            Err(PublishError::Invalid(why)) => {
                return Err(FunctionError::new(Fault::Invalid, format!("it emitted what cannot be published: {why}")));
            }
            Err(PublishError::Unavailable(cause)) if Instant::now() >= deadline => {
                let message = format!("its result could not be stored: JetStream did not acknowledge it ({cause})");
                return Err(FunctionError::new(Fault::Retry { after: None }, message));
            }
            Err(PublishError::Unavailable(cause)) => {
                tracing::debug!(%cause, "a result waits for the broker");
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

/// Publishes what the events of one batch emit, before and after their end.
pub(super) struct Publisher {
    bus: Bus,
    sets: ResultSetPublisher,
    outlet: Outlet,
    /// The function's results in the log.
    committed: Arc<tokio::sync::Mutex<CommittedResults>>,
    dedupe_window: Duration,
    inputs: Vec<InputState>,
    catalogue: watch::Receiver<Arc<Catalogue>>,
}

impl Publisher {
    pub(super) fn new<'t>(
        shared: &Shared,
        outlet: &Outlet,
        committed: &Arc<tokio::sync::Mutex<CommittedResults>>,
        inputs: impl IntoIterator<Item = (Event, &'t mut Taken)>,
    ) -> Self {
        let state = |(event, taken): (Event, &mut Taken)| InputState::new(event, taken);
        Self {
            bus: shared.bus.clone(),
            sets: shared.sets.clone(),
            outlet: outlet.clone(),
            committed: committed.clone(),
            dedupe_window: shared.dedupe_window,
            inputs: inputs.into_iter().map(state).collect(),
            catalogue: shared.catalogue.clone(),
        }
    }

    /// The results of the event at `index`, with their identities.
    ///
    /// # Errors
    /// [`Fault::Invalid`] where there are too many, or some that the function may not publish.
    pub(super) fn prepare(&self, index: usize, emissions: Vec<Emission>) -> Result<Vec<RunResult>, FunctionError> {
        let input = self.input(index)?;
        let emissions = match tools::is_call(&self.outlet.spec, &input.event) {
            true => tools::answered(&input.event, emissions)?,
            false => emissions,
        };
        if emissions.len() > MAX_RESULTS {
            let message = format!("it returned {} events for one, and {MAX_RESULTS} is the most", emissions.len());
            return Err(FunctionError::new(Fault::Invalid, message));
        }
        let run = input.provenance.run(&self.outlet.function);
        let mut logged = 0..;
        let mut results = Vec::with_capacity(emissions.len());
        for emission in emissions {
            if input.older_has(&self.outlet.function) {
                continue;
            }
            // Parts that are in no log are numbered with the other parts.
            let id = match Part::of(&emission.ty) {
                Some(part) if !part.is_logged() => run.part(input.next_part()),
                _ => run.result(logged.next().unwrap_or_default()),
            };
            results.push(RunResult { id, event: self.outlet.event(&input.event, id, emission)? });
        }
        Ok(results)
    }

    /// Publishes the results of the event at `index`, all or none. Where another attempt at the same run has published its
    /// results, those stand.
    pub(super) async fn publish(&self, index: usize, results: &[RunResult]) -> Result<(), FunctionError> {
        let input = self.input(index)?;
        // No attempt of a function that may emit nothing can add results.
        if self.outlet.spec.emits.is_empty() {
            return Ok(());
        }
        let outcome = publish(|| self.store(input, results)).await?;
        if outcome == ResultSetOutcome::Duplicate {
            let function = &self.outlet.function;
            self.bus.drops().count(DuplicateScope::Function, function.as_str(), DuplicateReason::Result, results.len());
            tracing::debug!(%function, id = input.event.id, "the results of an earlier attempt stand");
            if self.may_emit_parts() {
                // Boxed, since it is rare and far larger than the rest of this future, which is moved for every event.
                Box::pin(self.copy_committed(input.provenance.run(function))).await?;
            }
        }
        Ok(())
    }

    /// Stores a set of results, unless that of another attempt is in the log. JetStream knows the ids of attempts that stored theirs
    /// within the window; so an attempt that has taken longer looks for them.
    async fn store(&self, input: &InputState, results: &[RunResult]) -> Result<ResultSetOutcome, PublishError> {
        let run = input.provenance.run(&self.outlet.function);
        if input.since.elapsed() >= self.dedupe_window / 2 {
            let asked = std::time::Instant::now();
            // Boxed, since it is rare and far larger than the rest of this future, which is moved for every event.
            let found = Box::pin(async { self.committed.lock().await.find(&self.bus, run, asked).await }).await;
            if found.map_err(|error| PublishError::Unavailable(error.into()))?.is_some() {
                return Ok(ResultSetOutcome::Duplicate);
            }
        }
        self.bus.publish_results(&self.sets, run, results).await
    }

    /// Whether the function may publish what is both a step of the pipeline and a part of an answer.
    fn may_emit_parts(&self) -> bool {
        let covers = |ty: &str| self.outlet.spec.emits.iter().any(|pattern| pattern.covers(ty));
        covers(answer::GENERATED) || covers(answer::RETRIEVED)
    }

    /// Copies the results that stand to their answer, where the worker that stored them may have died before it did.
    async fn copy_committed(&self, run: Run<'_>) -> Result<(), FunctionError> {
        let asked = std::time::Instant::now();
        let copied = async {
            let found = self.committed.lock().await.find(&self.bus, run, asked).await?;
            match found {
                Some(first) => self.bus.copy_committed(run, first).await,
                None => Ok(()),
            }
        };
        copied.await.map_err(|error| FunctionError::new(Fault::Retry { after: None }, error.to_string()))
    }

    fn input(&self, index: usize) -> Result<&InputState, FunctionError> {
        let missing = || FunctionError::new(Fault::Invalid, "it emitted for an event that is not in the batch");
        self.inputs.get(index).ok_or_else(missing)
    }

    /// Sees to it that the event that a part follows from stands in ANSWERS before the part: whoever published it may still be
    /// about to copy it there.
    async fn copy_input(&self, input: &InputState) -> Result<(), FunctionError> {
        if input.is_copied() {
            return Ok(());
        }
        if let Some(id) = input.published_as
            && Part::of(&input.event.ty).is_some_and(Part::is_logged)
        {
            publish(|| self.bus.copy_to_answer(&input.event, id)).await?;
        }
        input.set_copied();
        Ok(())
    }
}

#[async_trait]
impl Emitter for Publisher {
    async fn emit(&self, index: usize, emission: Emission) -> Result<(), FunctionError> {
        let input = self.input(index)?;
        if input.older_has(&self.outlet.function) {
            return Ok(());
        }
        let id = input.identify(input.provenance.run(&self.outlet.function), &emission)?;
        let event = self.outlet.event(&input.event, id, emission)?;
        if Part::of(&event.ty).is_some() {
            self.copy_input(input).await?;
        }
        publish(|| self.bus.publish(&event, id)).await.map(drop)
    }

    async fn emitted(&self, index: usize) -> Result<Vec<Emission>, FunctionError> {
        let Some(state) = self.inputs.get(index) else { return Ok(Vec::new()) };
        let (input, from) = (&state.event, self.outlet.source());
        let events = self.bus.emitted(answer::id_of(input), &from, &input.id).await;
        let events = events.map_err(|error| FunctionError::new(Fault::Retry { after: None }, error.to_string()))?;
        // The last emission may be on the way still: its index stays free for the one that comes next.
        state.skip_parts(
            events.iter().filter(|event| Part::of(&event.ty).is_some_and(|part| !part.is_logged())).count(),
        );
        Ok(events.into_iter().map(emission_of).collect())
    }

    fn tools(&self) -> Vec<Tool> {
        tools::deployed(&self.catalogue.borrow())
    }
}

fn emission_of(event: Event) -> Emission {
    let partition_key = event.extension(PARTITION_KEY).map(str::to_owned);
    Emission { ty: event.ty, data: event.data, content_type: event.content_type, subject: event.subject, partition_key }
}

/// Keeps what a directly called function emits, for the answer.
pub(super) struct Collector {
    pub(super) outlet: Outlet,
    pub(super) input: Event,
    pub(super) events: Mutex<Vec<Event>>,
    pub(super) catalogue: watch::Receiver<Arc<Catalogue>>,
}

impl Collector {
    pub(super) fn take(&self, emissions: Vec<Emission>) -> Result<Vec<Event>, FunctionError> {
        for emission in emissions {
            self.keep(emission)?;
        }
        Ok(std::mem::take(&mut *self.lock()))
    }

    fn keep(&self, emission: Emission) -> Result<(), FunctionError> {
        let mut events = self.lock();
        if events.len() >= MAX_EMISSIONS {
            return Err(too_many());
        }
        let id = Identity::of_copy(&self.input.id, &events.len().to_string());
        events.push(self.outlet.event(&self.input, id, emission)?);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Emitter for Collector {
    async fn emit(&self, _index: usize, emission: Emission) -> Result<(), FunctionError> {
        self.keep(emission)
    }

    fn tools(&self) -> Vec<Tool> {
        tools::deployed(&self.catalogue.borrow())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::{EventType, Manifest};

    fn outlet() -> Outlet {
        let manifest = "[function.f]\nruntime=\"wasm\"\nsource=\"f\"\non=[\"events.in\"]\nemits=[\"out.*\"]";
        let spec = Manifest::parse(manifest).unwrap().functions.into_values().next().unwrap();
        Outlet { function: Name::parse("f").unwrap(), spec: Arc::new(spec), max_hops: 2, retries: Arc::default() }
    }

    fn emission(ty: &str) -> Emission {
        let ty = EventType::parse(ty).unwrap();
        Emission { ty, data: "1".into(), content_type: None, subject: None, partition_key: None }
    }

    fn id(text: &str) -> Identity {
        Identity::of_copy("test", text)
    }

    #[test]
    fn only_declared_types_may_be_emitted() {
        let input = Event::new("1", "/s", EventType::parse("in").unwrap());
        let error = outlet().event(&input, id("0"), emission("other")).unwrap_err();
        assert_eq!(error.fault, Fault::Invalid);
        assert!(error.message.contains("emits of [function.f]"));
    }

    #[test]
    fn result_after_too_many_in_a_row_is_invalid() {
        let mut event = Event::new("1", "/s", EventType::parse("in").unwrap());
        for hops in 1..=2 {
            event = outlet().event(&event, id("0"), emission("out.a")).unwrap();
            assert_eq!(event.hops(), hops);
        }
        let error = outlet().event(&event, id("0"), emission("out.a")).unwrap_err();
        assert_eq!(error.fault, Fault::Invalid);
        assert!(error.message.contains("worker.max_hops"), "{}", error.message);
    }

    #[test]
    fn an_emission_inherits_its_conversation() {
        let input = Event::new("1", "/s", EventType::parse("in").unwrap())
            .with_extension(TRACEPARENT, "00-a-b-01")
            .with_extension(PARTITION_KEY, "k");
        let first = outlet().event(&input, id("0"), emission("out.a")).unwrap();
        assert_eq!(first.extension(CORRELATION_ID), Some("1"));
        assert_eq!(first.extension(CAUSATION_ID), Some("1"));
        assert_eq!(first.extension(TRACEPARENT), Some("00-a-b-01"));
        assert_eq!(first.extension(PARTITION_KEY), Some("k"));
        let second = outlet().event(&first, id("1"), emission("out.b")).unwrap();
        assert_eq!(second.extension(CORRELATION_ID), Some("1"));
        assert_eq!(second.extension(CAUSATION_ID), Some(first.id.as_str()));
    }
}

//! Output events of functions, with ids that are stable across attempts.
//!
//! Returned events are a set: all are stored or none, and the first stored set is the result of the run. Events emitted
//! before the function returns are stored immediately: events with ids by content, parts of an answer with ids by index.

use super::{WorkerShared, failure::WaitingRetries, input_state::InputState, invocation::ActiveDelivery, tools};
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
use std::{sync::Arc, time::Duration};
use time::OffsetDateTime;
use tokio::{sync::watch, time::Instant};

/// Maximum wait of a result for the broker before its event is retried. A second run costs more than the wait.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(120);
/// The wait between two attempts to publish.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Builds output events of a function and checks that it may publish them.
#[derive(Debug, Clone)]
pub(super) struct EmissionPolicy {
    pub(super) function: Name,
    pub(super) spec: Arc<FunctionSpec>,
    /// Maximum hops of an output event; see [`Event::hops`].
    pub(super) max_hops: u32,
    /// The count of retries that wait with its consumer.
    pub(super) retries: Arc<WaitingRetries>,
}

impl EmissionPolicy {
    /// Returns the CloudEvents `source` of its output events.
    fn source(&self) -> String {
        format!("/functions/{}", self.function)
    }

    /// Returns the hops of an emission: one more than its input has. Steps of an agent do not count, as its budget
    /// limits them, and neither do results of its tools.
    fn hops(&self, input: &Event, emission: &Emission) -> u32 {
        let is_agent =
            matches!(&self.spec.run, manifest::RuntimeSpec::Builtin { function, .. } if function == tool::AGENT);
        let is_step = is_agent && tool::is_step(emission.ty.as_str());
        input.hops().saturating_add(u32::from(!is_step && !tools::is_call(&self.spec, input)))
    }

    /// Builds the event for an emission of `input`.
    ///
    /// # Errors
    /// [`Fault::Invalid`] for a type that the manifest does not allow, and for more than `max_hops` hops.
    pub(super) fn event(&self, input: &Event, id: Identity, emission: Emission) -> Result<Event, FunctionError> {
        let function = &self.function;
        if !self.spec.may_emit(&emission.ty) {
            let message = format!(
                "event type `{}` is not allowed by the manifest: add it to emits of [function.{function}]",
                emission.ty
            );
            return Err(FunctionError::new(Fault::Invalid, message));
        }
        let hops = self.hops(input, &emission);
        if hops > self.max_hops {
            let message = format!(
                "hop limit reached: `{}` would be hop {hops}, and worker.max_hops is {}; \
                 `nerve deploy --dry-run` names functions that trigger each other in a loop",
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

/// Calls `store` until it succeeds. Waits up to [`PUBLISH_TIMEOUT`] while the broker is unavailable.
pub(super) async fn publish<T, F>(mut store: impl FnMut() -> F) -> Result<T, FunctionError>
where
    F: Future<Output = Result<T, PublishError>>,
{
    let deadline = Instant::now() + PUBLISH_TIMEOUT;
    loop {
        match store().await {
            Ok(stored) => return Ok(stored),
            Err(PublishError::Invalid(why)) => {
                return Err(FunctionError::new(Fault::Invalid, format!("output event cannot be published: {why}")));
            }
            Err(PublishError::Unavailable(cause)) if Instant::now() >= deadline => {
                let message = format!("result could not be stored: JetStream did not acknowledge it ({cause})");
                return Err(FunctionError::new(Fault::Retry { after: None }, message));
            }
            Err(PublishError::Unavailable(cause)) => {
                tracing::debug!(%cause, "result waits for the broker");
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

/// Publishes the output events of one batch, both emitted and returned.
pub(super) struct Publisher {
    bus: Bus,
    sets: ResultSetPublisher,
    policy: EmissionPolicy,
    /// The function's results in EVENTS.
    committed: Arc<tokio::sync::Mutex<CommittedResults>>,
    dedupe_window: Duration,
    inputs: Vec<InputState>,
    catalogue: watch::Receiver<Arc<Catalogue>>,
}

impl Publisher {
    pub(super) fn new<'t>(
        shared: &WorkerShared,
        policy: &EmissionPolicy,
        committed: &Arc<tokio::sync::Mutex<CommittedResults>>,
        inputs: impl IntoIterator<Item = (Event, &'t mut ActiveDelivery)>,
    ) -> Self {
        let state = |(event, active): (Event, &mut ActiveDelivery)| InputState::new(event, active);
        Self {
            bus: shared.bus.clone(),
            sets: shared.sets.clone(),
            policy: policy.clone(),
            committed: committed.clone(),
            dedupe_window: shared.dedupe_window,
            inputs: inputs.into_iter().map(state).collect(),
            catalogue: shared.catalogue.clone(),
        }
    }

    /// Builds the results of the event at `index`, with their identities.
    ///
    /// # Errors
    /// [`Fault::Invalid`] if there are too many results, or one that the function may not publish.
    pub(super) fn prepare(&self, index: usize, emissions: Vec<Emission>) -> Result<Vec<RunResult>, FunctionError> {
        let input = self.input(index)?;
        let emissions = match tools::is_call(&self.policy.spec, &input.event) {
            true => tools::complete_results(&input.event, emissions)?,
            false => emissions,
        };
        if emissions.len() > MAX_RESULTS {
            let message =
                format!("the function returned {} events for one; the maximum is {MAX_RESULTS}", emissions.len());
            return Err(FunctionError::new(Fault::Invalid, message));
        }
        let run = input.provenance.run(&self.policy.function);
        let mut logged = 0..;
        let mut results = Vec::with_capacity(emissions.len());
        for emission in emissions {
            if input.older_has(&self.policy.function) {
                continue;
            }
            // Parts that are stored in ANSWERS only share the numbering of emitted parts.
            let id = match Part::of(&emission.ty) {
                Some(part) if !part.is_logged() => run.part(input.next_part()),
                _ => run.result(logged.next().unwrap_or_default()),
            };
            results.push(RunResult { id, event: self.policy.event(&input.event, id, emission)? });
        }
        Ok(results)
    }

    /// Publishes the results of the event at `index`, all or none. Results that another attempt at the same run has already
    /// published are kept instead.
    pub(super) async fn publish(&self, index: usize, results: &[RunResult]) -> Result<(), FunctionError> {
        let input = self.input(index)?;
        // No attempt of a function that may emit nothing can add results.
        if self.policy.spec.emits.is_empty() {
            return Ok(());
        }
        let outcome = publish(|| self.store(input, results)).await?;
        if outcome == ResultSetOutcome::Duplicate {
            let function = &self.policy.function;
            self.bus.drops().count(DuplicateScope::Function, function.as_str(), DuplicateReason::Result, results.len());
            tracing::debug!(%function, id = input.event.id, "results of an earlier attempt are kept");
            if self.may_emit_parts() {
                // Boxed: it is rare and far larger than the rest of this future, which is moved for every event.
                Box::pin(self.copy_committed(input.provenance.run(function))).await?;
            }
        }
        Ok(())
    }

    /// Stores a set of results unless EVENTS has that of another attempt. JetStream rejects repeated ids within the dedupe window
    /// only, so a longer attempt reads the log first.
    async fn store(&self, input: &InputState, results: &[RunResult]) -> Result<ResultSetOutcome, PublishError> {
        let run = input.provenance.run(&self.policy.function);
        if input.since.elapsed() >= self.dedupe_window / 2 {
            let asked = std::time::Instant::now();
            // Boxed: it is rare and far larger than the rest of this future, which is moved for every event.
            let found = Box::pin(async { self.committed.lock().await.find(&self.bus, run, asked).await }).await;
            if found.map_err(|error| PublishError::Unavailable(error.into()))?.is_some() {
                return Ok(ResultSetOutcome::Duplicate);
            }
        }
        self.bus.publish_results(&self.sets, run, results).await
    }

    /// Whether the function may publish events that are also parts of an answer.
    fn may_emit_parts(&self) -> bool {
        let covers = |ty: &str| self.policy.spec.emits.iter().any(|pattern| pattern.covers(ty));
        covers(answer::GENERATED) || covers(answer::RETRIEVED)
    }

    /// Copies stored results to their answer, as the worker that stored them may have crashed before it copied them.
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
        let missing = || {
            FunctionError::new(Fault::Invalid, "the function emitted an event for an index that is not in the batch")
        };
        self.inputs.get(index).ok_or_else(missing)
    }

    /// Copies the input event to ANSWERS before its first part, as its publisher may not have copied it yet.
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
        if input.older_has(&self.policy.function) {
            return Ok(());
        }
        let id = input.identify(input.provenance.run(&self.policy.function), &emission)?;
        let event = self.policy.event(&input.event, id, emission)?;
        if Part::of(&event.ty).is_some() {
            self.copy_input(input).await?;
        }
        publish(|| self.bus.publish(&event, id)).await.map(drop)
    }

    async fn emitted(&self, index: usize) -> Result<Vec<Emission>, FunctionError> {
        let Some(state) = self.inputs.get(index) else { return Ok(Vec::new()) };
        let (input, from) = (&state.event, self.policy.source());
        let events = self.bus.emitted(answer::id_of(input), &from, &input.id).await;
        let events = events.map_err(|error| FunctionError::new(Fault::Retry { after: None }, error.to_string()))?;
        // The last emission may still be in flight: its index stays free for the next one.
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

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::{EventType, Manifest};

    fn policy() -> EmissionPolicy {
        let manifest = "[function.f]\nruntime=\"wasm\"\nsource=\"f\"\non=[\"events.in\"]\nemits=[\"out.*\"]";
        let spec = Manifest::parse(manifest).unwrap().functions.into_values().next().unwrap();
        EmissionPolicy {
            function: Name::parse("f").unwrap(),
            spec: Arc::new(spec),
            max_hops: 2,
            retries: Arc::default(),
        }
    }

    fn emission(ty: &str) -> Emission {
        let ty = EventType::parse(ty).unwrap();
        Emission { ty, data: "1".into(), content_type: None, subject: None, partition_key: None }
    }

    fn id(text: &str) -> Identity {
        Identity::of_copy("test", text)
    }

    #[test]
    fn undeclared_event_type_is_invalid() {
        let input = Event::new("1", "/s", EventType::parse("in").unwrap());
        let error = policy().event(&input, id("0"), emission("other")).unwrap_err();
        assert_eq!(error.fault, Fault::Invalid);
        assert!(error.message.contains("emits of [function.f]"));
    }

    #[test]
    fn result_after_too_many_in_a_row_is_invalid() {
        let mut event = Event::new("1", "/s", EventType::parse("in").unwrap());
        for hops in 1..=2 {
            event = policy().event(&event, id("0"), emission("out.a")).unwrap();
            assert_eq!(event.hops(), hops);
        }
        let error = policy().event(&event, id("0"), emission("out.a")).unwrap_err();
        assert_eq!(error.fault, Fault::Invalid);
        assert!(error.message.contains("worker.max_hops"), "{}", error.message);
    }

    #[test]
    fn output_event_inherits_correlation_trace_and_partition_key() {
        let input = Event::new("1", "/s", EventType::parse("in").unwrap())
            .with_extension(TRACEPARENT, "00-a-b-01")
            .with_extension(PARTITION_KEY, "k");
        let first = policy().event(&input, id("0"), emission("out.a")).unwrap();
        assert_eq!(first.extension(CORRELATION_ID), Some("1"));
        assert_eq!(first.extension(CAUSATION_ID), Some("1"));
        assert_eq!(first.extension(TRACEPARENT), Some("00-a-b-01"));
        assert_eq!(first.extension(PARTITION_KEY), Some("k"));
        let second = policy().event(&first, id("1"), emission("out.b")).unwrap();
        assert_eq!(second.extension(CORRELATION_ID), Some("1"));
        assert_eq!(second.extension(CAUSATION_ID), Some(first.id.as_str()));
    }
}

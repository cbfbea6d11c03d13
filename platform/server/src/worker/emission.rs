//! What a function publishes, as events whose ids do not change from one attempt to the next.
//!
//! What it returns is a set: all of it is stored or nothing, and the first set that is stored stands for its run. What it emits
//! before it returns is stored at once: events under ids of their content, parts of an answer under ids of their index.

use super::{Shared, invocation::Taken, tools};
use crate::{
    bus::{
        Bus, CommittedResults, DropReason, DropScope, MAX_RESULTS, OlderResults, Provenance, PublishError, RunResult,
        SetOutcome, Sets,
    },
    registry::Catalogue,
};
use async_trait::async_trait;
use nerve_core::{
    Emission, Event, Fault, FunctionError, FunctionSpec, Identity, Name, Run,
    answer::{self, Part},
    event::{CAUSATION_ID, CORRELATION_ID, PARTITION_KEY, TRACEPARENT},
    function::Emitter,
    tool::Tool,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use time::OffsetDateTime;
use tokio::{sync::watch, time::Instant};

/// How long a result waits for the broker before its event is retried: running a function again costs more.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(120);
/// The wait between two attempts to publish.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// The most events that a function may emit for one event before it returns.
const MAX_EMISSIONS: usize = 10_000;

/// Turns emissions into events: knows the function, and what it may publish.
#[derive(Debug, Clone)]
pub(super) struct Outlet {
    pub(super) function: Name,
    pub(super) spec: Arc<FunctionSpec>,
}

impl Outlet {
    /// The source of its events.
    fn source(&self) -> String {
        format!("/functions/{}", self.function)
    }

    /// The event for an emission of `input`; refuses a type that the manifest does not let it publish.
    pub(super) fn event(&self, input: &Event, id: Identity, emission: Emission) -> Result<Event, FunctionError> {
        let function = &self.function;
        if !self.spec.may_emit(&emission.ty) {
            let message = format!(
                "it emitted `{}`, which its manifest does not allow: add it to emits of [function.{function}]",
                emission.ty
            );
            return Err(FunctionError::new(Fault::Invalid, message));
        }
        let mut event = Event::new(format!("{function}-{id}"), self.source(), emission.ty)
            .with_data(emission.content_type.unwrap_or_else(|| "application/json".to_owned()), emission.data)
            .with_extension(CORRELATION_ID, input.extension(CORRELATION_ID).unwrap_or(&input.id))
            .with_extension(CAUSATION_ID, input.id.as_str());
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

/// An event that a function was given, and what it has emitted for it so far.
#[derive(Debug)]
struct Source {
    event: Event,
    provenance: Provenance,
    /// The identity that it was published under, where it is no copy.
    published_as: Option<Identity>,
    /// What an older worker stored of its results.
    older: OlderResults,
    /// Since when other attempts at the same run are not known of.
    since: std::time::Instant,
    emitted: Mutex<Emitted>,
}

#[derive(Debug, Default)]
struct Emitted {
    /// All that was emitted or returned, as an older worker numbered it.
    all: usize,
    /// Parts of the answer.
    parts: usize,
    /// How often each event was emitted, by its identity as if it were the first.
    events: HashMap<Identity, usize>,
    /// Whether the event itself is in ANSWERS, where it is a part of the answer.
    input_is_copied: bool,
}

/// Publishes what the events of one batch emit, before and after their end.
pub(super) struct Publisher {
    bus: Bus,
    sets: Sets,
    outlet: Outlet,
    dedupe_window: Duration,
    sources: Vec<Source>,
    catalogue: watch::Receiver<Arc<Catalogue>>,
}

impl Publisher {
    pub(super) fn new<'t>(
        shared: &Shared,
        outlet: &Outlet,
        inputs: impl IntoIterator<Item = (Event, &'t mut Taken)>,
    ) -> Self {
        let source = |(event, taken): (Event, &mut Taken)| Source {
            event,
            provenance: taken.delivery.provenance.clone(),
            published_as: taken.delivery.published_as(),
            older: std::mem::take(&mut taken.older),
            since: taken.since,
            emitted: Mutex::default(),
        };
        Self {
            bus: shared.bus.clone(),
            sets: shared.sets.clone(),
            outlet: outlet.clone(),
            dedupe_window: shared.dedupe_window,
            sources: inputs.into_iter().map(source).collect(),
            catalogue: shared.catalogue.clone(),
        }
    }

    /// Publishes the results of the event at `index`, all or none. Where another attempt at the same run has published its
    /// results, those stand.
    pub(super) async fn results(&self, index: usize, emissions: Vec<Emission>) -> Result<(), FunctionError> {
        let source = self.source(index)?;
        let emissions = match tools::is_call(&self.outlet.spec, &source.event) {
            true => tools::answered(&source.event, emissions)?,
            false => emissions,
        };
        if emissions.len() > MAX_RESULTS {
            let message = format!("it returned {} events for one, and {MAX_RESULTS} is the most", emissions.len());
            return Err(FunctionError::new(Fault::Invalid, message));
        }
        let run = source.provenance.run(&self.outlet.function);
        let mut logged = 0..;
        let mut results = Vec::with_capacity(emissions.len());
        for emission in emissions {
            if source.older_has(&self.outlet.function) {
                continue;
            }
            // Parts that are in no log are numbered with the other parts.
            let id = match Part::of(&emission.ty) {
                Some(part) if !part.is_logged() => run.part(source.next_part()),
                _ => run.result(logged.next().unwrap_or_default()),
            };
            results.push(RunResult { id, event: self.outlet.event(&source.event, id, emission)? });
        }
        if results.is_empty() {
            return Ok(());
        }
        let outcome = publish(|| self.store(source, run, &results)).await?;
        if outcome == SetOutcome::Duplicate {
            self.bus.drops().count(
                DropScope::Function,
                self.outlet.function.as_str(),
                DropReason::Result,
                results.len(),
            );
            tracing::debug!(function = %self.outlet.function, id = source.event.id, "the results of an earlier attempt stand");
            if self.may_emit_parts() {
                self.copy_committed(run).await?;
            }
        }
        Ok(())
    }

    /// Stores a set of results, unless that of another attempt is in the log. JetStream knows the ids of attempts that stored theirs
    /// within the window; so an attempt that has taken longer looks for them.
    async fn store(&self, source: &Source, run: Run<'_>, results: &[RunResult]) -> Result<SetOutcome, PublishError> {
        if source.since.elapsed() >= self.dedupe_window / 2 {
            let found = CommittedResults::default().find(&self.bus, run, &self.outlet.spec.emits).await;
            if found.map_err(|error| PublishError::Unavailable(error.into()))?.is_some() {
                return Ok(SetOutcome::Duplicate);
            }
        }
        self.bus.publish_results(&self.sets, results).await
    }

    /// Whether the function may publish what is both a step of the pipeline and a part of an answer.
    fn may_emit_parts(&self) -> bool {
        let covers = |ty: &str| self.outlet.spec.emits.iter().any(|pattern| pattern.covers(ty));
        covers(answer::GENERATED) || covers(answer::RETRIEVED)
    }

    /// Copies the results that stand to their answer, where the worker that stored them may have died before it did.
    async fn copy_committed(&self, run: Run<'_>) -> Result<(), FunctionError> {
        let mut committed = CommittedResults::default();
        let copied = async {
            match committed.find(&self.bus, run, &self.outlet.spec.emits).await? {
                Some(first) => self.bus.copy_committed(run, first).await,
                None => Ok(()),
            }
        };
        copied.await.map_err(|error| FunctionError::new(Fault::Retry { after: None }, error.to_string()))
    }

    fn source(&self, index: usize) -> Result<&Source, FunctionError> {
        let missing = || FunctionError::new(Fault::Invalid, "it emitted for an event that is not in the batch");
        self.sources.get(index).ok_or_else(missing)
    }

    /// Sees to it that the event that a part follows from stands in ANSWERS before the part: whoever published it may still be
    /// about to copy it there.
    async fn copy_input(&self, source: &Source) -> Result<(), FunctionError> {
        if source.lock().input_is_copied {
            return Ok(());
        }
        if let Some(id) = source.published_as
            && Part::of(&source.event.ty).is_some_and(Part::is_logged)
        {
            publish(|| self.bus.copy_to_answer(&source.event, id)).await?;
        }
        source.lock().input_is_copied = true;
        Ok(())
    }
}

impl Source {
    fn lock(&self) -> std::sync::MutexGuard<'_, Emitted> {
        self.emitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an older worker has stored the next emission.
    fn older_has(&self, function: &Name) -> bool {
        let mut emitted = self.lock();
        emitted.all += 1;
        self.older.has(function, &self.event, emitted.all - 1)
    }

    fn next_part(&self) -> usize {
        let mut emitted = self.lock();
        emitted.parts += 1;
        emitted.parts - 1
    }

    /// The identity of the next emission.
    fn identify(&self, run: Run<'_>, emission: &Emission) -> Result<Identity, FunctionError> {
        if Part::of(&emission.ty).is_some_and(|part| !part.is_logged()) {
            let index = self.next_part();
            return if index < MAX_EMISSIONS { Ok(run.part(index)) } else { Err(too_many()) };
        }
        let first = run.emission(emission.ty.as_str(), &emission.data, 0);
        let mut emitted = self.lock();
        if emitted.events.len() >= MAX_EMISSIONS {
            return Err(too_many());
        }
        let count = emitted.events.entry(first).or_default();
        *count += 1;
        match *count {
            1 => Ok(first),
            count if count > MAX_EMISSIONS => Err(too_many()),
            count => Ok(run.emission(emission.ty.as_str(), &emission.data, count - 1)),
        }
    }
}

fn too_many() -> FunctionError {
    FunctionError::new(Fault::Invalid, format!("it emitted more than {MAX_EMISSIONS} events for one"))
}

#[async_trait]
impl Emitter for Publisher {
    async fn emit(&self, index: usize, emission: Emission) -> Result<(), FunctionError> {
        let source = self.source(index)?;
        if source.older_has(&self.outlet.function) {
            return Ok(());
        }
        let id = source.identify(source.provenance.run(&self.outlet.function), &emission)?;
        let event = self.outlet.event(&source.event, id, emission)?;
        if Part::of(&event.ty).is_some() {
            self.copy_input(source).await?;
        }
        publish(|| self.bus.publish(&event, id)).await.map(drop)
    }

    async fn emitted(&self, index: usize) -> Result<Vec<Emission>, FunctionError> {
        let Some(source) = self.sources.get(index) else { return Ok(Vec::new()) };
        let (input, from) = (&source.event, self.outlet.source());
        let events = self.bus.emitted(answer::id_of(input), &from, &input.id).await;
        let events = events.map_err(|error| FunctionError::new(Fault::Retry { after: None }, error.to_string()))?;
        // The last emission may be on the way still: its place stays free for the one that comes next.
        let parts = events.iter().filter(|event| Part::of(&event.ty).is_some_and(|part| !part.is_logged())).count();
        let mut emitted = source.lock();
        emitted.parts = emitted.parts.max(parts);
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
        Outlet { function: Name::parse("f").unwrap(), spec: Arc::new(spec) }
    }

    fn emission(ty: &str) -> Emission {
        let ty = EventType::parse(ty).unwrap();
        Emission { ty, data: "1".into(), content_type: None, subject: None, partition_key: None }
    }

    fn id(text: &str) -> Identity {
        Identity::of_copy("test", text)
    }

    #[test]
    fn early_event_has_an_id_by_content_and_part_by_index() {
        let event = Event::new("1", "/s", EventType::parse("in").unwrap());
        let input = nerve_core::Input::new("EVENTS", 7, OffsetDateTime::UNIX_EPOCH);
        let provenance = Provenance::first(input, nerve_core::Generation::first());
        let function = Name::parse("f").unwrap();
        let run = provenance.run(&function);
        let ids = |emissions: &[Emission]| {
            let (event, provenance) = (event.clone(), provenance.clone());
            let source = Source {
                event,
                provenance,
                published_as: None,
                older: OlderResults::default(),
                emitted: Mutex::default(),
            };
            emissions.iter().map(|emission| source.identify(run, emission).unwrap()).collect::<Vec<_>>()
        };
        let (a, b) = (emission("out.a"), emission("out.b"));
        let first = ids(&[a.clone(), a.clone(), b.clone()]);
        assert_eq!(ids(&[b, a.clone(), a]), [first[2], first[0], first[1]], "another branch, the same events");
        let token = |text: &'static str| Emission { data: text.into(), ..emission(answer::TOKEN) };
        assert_eq!(ids(&[token("x"), token("y")]), [run.part(0), run.part(1)]);
    }

    #[test]
    fn only_declared_types_may_be_emitted() {
        let input = Event::new("1", "/s", EventType::parse("in").unwrap());
        let error = outlet().event(&input, id("0"), emission("other")).unwrap_err();
        assert_eq!(error.fault, Fault::Invalid);
        assert!(error.message.contains("emits of [function.f]"));
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

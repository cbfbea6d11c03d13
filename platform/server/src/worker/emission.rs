//! What a function emits, as events whose ids do not change from one try to the next.
//!
//! A redelivered event makes the same function publish under the same message ids, so within the dedupe window
//! nothing is stored twice.

use super::{Shared, tools};
use crate::{
    bus::{Bus, PublishError},
    registry::Catalogue,
};
use async_trait::async_trait;
use data_encoding::HEXLOWER;
use nerve_core::{
    Emission, Event, Fault, FunctionError, FunctionSpec, Name, answer,
    event::{CAUSATION_ID, CORRELATION_ID, PARTITION_KEY, TRACEPARENT},
    function::Emitter,
    tool::Tool,
};
use sha2::{Digest, Sha256};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use time::OffsetDateTime;
use tokio::{sync::watch, time::Instant};

/// How long a result waits for the broker before its event is tried again: running a function anew costs more.
const PATIENCE: Duration = Duration::from_secs(120);
/// The wait between two tries to publish.
const AGAIN: Duration = Duration::from_millis(250);
/// The most emissions of one event.
const EMISSIONS_MAX: usize = 10_000;

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

    /// The event for the `index`-th emission of `input`; refuses a type that the manifest does not let it publish.
    pub(super) fn event(&self, input: &Event, index: usize, emission: Emission) -> Result<Event, FunctionError> {
        let function = &self.function;
        if !self.spec.may_emit(&emission.ty) {
            let message = format!(
                "it emitted `{}`, which its manifest does not allow: add it to emits of [function.{function}]",
                emission.ty
            );
            return Err(FunctionError::new(Fault::Invalid, message));
        }
        if index >= EMISSIONS_MAX {
            let message = format!("it emitted more than {EMISSIONS_MAX} events for one");
            return Err(FunctionError::new(Fault::Invalid, message));
        }
        let mut event = Event::new(emission_id(function, input, index), self.source(), emission.ty)
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

/// Function, input and index make an id of one length, however long a chain of functions is. The input's source is
/// part of it, since ids are unique within a source only.
fn emission_id(function: &Name, input: &Event, index: usize) -> String {
    let mut digest = Sha256::new();
    for part in [function.as_str(), &input.source, &input.id] {
        digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(part);
    }
    let digest = HEXLOWER.encode(&digest.finalize());
    format!("{function}-{}-{index}", digest.get(..24).unwrap_or(&digest))
}

/// Publishes; while the broker is away it waits, for the work is done and only its result is at stake.
pub(super) async fn publish(bus: &Bus, event: &Event) -> Result<(), FunctionError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match bus.publish(event).await {
            Ok(_) => return Ok(()),
            Err(PublishError::Invalid(why)) => {
                return Err(FunctionError::new(Fault::Invalid, format!("it emitted what cannot be published: {why}")));
            }
            Err(PublishError::Unavailable(cause)) if Instant::now() >= deadline => {
                let message = format!("its result could not be stored: JetStream did not acknowledge it ({cause})");
                return Err(FunctionError::new(Fault::Retry { after: None }, message));
            }
            Err(PublishError::Unavailable(cause)) => {
                tracing::debug!(%cause, id = event.id, "a result waits for the broker");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Publishes what the events of one batch emit, before and after their end.
pub(super) struct Publisher {
    bus: Bus,
    outlet: Outlet,
    inputs: Vec<Event>,
    /// How many emissions each event has had.
    counts: Vec<AtomicUsize>,
    catalogue: watch::Receiver<Arc<Catalogue>>,
}

impl Publisher {
    pub(super) fn new(shared: &Shared, outlet: &Outlet, inputs: &[Event]) -> Self {
        // The body is shared, not copied.
        let inputs = inputs.to_vec();
        let counts = inputs.iter().map(|_| AtomicUsize::new(0)).collect();
        Self { bus: shared.bus.clone(), outlet: outlet.clone(), inputs, counts, catalogue: shared.catalogue.clone() }
    }

    /// Publishes the results of the event at `index`, in their order and all at once.
    pub(super) async fn results(&self, index: usize, emissions: Vec<Emission>) -> Result<(), FunctionError> {
        let emissions = match self.inputs.get(index) {
            Some(input) if tools::is_call(&self.outlet.spec, input) => tools::answered(input, emissions)?,
            _ => emissions,
        };
        let events: Result<Vec<_>, _> = emissions.into_iter().map(|emission| self.event(index, emission)).collect();
        let events = events?;
        if let [only] = events.as_slice() {
            return publish(&self.bus, only).await;
        }
        futures::future::try_join_all(events.iter().map(|event| publish(&self.bus, event))).await.map(drop)
    }

    fn event(&self, index: usize, emission: Emission) -> Result<Event, FunctionError> {
        let (Some(input), Some(count)) = (self.inputs.get(index), self.counts.get(index)) else {
            return Err(FunctionError::new(Fault::Invalid, "it emitted for an event that is not in the batch"));
        };
        self.outlet.event(input, count.fetch_add(1, Ordering::Relaxed), emission)
    }
}

#[async_trait]
impl Emitter for Publisher {
    async fn emit(&self, index: usize, emission: Emission) -> Result<(), FunctionError> {
        publish(&self.bus, &self.event(index, emission)?).await
    }

    async fn emitted(&self, index: usize) -> Result<Vec<Emission>, FunctionError> {
        let (Some(input), Some(count)) = (self.inputs.get(index), self.counts.get(index)) else {
            return Ok(Vec::new());
        };
        let source = self.outlet.source();
        let events = self.bus.emitted(answer::id_of(input), &source, &input.id).await;
        let events = events.map_err(|error| FunctionError::new(Fault::Retry { after: None }, error.to_string()))?;
        // The last emission may be on the way still: its place stays free for the one that comes next.
        count.fetch_max(events.len(), Ordering::Relaxed);
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
        let event = self.outlet.event(&self.input, events.len(), emission)?;
        events.push(event);
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

    #[test]
    fn ids_are_the_same_each_time_and_differ_by_input_source_and_index() {
        let input = |source: &str, id: &str| Event::new(id, source, EventType::parse("in").unwrap());
        let id = |source, id, index| outlet().event(&input(source, id), index, emission("out.a")).unwrap().id;
        assert_eq!(id("/a", "1", 0), id("/a", "1", 0));
        let all = [id("/a", "1", 0), id("/a", "1", 1), id("/a", "2", 0), id("/b", "1", 0), id("/a1", "", 0)];
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn only_declared_types_may_be_emitted() {
        let input = Event::new("1", "/s", EventType::parse("in").unwrap());
        let error = outlet().event(&input, 0, emission("other")).unwrap_err();
        assert_eq!(error.fault, Fault::Invalid);
        assert!(error.message.contains("emits of [function.f]"));
    }

    #[test]
    fn an_emission_inherits_its_conversation() {
        let input = Event::new("1", "/s", EventType::parse("in").unwrap())
            .with_extension(TRACEPARENT, "00-a-b-01")
            .with_extension(PARTITION_KEY, "k");
        let first = outlet().event(&input, 0, emission("out.a")).unwrap();
        assert_eq!(first.extension(CORRELATION_ID), Some("1"));
        assert_eq!(first.extension(CAUSATION_ID), Some("1"));
        assert_eq!(first.extension(TRACEPARENT), Some("00-a-b-01"));
        assert_eq!(first.extension(PARTITION_KEY), Some("k"));
        let second = outlet().event(&first, 0, emission("out.b")).unwrap();
        assert_eq!(second.extension(CORRELATION_ID), Some("1"));
        assert_eq!(second.extension(CAUSATION_ID), Some(first.id.as_str()));
    }
}

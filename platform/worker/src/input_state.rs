//! The emissions of one input event: their count determines the ids of the next ones.

use super::invocation::ActiveDelivery;
use nerve_broker::bus::{LegacyResults, Provenance};
use nerve_core::{Emission, Event, Fault, FunctionError, Identity, Name, Run, answer::Part};
use parking_lot::Mutex;
use std::{collections::HashMap, time::Instant};

/// Maximum events that a function may emit for one event before it returns.
pub(super) const MAX_EMISSIONS: usize = 10_000;

/// An input event of a function, and the emissions for it so far.
#[derive(Debug)]
pub(super) struct InputState {
    pub(super) event: Event,
    pub(super) provenance: Provenance,
    /// The identity under which it was published; `None` for a copy.
    pub(super) published_as: Option<Identity>,
    /// The results that an older Nerve stored for it.
    older: LegacyResults,
    /// The time of the last lookup of results of other attempts at the same run.
    pub(super) since: Instant,
    emitted: Mutex<EmissionCounts>,
}

#[derive(Debug, Default)]
struct EmissionCounts {
    /// EmissionCounts and returned events, in the numbering of an older Nerve.
    all: usize,
    /// Parts of the answer.
    parts: usize,
    /// Emission count of each event, by the identity of its first emission.
    events: HashMap<Identity, usize>,
    /// Whether the input event is in ANSWERS, if it is a part of the answer.
    is_copied: bool,
}

impl InputState {
    pub(super) fn new(event: Event, active: &mut ActiveDelivery) -> Self {
        Self {
            event,
            provenance: active.delivery.provenance.clone(),
            published_as: active.delivery.published_as(),
            older: std::mem::take(&mut active.older),
            since: active.since,
            emitted: Mutex::default(),
        }
    }

    /// Whether the input event is known to be in ANSWERS, or is no part of an answer.
    pub(super) fn is_copied(&self) -> bool {
        self.emitted.lock().is_copied
    }

    pub(super) fn set_copied(&self) {
        self.emitted.lock().is_copied = true;
    }

    /// Continues the numbering of parts after `count` published ones.
    pub(super) fn skip_parts(&self, count: usize) {
        let mut emitted = self.emitted.lock();
        emitted.parts = emitted.parts.max(count);
    }

    /// Whether an older Nerve has stored the next emission. Advances the numbering.
    pub(super) fn older_has(&self, function: &Name) -> bool {
        let mut emitted = self.emitted.lock();
        emitted.all += 1;
        self.older.has(function, &self.event, emitted.all - 1)
    }

    /// Returns the index of the next part of the answer.
    pub(super) fn next_part(&self) -> usize {
        let mut emitted = self.emitted.lock();
        emitted.parts += 1;
        emitted.parts - 1
    }

    /// Returns the identity of the next emission.
    pub(super) fn identify(&self, run: Run<'_>, emission: &Emission) -> Result<Identity, FunctionError> {
        if Part::of(&emission.ty).is_some_and(|part| !part.is_logged()) {
            let index = self.next_part();
            return if index < MAX_EMISSIONS { Ok(run.part(index)) } else { Err(too_many_emissions()) };
        }
        let first = run.emission(emission.ty.as_str(), &emission.data, 0);
        let mut emitted = self.emitted.lock();
        if emitted.events.len() >= MAX_EMISSIONS {
            return Err(too_many_emissions());
        }
        let count = emitted.events.entry(first).or_default();
        *count += 1;
        match *count {
            1 => Ok(first),
            count if count > MAX_EMISSIONS => Err(too_many_emissions()),
            count => Ok(run.emission(emission.ty.as_str(), &emission.data, count - 1)),
        }
    }
}

pub(super) fn too_many_emissions() -> FunctionError {
    FunctionError::new(Fault::Invalid, format!("the function emitted more than {MAX_EMISSIONS} events for one"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::{EventType, answer};
    use time::OffsetDateTime;

    fn emission(ty: &str) -> Emission {
        let ty = EventType::parse(ty).unwrap();
        Emission { ty, data: "1".into(), content_type: None, subject: None, partition_key: None }
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
            let source = InputState {
                event,
                provenance,
                published_as: None,
                older: LegacyResults::default(),
                since: Instant::now(),
                emitted: Mutex::default(),
            };
            emissions.iter().map(|emission| source.identify(run, emission).unwrap()).collect::<Vec<_>>()
        };
        let (a, b) = (emission("out.a"), emission("out.b"));
        let first = ids(&[a.clone(), a.clone(), b.clone()]);
        assert_eq!(ids(&[b, a.clone(), a]), [first[2], first[0], first[1]], "the order does not change the ids");
        let token = |text: &'static str| Emission { data: text.into(), ..emission(answer::TOKEN) };
        assert_eq!(ids(&[token("x"), token("y")]), [run.part(0), run.part(1)]);
    }
}

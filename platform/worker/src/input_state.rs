//! What one event has emitted so far: it numbers what comes next, and so identifies it.

use super::invocation::Taken;
use nerve_broker::bus::{LegacyResults, Provenance};
use nerve_core::{Emission, Event, Fault, FunctionError, Identity, Name, Run, answer::Part};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// The most events that a function may emit for one event before it returns.
pub(super) const MAX_EMISSIONS: usize = 10_000;

/// An event that a function was given, and what it has emitted for it so far.
#[derive(Debug)]
pub(super) struct InputState {
    pub(super) event: Event,
    pub(super) provenance: Provenance,
    /// The identity that it was published under, where it is no copy.
    pub(super) published_as: Option<Identity>,
    /// What an older worker stored of its results.
    older: LegacyResults,
    /// Since when other attempts at the same run are not known of.
    pub(super) since: Instant,
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
    is_copied: bool,
}

impl InputState {
    pub(super) fn new(event: Event, taken: &mut Taken) -> Self {
        Self {
            event,
            provenance: taken.delivery.provenance.clone(),
            published_as: taken.delivery.published_as(),
            older: std::mem::take(&mut taken.older),
            since: taken.since,
            emitted: Mutex::default(),
        }
    }

    /// Whether the event itself is known to be in ANSWERS, or needs not be.
    pub(super) fn is_copied(&self) -> bool {
        self.lock().is_copied
    }

    pub(super) fn set_copied(&self) {
        self.lock().is_copied = true;
    }

    /// Goes on after so many parts that are published already.
    pub(super) fn skip_parts(&self, count: usize) {
        let mut emitted = self.lock();
        emitted.parts = emitted.parts.max(count);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Emitted> {
        self.emitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an older worker has stored the next emission.
    pub(super) fn older_has(&self, function: &Name) -> bool {
        let mut emitted = self.lock();
        emitted.all += 1;
        self.older.has(function, &self.event, emitted.all - 1)
    }

    /// The index of the next part of the answer.
    pub(super) fn next_part(&self) -> usize {
        let mut emitted = self.lock();
        emitted.parts += 1;
        emitted.parts - 1
    }

    /// The identity of the next emission.
    pub(super) fn identify(&self, run: Run<'_>, emission: &Emission) -> Result<Identity, FunctionError> {
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

pub(super) fn too_many() -> FunctionError {
    FunctionError::new(Fault::Invalid, format!("it emitted more than {MAX_EMISSIONS} events for one"))
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
        assert_eq!(ids(&[b, a.clone(), a]), [first[2], first[0], first[1]], "another branch, the same events");
        let token = |text: &'static str| Emission { data: text.into(), ..emission(answer::TOKEN) };
        assert_eq!(ids(&[token("x"), token("y")]), [run.part(0), run.part(1)]);
    }
}

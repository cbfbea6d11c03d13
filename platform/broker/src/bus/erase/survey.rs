//! Reads the streams, and finds out of each message what connects it with others.
//!
//! Of each message some digests are kept, about 100 bytes: a million messages fit into memory. Bodies that lie in the Object
//! Store are read one after the other, and only where the event's type says that they may name a collection.

use super::{
    super::{
        ANSWERS, Bus, BusError, DEAD, EVENTS, Start, TIMERS,
        delivery::event_of,
        provenance::{Provenance, holds_copies},
        streams::RUNS,
    },
    ledger::{BodyDigest, Ledger, Owner, Place, Row},
};
use crate::bus::BodyError;
use data_encoding::HEXLOWER;
use nerve_core::{
    Event, EventType, Identity, answer,
    event::{CAUSATION_ID, CORRELATION_ID, DATA_REF},
};
use nerve_events as event_types;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Type: a tenant was erased. It names the collection, and is nothing that the tenant has.
pub(super) const ERASED: &str = "collection.erased";
/// The extension attribute by which an event of a type that Nerve does not know names its collection.
const COLLECTION: &str = "collection";
/// The collection of what names none.
const DEFAULT_COLLECTION: &str = "default";
/// The types whose takers fill in that collection.
const WITH_DEFAULT: [&str; 5] =
    ["document.uploaded", "document.deleted", "prompt.received", "agent.asked", "weights.rollback_requested"];
/// The types whose data names the answer that they are about.
const ABOUT_ANSWERS: [&str; 5] =
    ["feedback.submitted", "control.cancelled", "control.timeout", "control.retry_requested", "control.retried"];

/// Where messages are looked for, in the order in which they are read.
const PLACES: [(Place, &str, &[&str]); 5] = [
    (Place::Events, EVENTS, &["events.>"]),
    (Place::Answers, ANSWERS, &["answers.>"]),
    (Place::Dead, DEAD, &["dead.>", "redrive.>"]),
    // Not what schedules have there.
    (Place::Timers, TIMERS, &["timers.wait.>", "timers.due.>"]),
    (Place::Runs, RUNS, &["runs.>"]),
];

/// The digest of an id.
pub(super) fn key(id: &str) -> Identity {
    Identity::from_bytes(&Sha256::digest(id))
}

/// What was read so far.
pub(super) struct Survey<'t> {
    bus: Bus,
    owns: &'t (dyn Fn(&str) -> bool + Sync),
    pub(super) ledger: Ledger,
    /// The sequences that are read next, of each place.
    next: [u64; PLACES.len()],
}

/// A message whose body is in the Object Store.
struct Large {
    number: usize,
    ty: EventType,
    content_type: Option<String>,
    reference: String,
}

impl<'t> Survey<'t> {
    /// A survey for the tenant whose collections `owns` names.
    pub(super) fn new(bus: &Bus, owns: &'t (dyn Fn(&str) -> bool + Sync)) -> Self {
        Self { bus: bus.clone(), owns, ledger: Ledger::default(), next: [0; PLACES.len()] }
    }

    /// Reads what was stored since the last time.
    pub(super) async fn read(&mut self) -> Result<(), BusError> {
        for (number, (place, stream, filters)) in PLACES.into_iter().enumerate() {
            let next = self.next.get(number).copied().unwrap_or_default();
            let start = if next == 0 { Start::First } else { Start::Sequence(next) };
            let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
            let (mut end, mut large) = (next, Vec::new());
            let bus = self.bus.clone();
            let look = |message: async_nats::Message, sequence: u64, _| {
                end = end.max(sequence + 1);
                self.add(place, stream, (&message, sequence), &mut large);
                true
            };
            match place {
                // What failed may be said there, and not to whom it belongs.
                Place::Runs => bus.each_head(stream, filters, start, look).await?,
                _ => bus.each(stream, filters, start, look).await?,
            }
            if let Some(next) = self.next.get_mut(number) {
                *next = end;
            }
            for large in large {
                let owner = self.owner_of_large(&large).await?;
                self.ledger.set_owner(large.number, owner);
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        place: Place,
        stream: &str,
        (message, sequence): (&async_nats::Message, u64),
        large: &mut Vec<Large>,
    ) {
        let event = match Provenance::of_copy(message.headers.as_ref()) {
            Some(original) if holds_copies(stream) || place == Place::Runs => original_event(message, &original),
            _ => event_of(message, stream, sequence),
        };
        let reference = event.extension(DATA_REF).map(str::to_owned);
        let is_large = event.has_stored_body() && place != Place::Runs;
        let is_unread = is_large && event_types::names_collection(&event.ty);
        let owner = if is_unread || place == Place::Runs { Owner::Nobody } else { self.owner_of(&event) };
        let row = Row {
            place,
            sequence,
            owner,
            workflow: key(&workflow_of(&event)),
            event: key(&event.id),
            cause: event.extension(CAUSATION_ID).map(key),
            body: reference.as_deref().filter(|_| is_large).and_then(body_digest),
        };
        let number = self.ledger.add(row);
        if let Some(reference) = reference.filter(|_| is_unread) {
            large.push(Large { number, ty: event.ty, content_type: event.content_type, reference });
        }
    }

    async fn owner_of_large(&self, large: &Large) -> Result<Owner, BusError> {
        let event = Event::new("body", "/nerve/collections", large.ty.clone());
        let mut event = event.with_extension(DATA_REF, large.reference.as_str());
        event.content_type.clone_from(&large.content_type);
        match self.bus.restore_body(&mut event).await {
            Ok(()) => Ok(self.owner_of(&event)),
            Err(BodyError::Gone(_)) => Ok(Owner::Nobody),
            Err(BodyError::Bus(error)) => Err(error),
        }
    }

    fn owner_of(&self, event: &Event) -> Owner {
        match collection_of(event) {
            None => Owner::Nobody,
            Some(collection) if (self.owns)(&collection) => Owner::Tenant,
            Some(_) => Owner::Other,
        }
    }
}

/// The event of a copy, as it was where it was stored first.
fn original_event(message: &async_nats::Message, original: &Provenance) -> Event {
    let subject = original.subject.as_deref().unwrap_or(message.subject.as_str());
    let message = async_nats::Message { subject: subject.into(), ..message.clone() };
    event_of(&message, &original.input.stream, original.input.sequence)
}

/// The collection that an event names.
///
/// Of the types that Nerve knows the data counts, as their takers read it; of all others the extension attribute.
fn collection_of(event: &Event) -> Option<String> {
    #[derive(Deserialize)]
    struct Data {
        #[serde(default)]
        collection: Option<Value>,
    }
    let of_extension = || event.extension(COLLECTION).map(str::to_owned);
    if event.ty.as_str() == ERASED {
        return None;
    }
    if !event_types::names_collection(&event.ty) {
        return of_extension();
    }
    let data = if event.is_json() { serde_json::from_slice::<Data>(&event.data).ok() } else { None };
    let named = data.and_then(|data| data.collection);
    match named {
        Some(Value::String(collection)) => Some(collection),
        _ if WITH_DEFAULT.contains(&event.ty.as_str()) => Some(DEFAULT_COLLECTION.to_owned()),
        _ => of_extension(),
    }
}

/// The workflow that an event belongs to: the one that it says, or the answer that it is about, or one of its own.
fn workflow_of(event: &Event) -> String {
    #[derive(Deserialize)]
    struct Data {
        answer: String,
    }
    if event.extension(CORRELATION_ID).is_none()
        && ABOUT_ANSWERS.contains(&event.ty.as_str())
        && let Ok(Data { answer }) = serde_json::from_slice(&event.data)
    {
        return answer;
    }
    answer::id_of(event).to_owned()
}

fn body_digest(reference: &str) -> Option<BodyDigest> {
    let (_, digest) = reference.rsplit_once('/')?;
    HEXLOWER.decode(digest.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(ty: &str, data: &Value) -> Event {
        let event = Event::new("1", "/s", EventType::parse(ty).unwrap());
        event.with_data("application/json", data.to_string())
    }

    #[test]
    fn collection_is_what_the_takers_of_an_event_read() {
        let named = |ty: &str, data: Value| collection_of(&event(ty, &data));
        let acme = Some("acme".to_owned());
        for ty in ["document.uploaded", "embedding.created", "documents.retrieved", "memory.updated", "answer.opened"] {
            assert_eq!(named(ty, json!({"collection": "acme"})), acme, "{ty}");
        }
        assert_eq!(named("document.uploaded", json!({})).as_deref(), Some("default"));
        let raw = event("document.uploaded", &json!(null)).with_data("text/plain", "acme");
        assert_eq!(collection_of(&raw).as_deref(), Some("default"));
        assert_eq!(named("documents.retrieved", json!({})), None, "it goes by its workflow");
        // What a tool is asked, and what others say, is no collection of Nerve's.
        assert_eq!(named("tool.called.search", json!({"collection": "acme"})), None);
        assert_eq!(named("shop.sold", json!({"collection": "acme"})), None);
        let claims = |ty: &str, data: Value| collection_of(&event(ty, &data).with_extension(COLLECTION, "acme"));
        assert_eq!(claims("shop.sold", json!({})), acme);
        assert_eq!(claims("prompt.received", json!({"collection": "other"})).as_deref(), Some("other"));
        assert_eq!(named(ERASED, json!({"collection": "acme"})), None);
    }

    #[test]
    fn event_about_an_answer_belongs_to_its_workflow() {
        let feedback = event("feedback.submitted", &json!({"answer": "7"}));
        assert_eq!(workflow_of(&feedback), "7");
        assert_eq!(workflow_of(&feedback.with_extension(CORRELATION_ID, "8")), "8");
        assert_eq!(workflow_of(&event("answer.generated", &json!({"answer": "It costs nothing."}))), "1");
    }

    #[test]
    fn body_is_known_by_the_digest_in_its_reference() {
        let digest = HEXLOWER.encode(&[7; 32]);
        assert_eq!(body_digest(&format!("nats-object:bodies/{digest}")), Some([7; 32]));
        assert_eq!((body_digest("nats-object:bodies/short"), body_digest("")), (None, None));
    }
}

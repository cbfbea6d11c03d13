//! Reads the streams, and extracts the links between messages.
//!
//! About 100 bytes of digests are kept per message, so a million messages fit in memory. Bodies in the Object
//! Store are read one by one, and only if the event's type can name a collection.

use super::{
    super::{
        ANSWERS, Bus, BusError, DEAD, EVENTS, Start, TIMERS,
        delivery::event_of,
        provenance::{Provenance, holds_copies},
        streams::RUNS,
    },
    ledger::{BodyDigest, Ledger, Location, MessageRecord, Owner},
};
use crate::bus::BodyError;
use data_encoding::HEXLOWER;
use nerve_core::{
    Event, EventType, Identity, answer,
    event::{CAUSATION_ID, CORRELATION_ID, DATA_REF},
};
use nerve_events::{
    EventData,
    agent::AgentAsked,
    control::{CollectionErased, ControlCancelled, ControlRetried, ControlRetryRequested, ControlTimeout},
    documents::{DEFAULT_COLLECTION, DocumentDeleted, DocumentUploaded},
    feedback::{FeedbackSubmitted, WeightsRollbackRequested},
    retrieval::PromptReceived,
};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The extension attribute by which an event of a type unknown to Nerve names its collection.
const COLLECTION: &str = "collection";
/// The types whose consumers assume that collection.
const TYPES_WITH_DEFAULT: [&str; 5] = [
    DocumentUploaded::TYPE,
    DocumentDeleted::TYPE,
    PromptReceived::TYPE,
    AgentAsked::TYPE,
    WeightsRollbackRequested::TYPE,
];
/// The types whose data names an answer.
const TYPES_ABOUT_ANSWERS: [&str; 5] = [
    FeedbackSubmitted::TYPE,
    ControlCancelled::TYPE,
    ControlTimeout::TYPE,
    ControlRetryRequested::TYPE,
    ControlRetried::TYPE,
];

/// The subjects to read, in reading order.
const LOCATIONS: [(Location, &str, &[&str]); 5] = [
    (Location::Events, EVENTS, &["events.>"]),
    (Location::Answers, ANSWERS, &["answers.>"]),
    (Location::Dead, DEAD, &["dead.>", "redrive.>"]),
    // Without the ticks of schedules.
    (Location::Timers, TIMERS, &["timers.wait.>", "timers.due.>"]),
    (Location::Runs, RUNS, &["runs.>"]),
];

/// The digest of an id.
pub(super) fn key(id: &str) -> Identity {
    Identity::from_bytes(&Sha256::digest(id))
}

/// The messages read so far.
pub(super) struct Survey<'t> {
    bus: Bus,
    owns: &'t (dyn Fn(&str) -> bool + Sync),
    pub(super) ledger: Ledger,
    /// The next sequence to read, per location.
    next: [u64; LOCATIONS.len()],
}

/// A message whose body is in the Object Store.
struct LargeMessage {
    number: usize,
    ty: EventType,
    content_type: Option<String>,
    reference: String,
}

impl<'t> Survey<'t> {
    /// A survey for the tenant whose collections `owns` names.
    pub(super) fn new(bus: &Bus, owns: &'t (dyn Fn(&str) -> bool + Sync)) -> Self {
        Self { bus: bus.clone(), owns, ledger: Ledger::default(), next: [0; LOCATIONS.len()] }
    }

    /// Reads the messages stored since the last pass.
    pub(super) async fn read(&mut self) -> Result<(), BusError> {
        for (number, (place, stream, filters)) in LOCATIONS.into_iter().enumerate() {
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
                // A dead letter names its failure there, not its owner.
                Location::Runs => bus.for_each_header(stream, filters, start, look).await?,
                _ => bus.for_each(stream, filters, start, look).await?,
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
        place: Location,
        stream: &str,
        (message, sequence): (&async_nats::Message, u64),
        large: &mut Vec<LargeMessage>,
    ) {
        let event = match Provenance::of_copy(message.headers.as_ref()) {
            Some(original) if holds_copies(stream) || place == Location::Runs => original_event(message, &original),
            _ => event_of(message, stream, sequence),
        };
        let reference = event.extension(DATA_REF).map(str::to_owned);
        let is_large = event.has_stored_body() && place != Location::Runs;
        let is_unread = is_large && nerve_events::names_collection(&event.ty);
        let owner = if is_unread || place == Location::Runs { Owner::Nobody } else { self.owner_of(&event) };
        let row = MessageRecord {
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
            large.push(LargeMessage { number, ty: event.ty, content_type: event.content_type, reference });
        }
    }

    async fn owner_of_large(&self, large: &LargeMessage) -> Result<Owner, BusError> {
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

/// The event of a copy, at its original position.
fn original_event(message: &async_nats::Message, original: &Provenance) -> Event {
    let subject = original.subject.as_deref().unwrap_or(message.subject.as_str());
    let message = async_nats::Message { subject: subject.into(), ..message.clone() };
    event_of(&message, &original.input.stream, original.input.sequence)
}

/// The collection that an event names.
///
/// For types known to Nerve the data decides, as their consumers read it; for all others the extension attribute.
fn collection_of(event: &Event) -> Option<String> {
    #[derive(Deserialize)]
    struct Data {
        #[serde(default)]
        collection: Option<Value>,
    }
    let of_extension = || event.extension(COLLECTION).map(str::to_owned);
    // It names the collection, and is not the tenant's data.
    if event.ty.as_str() == CollectionErased::TYPE {
        return None;
    }
    if !nerve_events::names_collection(&event.ty) {
        return of_extension();
    }
    let data = if event.is_json() { serde_json::from_slice::<Data>(&event.data).ok() } else { None };
    let named = data.and_then(|data| data.collection);
    match named {
        Some(Value::String(collection)) => Some(collection),
        _ if TYPES_WITH_DEFAULT.contains(&event.ty.as_str()) => Some(DEFAULT_COLLECTION.to_owned()),
        _ => of_extension(),
    }
}

/// The workflow of an event: its `correlationid`, the answer that it is about, or its own id.
fn workflow_of(event: &Event) -> String {
    #[derive(Deserialize)]
    struct Data {
        answer: String,
    }
    if event.extension(CORRELATION_ID).is_none()
        && TYPES_ABOUT_ANSWERS.contains(&event.ty.as_str())
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
    fn collection_is_read_as_the_consumers_of_the_event_do() {
        let named = |ty: &str, data: Value| collection_of(&event(ty, &data));
        let acme = Some("acme".to_owned());
        for ty in ["document.uploaded", "embedding.created", "documents.retrieved", "memory.updated", "answer.opened"] {
            assert_eq!(named(ty, json!({"collection": "acme"})), acme, "{ty}");
        }
        assert_eq!(named("document.uploaded", json!({})).as_deref(), Some("default"));
        let raw = event("document.uploaded", &json!(null)).with_data("text/plain", "acme");
        assert_eq!(collection_of(&raw).as_deref(), Some("default"));
        assert_eq!(named("documents.retrieved", json!({})), None, "its workflow decides");
        // Arguments of tools, and foreign events, do not name a collection of Nerve.
        assert_eq!(named("tool.called.search", json!({"collection": "acme"})), None);
        assert_eq!(named("shop.sold", json!({"collection": "acme"})), None);
        let claims = |ty: &str, data: Value| collection_of(&event(ty, &data).with_extension(COLLECTION, "acme"));
        assert_eq!(claims("shop.sold", json!({})), acme);
        assert_eq!(claims("prompt.received", json!({"collection": "other"})).as_deref(), Some("other"));
        assert_eq!(named(CollectionErased::TYPE, json!({"collection": "acme"})), None);
    }

    #[test]
    fn event_about_an_answer_belongs_to_its_workflow() {
        let feedback = event("feedback.submitted", &json!({"answer": "7"}));
        assert_eq!(workflow_of(&feedback), "7");
        assert_eq!(workflow_of(&feedback.with_extension(CORRELATION_ID, "8")), "8");
        assert_eq!(workflow_of(&event("answer.generated", &json!({"answer": "It costs nothing."}))), "1");
    }

    #[test]
    fn body_digest_is_parsed_from_its_reference() {
        let digest = HEXLOWER.encode(&[7; 32]);
        assert_eq!(body_digest(&format!("nats-object:bodies/{digest}")), Some([7; 32]));
        assert_eq!((body_digest("nats-object:bodies/short"), body_digest("")), (None, None));
    }
}

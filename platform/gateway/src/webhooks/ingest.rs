//! The events of a verified delivery: made, deduplicated, and stored in the event log, or on disk while NATS is unavailable.

use crate::{
    Gateway,
    api::cloudevents::{self, ParsedRequest},
    http::problem::{HttpResult, Problem, ProblemType},
    publish::{Receipt, accepted, hook_problem, publish_problem},
    webhooks::{
        log_limit,
        spool::{SpoolError, Spooled},
    },
};
use bytes::Bytes;
use http::HeaderMap;
use nerve_broker::bus::{DuplicateReason, DuplicateScope, PublishError};
use nerve_core::{
    Event, EventType, Identity, Name, Origin, SourceSpec,
    event::PARTITION_KEY,
    manifest::{Dedupe, Ids, Provider},
};
use nerve_webhooks::{IdScope, SignedIdentity, VerifiedEvent, is_valid_attribute};
use std::{collections::HashSet, time::Duration};
use time::OffsetDateTime;
use uuid::Uuid;

/// Maximum length of an event type in bytes, so that its subject stays within 255; longer ones are cut off.
const MAX_TYPE_BYTES: usize = 240;
/// `Retry-After` while another request stores the same delivery.
const DUPLICATE_RETRY_AFTER: Duration = Duration::from_secs(1);
/// `Retry-After` if the spool is full or cannot be written.
const SPOOL_RETRY_AFTER: Duration = Duration::from_secs(30);

/// An event that a source received.
#[derive(Debug)]
struct Received {
    event: Event,
    id_scope: IdScope,
}

impl Received {
    /// The identity, by which duplicates of the source are recognized.
    fn identity(&self, origin: &Origin, dedupe: Dedupe) -> Identity {
        match (dedupe, &self.id_scope) {
            (Dedupe::None, _) => origin.identify_delivery(Uuid::now_v7().as_bytes()),
            (_, IdScope::DeliveryAndBody(sha256)) => origin.identify_content(&self.event, sha256),
            (_, IdScope::Delivery | IdScope::ContentHash) => origin.identify(&self.event),
        }
    }
}

/// The event of a verified delivery, or of one item of it.
fn event_of(
    (source, spec): (&Name, &SourceSpec),
    verified: VerifiedEvent,
    now: OffsetDateTime,
) -> HttpResult<Received> {
    let ty = event_type(source, verified.ty.as_deref())?;
    let id_scope = verified.id_scope;
    // Without deduplication, equal bodies are different events.
    let id = match (spec.dedupe(), id_scope) {
        (Dedupe::None, IdScope::ContentHash) => Uuid::now_v7().to_string(),
        _ => verified.id,
    };
    let mut event = Event::new(id, ["/hooks/", source.as_str()].concat(), ty);
    event.time = Some(now);
    event.content_type = verified.content_type;
    event.data = verified.data;
    let subject = verified.subject.filter(|subject| is_valid_attribute(subject));
    if let Some(subject) = &subject {
        event = event.with_extension(PARTITION_KEY, subject.as_str());
    }
    event.subject = subject;
    Ok(Received { event, id_scope })
}

/// The CloudEvents of a request, with types under the source's name; `None` if the request has none.
fn cloud_events(source: &Name, ids: Ids, (headers, body): (&HeaderMap, &Bytes)) -> HttpResult<Option<Vec<Received>>> {
    let events = match cloudevents::parse(headers, body)? {
        ParsedRequest::One(event) => vec![*event],
        ParsedRequest::Batch(events) => events,
        ParsedRequest::Plain => return Ok(None),
    };
    let received = |mut event: Event| {
        event.ty = event_type(source, Some(event.ty.as_str()))?;
        let id_scope = IdScope::of(ids, &event.data);
        Ok(Received { event, id_scope })
    };
    events.into_iter().map(received).collect::<HttpResult<_>>().map(Some)
}

/// `<source>.<type>`, with `_` for characters that a subject cannot have and dots for slashes; `<source>.event` without a type.
fn event_type(source: &Name, ty: Option<&str>) -> HttpResult<EventType> {
    let ty = ty.unwrap_or("event");
    let text = [source.as_str(), ".", ty].concat();
    // Most types are valid as they are; others are converted.
    if text.len() <= MAX_TYPE_BYTES
        && !ty.contains('/')
        && let Ok(ty) = EventType::parse(text)
    {
        return Ok(ty);
    }
    let fits = |c: char| match c {
        '/' => '.',
        '*' | '>' => '_',
        c if c.is_ascii_graphic() => c,
        _ => '_',
    };
    let mut text = format!("{source}.");
    for c in ty.chars().take(MAX_TYPE_BYTES).map(fits) {
        if c == '.' && text.ends_with('.') {
            text.push('_');
        }
        text.push(c);
    }
    if text.ends_with('.') {
        text.push('_');
    }
    text.truncate(MAX_TYPE_BYTES);
    let text = text.trim_end_matches('.');
    EventType::parse(text).map_err(|error| Problem::new(ProblemType::InvalidEvent, error.to_string()))
}

/// The events of a delivery, split into duplicates and new ones.
#[derive(Default)]
struct Sorted {
    /// Events that were accepted before.
    known: Vec<Event>,
    /// The number of these without an id of the sender's.
    known_by_bytes: usize,
    /// Events to store.
    fresh: Vec<(Identity, Event)>,
}

/// Stores verified deliveries of a source.
pub(crate) struct Ingest<'a> {
    pub(crate) gateway: &'a Gateway,
    pub(crate) source: &'a Name,
    pub(crate) spec: &'a SourceSpec,
    pub(crate) signed_identity: SignedIdentity,
}

impl Ingest<'_> {
    /// Stores the events that were not accepted before, and counts the duplicates. Responds 202 once all are stored.
    pub(crate) async fn store_new(
        self,
        verified: Vec<VerifiedEvent>,
        request: (&HeaderMap, &Bytes),
        now: OffsetDateTime,
    ) -> HttpResult {
        let received = self.events_of(verified, request, now)?;
        let dedupe_store = self.gateway.dedupe_store();
        let signed = self.signed_identity.signed_sha256.as_ref();
        let signed = signed.map(|hash| Identity::of_signed(self.source, hash.as_bytes()));
        let Sorted { known, known_by_bytes, fresh } = self.sort(received);
        let mut receipts: Vec<Receipt> = known.iter().map(Receipt::known).collect();
        if fresh.is_empty() {
            // The sender may have signed it anew, so this signature could be replayed.
            dedupe_store.remember(signed.filter(|key| !self.has(*key)));
        } else {
            if signed.is_some_and(|key| self.has(key)) {
                tracing::debug!(source = %self.source, "webhook refused: the same signed bytes were accepted under another id");
                self.count(DuplicateReason::Signed, fresh.len());
                return Err(Problem::new(
                    ProblemType::Conflict,
                    "a delivery with the same signed bytes was accepted before under another id, so this one may be a recording; if the \
                     sender repeats equal bodies, set `dedupe = \"id\"` for this source",
                ));
            }
            // Claims are per gateway; keys reach other gateways a moment later.
            let _claim = match signed {
                Some(key) => Some(dedupe_store.claim(key).ok_or_else(|| {
                    let detail = "another request is storing the same delivery; retry";
                    Problem::retry_after(ProblemType::InProgress, detail, DUPLICATE_RETRY_AFTER)
                })?),
                None => None,
            };
            let _slot = self.gateway.source_limits().admit(self.source, self.spec)?;
            self.store(fresh, signed, &mut receipts).await?;
        }
        self.count(DuplicateReason::Id, known.len() - known_by_bytes);
        self.count(DuplicateReason::Body, known_by_bytes);
        Ok(match <[Receipt; 1]>::try_from(receipts) {
            Ok([receipt]) => accepted(&receipt),
            Err(receipts) => accepted(&receipts),
        })
    }

    /// The CloudEvents that the request has, for a source of them; else an event for each verified one.
    fn events_of(
        &self,
        verified: Vec<VerifiedEvent>,
        request: (&HeaderMap, &Bytes),
        now: OffsetDateTime,
    ) -> HttpResult<Vec<Received>> {
        let posted = match self.spec.provider {
            Provider::Cloudevents => cloud_events(self.source, self.spec.ids(), request)?,
            _ => None,
        };
        let event_of = |one| event_of((self.source, self.spec), one, now);
        posted.map_or_else(|| verified.into_iter().map(event_of).collect(), Ok)
    }

    /// Splits events into duplicates (accepted before, or repeated in this delivery) and new ones.
    fn sort(&self, received: Vec<Received>) -> Sorted {
        let (origin, dedupe) = (Origin::source(self.source), self.spec.dedupe());
        let mut sorted = Sorted { fresh: Vec::with_capacity(received.len()), ..Sorted::default() };
        let mut here = (received.len() > 1).then(HashSet::new);
        for one in received {
            let id = one.identity(&origin, dedupe);
            let repeated = here.as_mut().is_some_and(|here| !here.insert(id));
            if repeated || dedupe != Dedupe::None && self.knows(id, &one.event) {
                sorted.known_by_bytes += usize::from(one.id_scope == IdScope::ContentHash);
                sorted.known.push(one.event);
            } else {
                sorted.fresh.push((id, one.event));
            }
        }
        sorted
    }

    fn count(&self, reason: DuplicateReason, number: usize) {
        self.gateway.bus().drops().count(DuplicateScope::Source, self.source.as_str(), reason, number);
    }

    /// Whether the delivery with this key was accepted.
    fn has(&self, key: Identity) -> bool {
        self.gateway.dedupe_store().has(key) || self.gateway.spool().has(key)
    }

    /// Whether this event was accepted, also by an earlier version of Nerve.
    fn knows(&self, id: Identity, event: &Event) -> bool {
        let old = || Identity::of_legacy_webhook(self.source, &event.source, &event.id);
        self.gateway.dedupe_store().has_either(id, old) || self.gateway.spool().has(id)
    }

    /// Publishes the events. For a source with `spool`, writes them to disk if NATS is unavailable or events are queued there.
    async fn store(
        &self,
        fresh: Vec<(Identity, Event)>,
        signed: Option<Identity>,
        receipts: &mut Vec<Receipt>,
    ) -> HttpResult<()> {
        let is_queued = self.spec.spool && self.gateway.spool().holds(self.source);
        if !is_queued {
            let before = receipts.len();
            match self.publish(&fresh, receipts).await {
                Ok(()) => {
                    // Without deduplication, nothing looks the keys up.
                    if self.spec.dedupe() != Dedupe::None {
                        self.gateway.dedupe_store().remember(fresh.iter().map(|(id, _)| *id).chain(signed));
                    }
                    return Ok(());
                }
                Err(PublishError::Unavailable(error)) if self.spec.spool => {
                    tracing::debug!(source = %self.source, %error, "webhook written to the spool");
                    receipts.truncate(before);
                }
                Err(error) => return Err(hook_problem(error)),
            }
        }
        for (_, event) in &fresh {
            nerve_events::check(event).map_err(|why| publish_problem(PublishError::Invalid(why)))?;
        }
        receipts.extend(fresh.iter().map(|(_, event)| Receipt::spooled(event)));
        let spooled = Spooled { source: self.source.clone(), events: fresh, signed, tried: !is_queued };
        Box::pin(self.gateway.spool().put(spooled)).await.map_err(|error| self.not_spooled(&error))
    }

    async fn publish(&self, fresh: &[(Identity, Event)], receipts: &mut Vec<Receipt>) -> Result<(), PublishError> {
        let batches = self.gateway.batches();
        let events: Vec<(Identity, &Event)> = fresh.iter().map(|(id, event)| (*id, event)).collect();
        for (_, event) in &events {
            self.gateway.bus().admit(event).await?;
        }
        let mut left = events.as_slice();
        while !left.is_empty() {
            let (count, place) = batches.publish_some(left).await?;
            let (stored, rest) = left.split_at(count);
            // JetStream reports duplicates of single events only, not of batches.
            self.count(DuplicateReason::Window, usize::from(place.is_some_and(|place| place.duplicate)));
            receipts.extend(stored.iter().map(|(_, event)| Receipt::stored(event, place)));
            left = rest;
        }
        Ok(())
    }

    fn not_spooled(&self, error: &SpoolError) -> Problem {
        if let Some(suppressed) = log_limit::due(self.source.as_str(), "spool") {
            tracing::warn!(source = %self.source, error = error as &dyn std::error::Error, suppressed, "a webhook gets 503");
        }
        let detail = match error {
            SpoolError::Full => "NATS is unavailable and the spool is full (gateway.spool_max_bytes); retry later",
            _ => "NATS is unavailable and the spool cannot be written; retry later",
        };
        Problem::retry_after(ProblemType::StorageUnavailable, detail, SPOOL_RETRY_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Name {
        Name::parse("github").unwrap()
    }

    fn verified() -> VerifiedEvent {
        VerifiedEvent {
            id: "d-1".into(),
            id_scope: IdScope::Delivery,
            ty: Some("issues.opened".into()),
            subject: Some("octo/hello".into()),
            content_type: Some("application/json".into()),
            data: Bytes::from_static(b"{}"),
        }
    }

    fn received(dedupe: Dedupe, id_scope: IdScope) -> Received {
        let spec = SourceSpec { dedupe: Some(dedupe), ..SourceSpec::new(Provider::Github) };
        event_of((&source(), &spec), VerifiedEvent { id_scope, ..verified() }, OffsetDateTime::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn identity_depends_on_what_the_id_names() {
        let origin = Origin::source(&source());
        let identity = |dedupe, id_scope| received(dedupe, id_scope).identity(&origin, dedupe);
        let [one, other] = [b"one", b"two"].map(|body| IdScope::of(Ids::Reused, body));
        assert_eq!(identity(Dedupe::Id, IdScope::Delivery), identity(Dedupe::Signed, IdScope::Delivery));
        assert_eq!(identity(Dedupe::Id, one), identity(Dedupe::Id, one));
        assert_ne!(identity(Dedupe::Id, one), identity(Dedupe::Id, other));
        for id_scope in [IdScope::Delivery, IdScope::ContentHash, one] {
            assert_ne!(identity(Dedupe::None, id_scope), identity(Dedupe::None, id_scope), "each is a different event");
        }
        assert_eq!(received(Dedupe::None, IdScope::Delivery).event.id, "d-1", "the sender's id is kept");
        let [first, second] = [(); 2].map(|()| received(Dedupe::None, IdScope::ContentHash).event.id);
        assert!(first != second && first != "d-1");
    }

    #[test]
    fn delivery_becomes_an_event() {
        let event = received(Dedupe::Id, IdScope::Delivery).event;
        assert_eq!((event.id.as_str(), event.source.as_str()), ("d-1", "/hooks/github"));
        assert_eq!(event.ty.subject().as_str(), "events.github.issues.opened");
        assert_eq!(event.subject.as_deref(), Some("octo/hello"));
        assert_eq!(event.extension(PARTITION_KEY), Some("octo/hello"));
        assert_eq!(event.time, Some(OffsetDateTime::UNIX_EPOCH));
    }

    #[test]
    fn every_type_yields_a_valid_subject() {
        let long = "x.".repeat(400);
        let cases = [
            (None, "github.event"),
            (Some("push"), "github.push"),
            (Some("a b*c>d"), "github.a_b_c_d"),
            (Some("ä.b"), "github._.b"),
            (Some("..a."), "github._._.a._"),
            (Some("\r\n"), "github.__"),
            (Some("orders/create"), "github.orders.create"),
            (Some("jira:issue_created"), "github.jira:issue_created"),
        ];
        for (ty, expected) in cases {
            assert_eq!(event_type(&source(), ty).unwrap().as_str(), expected);
        }
        assert!(event_type(&source(), Some(&long)).is_ok());
        let widest = Name::parse("n".repeat(63)).unwrap();
        assert!(event_type(&widest, Some(&".".repeat(400))).is_ok());
    }
}

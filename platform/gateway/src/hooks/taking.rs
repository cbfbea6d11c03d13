//! A verified delivery on its way into the log, or onto disk while the log cannot take it.

use super::super::{
    Gateway,
    problem::{Answer, Problem},
    publish::{Receipt, accepted, hook_problem, publish_problem},
    repeats,
    spool::{SpoolError, Spooled},
};
use super::events::Received;
use http::StatusCode;
use nerve_broker::bus::{DropReason, DropScope, PublishError};
use nerve_core::{Event, Identity, Name, Origin, SourceSpec, manifest::Dedupe};
use nerve_events as event_types;
use nerve_webhooks::{IdNames, Recognition};
use std::{collections::HashSet, time::Duration};

/// When to come back while the same is being stored for another request.
const SOON: Duration = Duration::from_secs(1);
/// When to come back to a spool that is full, or cannot be written.
const ROOM: Duration = Duration::from_secs(30);

/// The events of a delivery.
#[derive(Default)]
struct Sorted {
    /// Those that were accepted before.
    known: Vec<Event>,
    /// How many of these the sender gave no id.
    known_by_bytes: usize,
    /// Those that are to be stored.
    fresh: Vec<(Identity, Event)>,
}

/// A verified delivery.
pub(super) struct Taking<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) source: &'a Name,
    pub(super) spec: &'a SourceSpec,
    pub(super) recognition: Recognition,
}

impl Taking<'_> {
    /// Stores what was not stored before: 202 once all of it is. What is dropped is counted.
    pub(super) async fn take(self, received: Vec<Received>) -> Answer {
        let seen = self.gateway.seen();
        let signed = self.recognition.signed_sha256.as_ref();
        let signed = signed.map(|hash| Identity::of_signed(self.source, hash.as_bytes()));
        let Sorted { known, known_by_bytes, fresh } = self.sort(received);
        let mut receipts: Vec<Receipt> = known.iter().map(Receipt::known).collect();
        if fresh.is_empty() {
            // It may have been signed anew for this sending, and could be replayed as such.
            seen.remember(signed.filter(|key| !self.has(*key)));
        } else {
            if signed.is_some_and(|key| self.has(key)) {
                tracing::debug!(source = %self.source, "a webhook is refused: it was taken in under another id");
                self.count(DropReason::Signed, fresh.len());
                return Err(Problem::new(
                    StatusCode::CONFLICT,
                    "a delivery with the same signed bytes was accepted before under another id, so this one may be a recording; if the \
                     sender repeats equal bodies, set `dedupe = \"id\"` for this source",
                ));
            }
            // Two gateways cannot see each other's claims, but they see each other's keys a moment later.
            let _claim = match signed {
                Some(key) => Some(seen.claim(key).ok_or_else(|| {
                    Problem::unavailable("the same is being stored for another request; try again", SOON)
                })?),
                None => None,
            };
            let _slot = self.gateway.guards().admit(self.source, self.spec)?;
            self.store(fresh, signed, &mut receipts).await?;
        }
        self.count(DropReason::Id, known.len() - known_by_bytes);
        self.count(DropReason::Body, known_by_bytes);
        Ok(match <[Receipt; 1]>::try_from(receipts) {
            Ok([receipt]) => accepted(&receipt),
            Err(receipts) => accepted(&receipts),
        })
    }

    /// Tells what was accepted before, or stands in the same delivery twice, from what was not.
    fn sort(&self, received: Vec<Received>) -> Sorted {
        let (origin, dedupe) = (Origin::source(self.source), self.spec.dedupe());
        let mut sorted = Sorted { fresh: Vec::with_capacity(received.len()), ..Sorted::default() };
        let mut here = (received.len() > 1).then(HashSet::new);
        for one in received {
            let id = one.identity(&origin, dedupe);
            let repeated = here.as_mut().is_some_and(|here| !here.insert(id));
            if repeated || dedupe != Dedupe::None && self.knows(id, &one.event) {
                sorted.known_by_bytes += usize::from(one.id_names == IdNames::Bytes);
                sorted.known.push(one.event);
            } else {
                sorted.fresh.push((id, one.event));
            }
        }
        sorted
    }

    fn count(&self, reason: DropReason, number: usize) {
        self.gateway.bus().drops().count(DropScope::Source, self.source.as_str(), reason, number);
    }

    /// Whether the delivery of this key was accepted.
    fn has(&self, key: Identity) -> bool {
        self.gateway.seen().has(key) || self.gateway.spool().has(key)
    }

    /// Whether this event was accepted, also by an older Nerve.
    fn knows(&self, id: Identity, event: &Event) -> bool {
        let old = || Identity::of_legacy_webhook(self.source, &event.source, &event.id);
        self.gateway.seen().has_either(id, old) || self.gateway.spool().has(id)
    }

    /// Into the log; for a source that spools onto disk, when the log is away or others wait there already.
    async fn store(
        &self,
        fresh: Vec<(Identity, Event)>,
        signed: Option<Identity>,
        receipts: &mut Vec<Receipt>,
    ) -> Answer<()> {
        let waits = self.spec.spool && self.gateway.spool().holds(self.source);
        if !waits {
            let before = receipts.len();
            match self.publish(&fresh, receipts).await {
                Ok(()) => {
                    // What is never a duplicate is never looked for.
                    if self.spec.dedupe() != Dedupe::None {
                        self.gateway.seen().remember(fresh.iter().map(|(id, _)| *id).chain(signed));
                    }
                    return Ok(());
                }
                Err(PublishError::Unavailable(error)) if self.spec.spool => {
                    tracing::debug!(source = %self.source, %error, "a webhook goes to the spool");
                    receipts.truncate(before);
                }
                Err(error) => return Err(hook_problem(error)),
            }
        }
        for (_, event) in &fresh {
            event_types::check(event).map_err(|why| publish_problem(PublishError::Invalid(why)))?;
        }
        receipts.extend(fresh.iter().map(|(_, event)| Receipt::spooled(event)));
        let spooled = Spooled { source: self.source.clone(), events: fresh, signed, tried: !waits };
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
            // Of several that went together JetStream does not say it.
            self.count(DropReason::Window, usize::from(place.is_some_and(|place| place.duplicate)));
            receipts.extend(stored.iter().map(|(_, event)| Receipt::stored(event, place)));
            left = rest;
        }
        Ok(())
    }

    fn not_spooled(&self, error: &SpoolError) -> Problem {
        if let Some(suppressed) = repeats::due(self.source.as_str(), "spool") {
            tracing::warn!(source = %self.source, error = error as &dyn std::error::Error, suppressed, "a webhook is answered 503");
        }
        let detail = match error {
            SpoolError::Full => "the broker is away, and the spool is full; send it again later",
            _ => "the broker is away, and the spool cannot be written; send it again later",
        };
        Problem::unavailable(detail, ROOM)
    }
}

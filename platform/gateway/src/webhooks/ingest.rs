//! Stores the events of a verified delivery: in the event log, or on disk while NATS is unavailable.

use crate::webhooks::events::Received;
use crate::{
    Gateway,
    http::problem::{HttpResult, Problem, ProblemType},
    publish::{Receipt, accepted, hook_problem, publish_problem},
    webhooks::{
        log_limit,
        spool::{SpoolError, Spooled},
    },
};
use nerve_broker::bus::{DuplicateReason, DuplicateScope, PublishError};
use nerve_core::{Event, Identity, Name, Origin, SourceSpec, manifest::Dedupe};
use nerve_webhooks::{IdScope, SignedIdentity};
use std::{collections::HashSet, time::Duration};

/// `Retry-After` while another request stores the same delivery.
const DUPLICATE_RETRY_AFTER: Duration = Duration::from_secs(1);
/// `Retry-After` if the spool is full or cannot be written.
const SPOOL_RETRY_AFTER: Duration = Duration::from_secs(30);

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
    pub(crate) async fn store_new(self, received: Vec<Received>) -> HttpResult {
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

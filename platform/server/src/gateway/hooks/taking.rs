//! A verified delivery on its way into the log, or onto disk while the log cannot take it.

use super::super::{
    Gateway,
    problem::{Answer, Problem},
    publish::{Receipt, accepted, hook_problem, publish_problem},
    spool::{SpoolError, Spooled},
    verify::Identity,
};
use crate::{
    bus::{Mark, PublishError},
    event_types,
};
use http::StatusCode;
use nerve_core::{Event, Name, SourceSpec};
use std::time::Duration;

/// When to come back while the same is being stored for another request.
const SOON: Duration = Duration::from_secs(1);
/// When to come back to a spool that is full, or cannot be written.
const ROOM: Duration = Duration::from_secs(30);

/// A verified delivery.
pub(super) struct Taking<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) source: &'a Name,
    pub(super) spec: &'a SourceSpec,
    pub(super) identity: Identity,
}

impl Taking<'_> {
    /// Stores what was not stored before: 202 once all of it is.
    pub(super) async fn take(self, events: Vec<Event>) -> Answer {
        let seen = self.gateway.seen();
        let signed = self.identity.signed_sha256.as_ref().map(|hash| Mark::of(self.source, "signed", &[hash]));
        let (known, fresh): (Vec<_>, Vec<_>) =
            events.into_iter().map(|event| (self.mark(&event), event)).partition(|(mark, _)| self.has(*mark));
        let mut receipts: Vec<Receipt> = known.iter().map(|(_, event)| Receipt::known(event)).collect();
        if fresh.is_empty() {
            // It may have been signed anew for this sending, and could be replayed as such.
            seen.remember(signed.filter(|mark| !self.has(*mark)));
        } else {
            if signed.is_some_and(|mark| self.has(mark)) {
                tracing::debug!(source = %self.source, "a webhook is refused: it was taken in under another id");
                return Err(Problem::new(StatusCode::CONFLICT, "this was taken in before, under another id"));
            }
            // Two gateways cannot see each other's claims, but they see each other's marks a moment later.
            let _claim = match signed {
                Some(mark) => Some(seen.claim(mark).ok_or_else(|| {
                    Problem::unavailable("the same is being stored for another request; try again", SOON)
                })?),
                None => None,
            };
            let _slot = self.gateway.guards().admit(self.source, self.spec)?;
            self.store(fresh, signed, &mut receipts).await?;
        }
        Ok(match <[Receipt; 1]>::try_from(receipts) {
            Ok([receipt]) => accepted(&receipt),
            Err(receipts) => accepted(&receipts),
        })
    }

    /// Whether this was taken in.
    fn has(&self, mark: Mark) -> bool {
        self.gateway.seen().has(mark) || self.gateway.spool().has(mark)
    }

    fn mark(&self, event: &Event) -> Mark {
        Mark::of(self.source, "id", &[&event.source, "#", &event.id])
    }

    /// Into the log; for a source that spools onto disk, when the log is away or others wait there already.
    async fn store(&self, fresh: Vec<(Mark, Event)>, signed: Option<Mark>, receipts: &mut Vec<Receipt>) -> Answer<()> {
        let waits = self.spec.spool && self.gateway.spool().holds(self.source);
        if !waits {
            let before = receipts.len();
            match self.publish(&fresh, receipts).await {
                Ok(()) => {
                    self.gateway.seen().remember(fresh.iter().map(|(mark, _)| *mark).chain(signed));
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

    async fn publish(&self, fresh: &[(Mark, Event)], receipts: &mut Vec<Receipt>) -> Result<(), PublishError> {
        let batches = self.gateway.batches();
        let events: Vec<&Event> = fresh.iter().map(|(_, event)| event).collect();
        for event in &events {
            self.gateway.bus().admit(event).await?;
        }
        let mut left = events.as_slice();
        while !left.is_empty() {
            let (count, place) = batches.publish_some(left).await?;
            let (stored, rest) = left.split_at(count);
            receipts.extend(stored.iter().map(|event| Receipt::stored(event, place)));
            left = rest;
        }
        Ok(())
    }

    fn not_spooled(&self, error: &SpoolError) -> Problem {
        tracing::warn!(source = %self.source, error = error as &dyn std::error::Error, "a webhook is answered 503");
        let detail = match error {
            SpoolError::Full => "the broker is away, and the spool is full; send it again later",
            _ => "the broker is away, and the spool cannot be written; send it again later",
        };
        Problem::unavailable(detail, ROOM)
    }
}

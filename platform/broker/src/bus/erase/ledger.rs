//! Decides which messages are a tenant's, as a pure function of their headers and data.
//!
//! A message whose data names a collection belongs to it. All others belong to their workflow (`correlationid`): they are the
//! tenant's if all collections named in the workflow are the tenant's. In a workflow of several tenants, a message
//! has the owner of the event that caused it; without a known cause it is kept.

use nerve_core::Identity;
use std::collections::{HashMap, HashSet};

/// The location of a message. Messages are deleted in this order: the log, which connects them, is last, so that the next
/// erasure completes an aborted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Location {
    Runs,
    Timers,
    Dead,
    Answers,
    Events,
}

/// The owner of a message, by its own data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// It names no collection.
    Nobody,
    /// It names one of the tenant's.
    Tenant,
    /// It names another tenant's.
    Other,
}

/// The SHA-256 of a body in the Object Store.
pub(super) type BodyDigest = [u8; 32];

/// A message: its location, and digests of its links to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MessageRecord {
    pub(super) place: Location,
    pub(super) sequence: u64,
    pub(super) owner: Owner,
    /// The workflow.
    pub(super) workflow: Identity,
    /// The event's id.
    pub(super) event: Identity,
    /// The id of the event that caused it.
    pub(super) cause: Option<Identity>,
    /// The referenced body.
    pub(super) body: Option<BodyDigest>,
}

/// The owners of the collections named in a workflow.
#[derive(Debug, Clone, Copy, Default)]
struct WorkflowOwners {
    tenant: bool,
    other: bool,
}

/// All messages that were read and not erased.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// In reading order: the log first, where causes precede their effects.
    rows: Vec<MessageRecord>,
    workflows: HashMap<Identity, WorkflowOwners>,
    /// Ownership of events in workflows of several tenants, by workflow and event.
    lineage: HashMap<(Identity, Identity), bool>,
    /// Bodies referenced by erased messages.
    bodies: HashSet<BodyDigest>,
}

impl Ledger {
    /// Adds a message, and returns the number by which its owner can be set later.
    pub(super) fn add(&mut self, row: MessageRecord) -> usize {
        self.note(row.workflow, row.owner);
        self.rows.push(row);
        self.rows.len() - 1
    }

    /// Sets the owner of a message whose data was not available before.
    pub(super) fn set_owner(&mut self, number: usize, owner: Owner) {
        let Some(row) = self.rows.get_mut(number) else { return };
        row.owner = owner;
        let workflow = row.workflow;
        self.note(workflow, owner);
    }

    fn note(&mut self, workflow: Identity, owner: Owner) {
        match owner {
            Owner::Nobody => {}
            Owner::Tenant => self.workflows.entry(workflow).or_default().tenant = true,
            Owner::Other => self.workflows.entry(workflow).or_default().other = true,
        }
    }

    /// Returns whether a workflow is the tenant's only.
    pub(super) fn belongs_to_tenant(&self, workflow: Identity) -> bool {
        self.workflows.get(&workflow).is_some_and(|named| named.tenant && !named.other)
    }

    /// Removes and returns the tenant's messages.
    pub(super) fn take_tenant_messages(&mut self) -> Vec<MessageRecord> {
        let rows = std::mem::take(&mut self.rows);
        let (taken, kept): (Vec<MessageRecord>, Vec<MessageRecord>) =
            rows.into_iter().partition(|row| self.decide(row));
        self.rows = kept;
        self.bodies.extend(taken.iter().filter_map(|row| row.body));
        taken
    }

    fn decide(&mut self, row: &MessageRecord) -> bool {
        let named = self.workflows.get(&row.workflow).copied().unwrap_or_default();
        if !(named.tenant && named.other) {
            return named.tenant;
        }
        let decided = match row.owner {
            Owner::Tenant => Some(true),
            Owner::Other => Some(false),
            Owner::Nobody => row.cause.and_then(|cause| self.lineage.get(&(row.workflow, cause)).copied()),
        };
        if let Some(belongs_to_tenant) = decided {
            self.lineage.insert((row.workflow, row.event), belongs_to_tenant);
        }
        decided == Some(true)
    }

    /// Messages that are kept, because their workflow has another tenant too and their owner is unknown.
    pub(super) fn undecided(&self) -> usize {
        let is_undecided = |row: &&MessageRecord| {
            let named = self.workflows.get(&row.workflow).copied().unwrap_or_default();
            named.tenant && named.other && !self.lineage.contains_key(&(row.workflow, row.event))
        };
        self.rows.iter().filter(is_undecided).count()
    }

    /// The ids of `erased` events that no kept message has.
    pub(super) fn ids_of(&self, erased: &[MessageRecord]) -> HashSet<Identity> {
        let mut ids: HashSet<Identity> = erased.iter().map(|row| row.event).collect();
        for row in &self.rows {
            ids.remove(&row.event);
        }
        ids
    }

    /// Bodies referenced by erased messages and by no kept message.
    pub(super) fn unreferenced_bodies(&self) -> Vec<BodyDigest> {
        let kept: HashSet<BodyDigest> = self.rows.iter().filter_map(|row| row.body).collect();
        self.bodies.difference(&kept).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Identity {
        Identity::of_copy("test", text)
    }

    fn row(sequence: u64, owner: Owner, workflow: &str, event: &str, cause: Option<&str>) -> MessageRecord {
        let (workflow, event, cause) = (id(workflow), id(event), cause.map(id));
        MessageRecord { place: Location::Events, sequence, owner, workflow, event, cause, body: None }
    }

    fn taken(ledger: &mut Ledger) -> Vec<u64> {
        ledger.take_tenant_messages().iter().map(|row| row.sequence).collect()
    }

    #[test]
    fn workflow_of_one_tenant_is_erased_completely() {
        let mut ledger = Ledger::default();
        for row in [
            row(1, Owner::Nobody, "w", "before", None),
            row(2, Owner::Tenant, "w", "document", None),
            row(3, Owner::Nobody, "w", "notified", Some("document")),
            row(4, Owner::Other, "v", "document", None),
            row(5, Owner::Nobody, "v", "notified", Some("document")),
            row(6, Owner::Nobody, "u", "unrelated", None),
        ] {
            ledger.add(row);
        }
        assert_eq!((taken(&mut ledger), ledger.undecided()), (vec![1, 2, 3], 0));
        assert!(
            ledger.belongs_to_tenant(id("w"))
                && !ledger.belongs_to_tenant(id("v"))
                && !ledger.belongs_to_tenant(id("u"))
        );
        // Later messages of the same workflow belong to it.
        ledger.add(row(7, Owner::Nobody, "w", "late", Some("notified")));
        ledger.add(row(8, Owner::Nobody, "v", "late", Some("notified")));
        assert_eq!((taken(&mut ledger), taken(&mut ledger)), (vec![7], vec![]));
    }

    #[test]
    fn shared_workflow_is_erased_by_causes_only() {
        let mut ledger = Ledger::default();
        for row in [
            row(1, Owner::Nobody, "w", "root", None),
            row(2, Owner::Tenant, "w", "ours", Some("root")),
            row(3, Owner::Other, "w", "theirs", Some("root")),
            row(4, Owner::Nobody, "w", "of-ours", Some("ours")),
            row(5, Owner::Nobody, "w", "of-theirs", Some("theirs")),
            row(6, Owner::Nobody, "w", "of-of-ours", Some("of-ours")),
            row(7, Owner::Other, "w", "theirs-of-ours", Some("ours")),
            row(8, Owner::Nobody, "w", "unconnected", Some("elsewhere")),
        ] {
            ledger.add(row);
        }
        assert_eq!(taken(&mut ledger), [2, 4, 6]);
        assert_eq!(ledger.undecided(), 2, "the root, and the one whose cause is unknown");
        ledger.add(row(9, Owner::Nobody, "w", "late", Some("of-of-ours")));
        assert_eq!(taken(&mut ledger), [9]);
    }

    #[test]
    fn owner_that_is_set_later_decides() {
        let mut ledger = Ledger::default();
        let large = ledger.add(row(1, Owner::Nobody, "w", "large", None));
        ledger.add(row(2, Owner::Nobody, "w", "next", Some("large")));
        ledger.set_owner(large, Owner::Tenant);
        assert_eq!(taken(&mut ledger), [1, 2]);
    }

    #[test]
    fn body_and_id_shared_with_a_kept_message_are_kept() {
        let mut ledger = Ledger::default();
        let with = |row: MessageRecord, body: u8| MessageRecord { body: Some([body; 32]), ..row };
        ledger.add(with(row(1, Owner::Tenant, "w", "a", None), 1));
        ledger.add(with(row(2, Owner::Tenant, "w", "b", None), 2));
        ledger.add(with(row(3, Owner::Other, "v", "b", None), 2));
        let erased = ledger.take_tenant_messages();
        assert_eq!(ledger.ids_of(&erased), HashSet::from([id("a")]));
        assert_eq!(ledger.unreferenced_bodies(), [[1; 32]]);
    }
}

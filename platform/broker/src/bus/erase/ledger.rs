//! Which messages are a tenant's: a pure decision over what their headers and their data say.
//!
//! A message whose data names a collection belongs to it. All others belong to their workflow (`correlationid`): they are the
//! tenant's where every collection that is named there is the tenant's. Where a workflow is of several tenants, a message
//! belongs to whom the event belongs that caused it; where no cause says, it stays.

use nerve_core::Identity;
use std::collections::{HashMap, HashSet};

/// Where a message is. In this order the messages of a tenant are deleted: the log, which connects them, comes last, so that an
/// erasure that was cut off is completed by the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Place {
    Runs,
    Timers,
    Dead,
    Answers,
    Events,
}

/// Whom a message belongs to, by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// It names no collection.
    Nobody,
    /// It names one of the tenant's.
    Tenant,
    /// It names another one.
    Other,
}

/// The SHA-256 of a body in the Object Store.
pub(super) type BodyDigest = [u8; 32];

/// One message: its place, and digests of what connects it with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) place: Place,
    pub(super) sequence: u64,
    pub(super) owner: Owner,
    /// Of its workflow.
    pub(super) workflow: Identity,
    /// Of its event's id.
    pub(super) event: Identity,
    /// Of the id of the event that caused it.
    pub(super) cause: Option<Identity>,
    /// The body that it refers to.
    pub(super) body: Option<BodyDigest>,
}

/// Whose collections are named in a workflow.
#[derive(Debug, Clone, Copy, Default)]
struct Named {
    tenant: bool,
    other: bool,
}

/// Every message that was read and not erased since.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// In the order in which they were read: the log first, where causes come before their effects.
    rows: Vec<Row>,
    workflows: HashMap<Identity, Named>,
    /// Whether the events of workflows of several tenants are the tenant's, by workflow and event.
    lineage: HashMap<(Identity, Identity), bool>,
    /// Bodies that erased messages referred to.
    bodies: HashSet<BodyDigest>,
}

impl Ledger {
    /// Adds a message, and returns by which number its owner can be named later.
    pub(super) fn add(&mut self, row: Row) -> usize {
        self.note(row.workflow, row.owner);
        self.rows.push(row);
        self.rows.len() - 1
    }

    /// Says whom a message belongs to whose data was not at hand.
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

    /// Whether a workflow is the tenant's and nobody else's.
    pub(super) fn is_tenants(&self, workflow: Identity) -> bool {
        self.workflows.get(&workflow).is_some_and(|named| named.tenant && !named.other)
    }

    /// Takes out the messages of the tenant.
    pub(super) fn take_tenants(&mut self) -> Vec<Row> {
        let rows = std::mem::take(&mut self.rows);
        let (taken, kept): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| self.decide(row));
        self.rows = kept;
        self.bodies.extend(taken.iter().filter_map(|row| row.body));
        taken
    }

    fn decide(&mut self, row: &Row) -> bool {
        let named = self.workflows.get(&row.workflow).copied().unwrap_or_default();
        if !(named.tenant && named.other) {
            return named.tenant;
        }
        let decided = match row.owner {
            Owner::Tenant => Some(true),
            Owner::Other => Some(false),
            Owner::Nobody => row.cause.and_then(|cause| self.lineage.get(&(row.workflow, cause)).copied()),
        };
        if let Some(is_tenants) = decided {
            self.lineage.insert((row.workflow, row.event), is_tenants);
        }
        decided == Some(true)
    }

    /// Messages that stay, as their workflow is of another tenant too and nothing says whose they are.
    pub(super) fn undecided(&self) -> usize {
        let is_undecided = |row: &&Row| {
            let named = self.workflows.get(&row.workflow).copied().unwrap_or_default();
            named.tenant && named.other && !self.lineage.contains_key(&(row.workflow, row.event))
        };
        self.rows.iter().filter(is_undecided).count()
    }

    /// The ids of `erased` events that no message has which stays.
    pub(super) fn ids_of(&self, erased: &[Row]) -> HashSet<Identity> {
        let mut ids: HashSet<Identity> = erased.iter().map(|row| row.event).collect();
        for row in &self.rows {
            ids.remove(&row.event);
        }
        ids
    }

    /// Bodies that erased messages referred to, and that no message refers to which stays.
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

    fn row(sequence: u64, owner: Owner, workflow: &str, event: &str, cause: Option<&str>) -> Row {
        let (workflow, event, cause) = (id(workflow), id(event), cause.map(id));
        Row { place: Place::Events, sequence, owner, workflow, event, cause, body: None }
    }

    fn taken(ledger: &mut Ledger) -> Vec<u64> {
        ledger.take_tenants().iter().map(|row| row.sequence).collect()
    }

    #[test]
    fn workflow_of_one_tenant_is_erased_whole() {
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
        assert!(ledger.is_tenants(id("w")) && !ledger.is_tenants(id("v")) && !ledger.is_tenants(id("u")));
        // What comes later of the same workflow belongs to it.
        ledger.add(row(7, Owner::Nobody, "w", "late", Some("notified")));
        ledger.add(row(8, Owner::Nobody, "v", "late", Some("notified")));
        assert_eq!((taken(&mut ledger), taken(&mut ledger)), (vec![7], vec![]));
    }

    #[test]
    fn shared_workflow_is_erased_by_causes_and_the_rest_stays() {
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
    fn owner_that_is_known_later_decides() {
        let mut ledger = Ledger::default();
        let large = ledger.add(row(1, Owner::Nobody, "w", "large", None));
        ledger.add(row(2, Owner::Nobody, "w", "next", Some("large")));
        ledger.set_owner(large, Owner::Tenant);
        assert_eq!(taken(&mut ledger), [1, 2]);
    }

    #[test]
    fn body_and_id_that_a_staying_message_has_too_stay() {
        let mut ledger = Ledger::default();
        let with = |row: Row, body: u8| Row { body: Some([body; 32]), ..row };
        ledger.add(with(row(1, Owner::Tenant, "w", "a", None), 1));
        ledger.add(with(row(2, Owner::Tenant, "w", "b", None), 2));
        ledger.add(with(row(3, Owner::Other, "v", "b", None), 2));
        let erased = ledger.take_tenants();
        assert_eq!(ledger.ids_of(&erased), HashSet::from([id("a")]));
        assert_eq!(ledger.unreferenced_bodies(), [[1; 32]]);
    }
}

//! Finds and deletes all data of a tenant: events, dead letters, answers, pending retries and large bodies.
//!
//! # Layout
//! - `ledger`: decides which messages are the tenant's. `survey`: reads the streams for that.
//! - `remove`: deletes messages, records and bodies so that the broker overwrites them.
//! - `views`: lists and deletes documents in the bucket `views`.
//!
//! # Flow
//! The streams are read once, and the tenant's messages are deleted, the log last. Messages stored meanwhile are read again, until
//! no more messages of the tenant arrive.

mod ledger;
mod remove;
mod survey;
mod views;

pub use views::StoredView;

use super::error::ResultExt as _;
use super::{Bus, BusError};
use ledger::{Location, MessageRecord, Owner};
use nerve_core::{Event, Identity};
use nerve_events::{EventData, control::CollectionErased};
use remove::{LinkedRecords, Object};
use serde::Serialize;
use std::{collections::HashSet, ops::AddAssign, time::Duration};
use survey::{Survey, key};
use time::OffsetDateTime;

/// Maximum passes over new messages: a tenant with active callers never ends.
const MAX_PASSES: usize = 8;
/// Minimum age of an unreferenced body before it is deleted. A body is stored before its event is published, which takes at
/// most the broker's timeout.
const MIN_BODY_AGE: Duration = Duration::from_secs(10);

/// Counts of a tenant's messages, records and bodies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ErasedMessages {
    /// Answers.
    pub answers: u64,
    /// Parts of answers, in ANSWERS.
    pub answer_parts: u64,
    /// Events in the log.
    pub events: u64,
    /// Dead letters, including those being redriven.
    pub dead_letters: u64,
    /// Deliveries to sinks that wait for a retry.
    pub delayed: u64,
    /// Bodies in the Object Store.
    pub large_bodies: u64,
    /// Records of failed attempts, in RUNS, LOGS and ATTEMPTS.
    pub attempts: u64,
    /// Requests with an `Idempotency-Key`.
    pub requests: u64,
}

impl AddAssign for ErasedMessages {
    fn add_assign(&mut self, more: Self) {
        self.answers += more.answers;
        self.answer_parts += more.answer_parts;
        self.events += more.events;
        self.dead_letters += more.dead_letters;
        self.delayed += more.delayed;
        self.large_bodies += more.large_bodies;
        self.attempts += more.attempts;
        self.requests += more.requests;
    }
}

impl ErasedMessages {
    /// Returns whether all counts are zero.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The outcome of an erasure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErasureOutcome {
    /// The deleted messages.
    pub erased: ErasedMessages,
    /// Whether no more messages of the tenant arrived at the end.
    pub is_complete: bool,
}

/// A tenant's data, found and not yet deleted.
pub struct Erasure<'t> {
    bus: Bus,
    survey: Survey<'t>,
    /// The next messages to delete.
    found: ErasureBatch,
    /// Answers that are already counted.
    answers: HashSet<Identity>,
}

/// Messages to delete, with the records about them.
#[derive(Default)]
struct ErasureBatch {
    rows: Vec<MessageRecord>,
    linked: LinkedRecords,
}

impl ErasureBatch {
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.linked.is_empty()
    }

    fn count(&self, place: Location) -> u64 {
        let count = self.rows.iter().filter(|row| row.place == place).count();
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    /// The sequences at a location that name a collection, or that do not, effects before their causes.
    fn sequences(&self, place: Location, naming: bool) -> impl Iterator<Item = u64> {
        let is_of = move |row: &&MessageRecord| row.place == place && (row.owner == Owner::Tenant) == naming;
        self.rows.iter().rev().filter(is_of).map(|row| row.sequence)
    }
}

impl Bus {
    /// Finds all data of the tenant whose collections `owns` accepts, and changes nothing.
    pub async fn find_tenant<'t>(&self, owns: &'t (dyn Fn(&str) -> bool + Sync)) -> Result<Erasure<'t>, BusError> {
        let survey = Survey::new(self, owns);
        let mut erasure =
            Erasure { bus: self.clone(), survey, found: ErasureBatch::default(), answers: HashSet::new() };
        erasure.scan().await?;
        Ok(erasure)
    }

    /// Publishes the event about an erased tenant, with the counts.
    ///
    /// # Errors
    /// If it cannot be published.
    pub async fn publish_erased(&self, collection: &str, erased: &impl Serialize) -> Result<(), BusError> {
        let what = || format!("publishing that {collection} was erased");
        let erased = serde_json::to_value(erased).and_then(serde_json::from_value).refused(what)?;
        let data = serde_json::to_vec(&CollectionErased { collection: collection.to_owned(), erased }).refused(what)?;
        let (id, ty) = (uuid::Uuid::now_v7().to_string(), CollectionErased::event_type());
        let mut event = Event::new(id, "/nerve/collections", ty).with_data("application/json", data);
        event.time = Some(OffsetDateTime::now_utc());
        let published = self.publish_own(&event).await;
        published.map(drop).unavailable(what)
    }
}

impl Erasure<'_> {
    /// Reads the messages stored since the last pass, and selects the tenant's.
    async fn scan(&mut self) -> Result<(), BusError> {
        self.survey.read().await?;
        let rows = self.survey.ledger.take_tenant_messages();
        let ids = self.survey.ledger.ids_of(&rows);
        let linked = self.bus.linked(&rows, &ids).await?;
        self.found = ErasureBatch { rows, linked };
        Ok(())
    }

    /// Counts the messages found and not yet deleted.
    pub fn count(&self) -> ErasedMessages {
        let ErasureBatch { rows, linked } = &self.found;
        let of = |place| self.found.count(place);
        let in_answers = rows.iter().filter(|row| row.place == Location::Answers).map(|row| row.workflow);
        let answers: HashSet<Identity> = in_answers.filter(|answer| !self.answers.contains(answer)).collect();
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        ErasedMessages {
            answers: number(answers.len()),
            answer_parts: of(Location::Answers),
            events: of(Location::Events),
            dead_letters: of(Location::Dead),
            delayed: of(Location::Timers),
            large_bodies: number(self.survey.ledger.unreferenced_bodies().len()),
            attempts: of(Location::Runs) + number(linked.logs.len() + linked.attempts.len()),
            requests: number(linked.requests.len()),
        }
    }

    /// Returns whether an answer is the tenant's.
    pub fn has_answer(&self, id: &str) -> bool {
        self.survey.ledger.belongs_to_tenant(key(id))
    }

    /// Events and dead letters that are kept although the tenant takes part in their workflow: another tenant does too, and
    /// their owner is unknown.
    pub fn undecided(&self) -> usize {
        self.survey.ledger.undecided()
    }

    /// Deletes the messages found and those that arrive meanwhile, and returns the counts.
    ///
    /// The outcome is incomplete if messages of the tenant keep arriving.
    ///
    /// # Errors
    /// If the broker does not respond or refuses. The next erasure finds the rest.
    pub async fn run(mut self) -> Result<ErasureOutcome, BusError> {
        let mut erased = ErasedMessages::default();
        for _ in 0..MAX_PASSES {
            if self.found.is_empty() {
                let objects = self.settled_bodies().await?;
                self.scan().await?;
                if self.found.is_empty() {
                    erased.large_bodies += self.remove_bodies(objects).await?;
                    return Ok(ErasureOutcome { erased, is_complete: true });
                }
            }
            erased += ErasedMessages { large_bodies: 0, ..self.count() };
            let parts = self.found.rows.iter().filter(|row| row.place == Location::Answers);
            self.answers.extend(parts.map(|row| row.workflow));
            self.bus.remove(&self.found).await?;
            self.scan().await?;
        }
        Ok(ErasureOutcome { erased, is_complete: false })
    }

    /// Unreferenced bodies that are old enough that no event with a reference to them is about to be
    /// published.
    async fn settled_bodies(&self) -> Result<Vec<Object>, BusError> {
        let objects = self.bus.objects(self.survey.ledger.unreferenced_bodies()).await?;
        let newest = objects.iter().map(|object| object.stored).max();
        let age = newest.map(|stored| (OffsetDateTime::now_utc() - stored).try_into().unwrap_or(Duration::ZERO));
        if let Some(wait) = age.and_then(|age: Duration| MIN_BODY_AGE.checked_sub(age)) {
            tokio::time::sleep(wait).await;
        }
        Ok(objects)
    }

    /// Deletes the bodies that are still unreferenced.
    async fn remove_bodies(&mut self, objects: Vec<Object>) -> Result<u64, BusError> {
        let unreferenced: HashSet<_> = self.survey.ledger.unreferenced_bodies().into_iter().collect();
        let objects: Vec<Object> = objects.into_iter().filter(|object| unreferenced.contains(&object.digest)).collect();
        for object in &objects {
            self.bus.remove_object(object).await?;
        }
        Ok(u64::try_from(objects.len()).unwrap_or(u64::MAX))
    }
}

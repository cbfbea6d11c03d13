//! Everything of a tenant, found and deleted: its events and dead letters, its answers, what waits for it, its large bodies.
//!
//! # Layout
//! - `ledger`: which messages are the tenant's. `survey`: what the streams say of that.
//! - `remove`: messages, records and bodies, deleted so that the broker overwrites them.
//! - `views`: documents in the bucket `views`, listed and deleted.
//!
//! # Flow
//! The streams are read once, and the tenant's messages are deleted, the log last. Then what was stored meanwhile is read, until
//! nothing of the tenant comes any more.

mod ledger;
mod remove;
mod survey;
mod views;

pub use views::StoredView;

use super::{Bus, BusError};
use ledger::{Owner, Place, Row};
use nerve_core::{Event, EventType, Identity};
use remove::{Linked, Object};
use serde::Serialize;
use std::{collections::HashSet, ops::AddAssign, time::Duration};
use survey::{ERASED, Survey, key};
use time::OffsetDateTime;

/// How often what was stored meanwhile is read at most: a tenant whose callers go on is never done.
const MAX_PASSES: usize = 8;
/// The age from which on a body belongs to an event that was published, if it belongs to any: a body is stored first, and
/// publishing its event takes no longer than the broker may take to answer.
const BODY_SETTLED: Duration = Duration::from_secs(10);

/// How many messages, records and bodies of a tenant there are, or were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ErasedMessages {
    /// Answers.
    pub answers: u64,
    /// Their parts, in ANSWERS.
    pub answer_parts: u64,
    /// Events in the log.
    pub events: u64,
    /// Dead letters, those on their way back among them.
    pub dead_letters: u64,
    /// Deliveries to sinks that wait for their next attempt.
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
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What came of an erasure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErasureOutcome {
    /// What was deleted.
    pub erased: ErasedMessages,
    /// Whether nothing of the tenant came any more at the end.
    pub is_complete: bool,
}

/// A tenant whose messages were looked for.
pub struct Erasure<'t> {
    bus: Bus,
    survey: Survey<'t>,
    /// What is to be deleted next.
    found: Found,
    /// Answers that are counted already.
    answers: HashSet<Identity>,
}

/// Messages that are to be deleted, with the records about them.
#[derive(Default)]
struct Found {
    rows: Vec<Row>,
    linked: Linked,
}

impl Found {
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.linked.is_empty()
    }

    fn count(&self, place: Place) -> u64 {
        let count = self.rows.iter().filter(|row| row.place == place).count();
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    /// The messages of a place that name a collection, or that name none, effects before their causes.
    fn sequences(&self, place: Place, naming: bool) -> impl Iterator<Item = u64> {
        let is_of = move |row: &&Row| row.place == place && (row.owner == Owner::Tenant) == naming;
        self.rows.iter().rev().filter(is_of).map(|row| row.sequence)
    }
}

impl Bus {
    /// Looks for everything of the tenant whose collections `owns` names, and changes nothing.
    pub async fn find_tenant<'t>(&self, owns: &'t (dyn Fn(&str) -> bool + Sync)) -> Result<Erasure<'t>, BusError> {
        let survey = Survey::new(self, owns);
        let mut erasure = Erasure { bus: self.clone(), survey, found: Found::default(), answers: HashSet::new() };
        erasure.look().await?;
        Ok(erasure)
    }

    /// Publishes the event that says that a tenant was erased, with what was counted.
    ///
    /// # Errors
    /// When it cannot be published.
    pub async fn publish_erased(&self, collection: &str, erased: &impl Serialize) -> Result<(), BusError> {
        let what = || format!("publishing that {collection} was erased");
        let ty = EventType::parse(ERASED).map_err(|error| BusError::refused(what(), error))?;
        let data = serde_json::json!({"collection": collection, "erased": erased});
        let event = Event::new(uuid::Uuid::now_v7().to_string(), "/nerve/collections", ty);
        let mut event = event.with_data("application/json", data.to_string().into_bytes());
        event.time = Some(OffsetDateTime::now_utc());
        let published = self.publish_own(&event).await;
        published.map(drop).map_err(|error| BusError::unavailable(what(), error))
    }
}

impl Erasure<'_> {
    /// Reads what was stored since the last time, and finds what of it is the tenant's.
    async fn look(&mut self) -> Result<(), BusError> {
        self.survey.read().await?;
        let rows = self.survey.ledger.take_tenants();
        let ids = self.survey.ledger.ids_of(&rows);
        let linked = self.bus.linked(&rows, &ids).await?;
        self.found = Found { rows, linked };
        Ok(())
    }

    /// Counts what was found and is not deleted yet.
    pub fn count(&self) -> ErasedMessages {
        let Found { rows, linked } = &self.found;
        let of = |place| self.found.count(place);
        let in_answers = rows.iter().filter(|row| row.place == Place::Answers).map(|row| row.workflow);
        let answers: HashSet<Identity> = in_answers.filter(|answer| !self.answers.contains(answer)).collect();
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        ErasedMessages {
            answers: number(answers.len()),
            answer_parts: of(Place::Answers),
            events: of(Place::Events),
            dead_letters: of(Place::Dead),
            delayed: of(Place::Timers),
            large_bodies: number(self.survey.ledger.unreferenced_bodies().len()),
            attempts: of(Place::Runs) + number(linked.logs.len() + linked.attempts.len()),
            requests: number(linked.requests.len()),
        }
    }

    /// Whether an answer is the tenant's.
    pub fn has_answer(&self, id: &str) -> bool {
        self.survey.ledger.is_tenants(key(id))
    }

    /// Events and dead letters that stay although the tenant has a part in their workflow: another tenant has one too, and
    /// nothing says whose they are.
    pub fn undecided(&self) -> usize {
        self.survey.ledger.undecided()
    }

    /// Deletes what was found, and what comes meanwhile, and says how much it was.
    ///
    /// It ends incomplete where the tenant's data do not cease to come.
    ///
    /// # Errors
    /// When the broker does not answer, or refuses. What was not deleted is found by the next erasure.
    pub async fn run(mut self) -> Result<ErasureOutcome, BusError> {
        let mut erased = ErasedMessages::default();
        for _ in 0..MAX_PASSES {
            if self.found.is_empty() {
                let objects = self.settled_bodies().await?;
                self.look().await?;
                if self.found.is_empty() {
                    erased.large_bodies += self.remove_bodies(objects).await?;
                    return Ok(ErasureOutcome { erased, is_complete: true });
                }
            }
            erased += ErasedMessages { large_bodies: 0, ..self.count() };
            let parts = self.found.rows.iter().filter(|row| row.place == Place::Answers);
            self.answers.extend(parts.map(|row| row.workflow));
            self.bus.remove(&self.found).await?;
            self.look().await?;
        }
        Ok(ErasureOutcome { erased, is_complete: false })
    }

    /// The bodies that nothing refers to any more, once they are old enough that no event which refers to them is about to be
    /// published.
    async fn settled_bodies(&self) -> Result<Vec<Object>, BusError> {
        let objects = self.bus.objects(self.survey.ledger.unreferenced_bodies()).await?;
        let newest = objects.iter().map(|object| object.stored).max();
        let age = newest.map(|stored| (OffsetDateTime::now_utc() - stored).try_into().unwrap_or(Duration::ZERO));
        if let Some(wait) = age.and_then(|age: Duration| BODY_SETTLED.checked_sub(age)) {
            tokio::time::sleep(wait).await;
        }
        Ok(objects)
    }

    /// Deletes those of the bodies that nothing refers to still.
    async fn remove_bodies(&mut self, objects: Vec<Object>) -> Result<u64, BusError> {
        let unreferenced: HashSet<_> = self.survey.ledger.unreferenced_bodies().into_iter().collect();
        let objects: Vec<Object> = objects.into_iter().filter(|object| unreferenced.contains(&object.digest)).collect();
        for object in &objects {
            self.bus.remove_object(object).await?;
        }
        Ok(u64::try_from(objects.len()).unwrap_or(u64::MAX))
    }
}

//! Quotas of collections: what a gateway refuses before it stores anything.
//!
//! The rate of a collection is one for all gateways. It is a document of the bucket `views`: the moment at which the next event
//! would be due if they came evenly spread, as in [`nerve_core::rate_limit`]. A gateway takes several events ahead at once, so that most cost no
//! round trip; what it does not use within [`TAKEN_AHEAD_FOR`] is lost. So the rate is never exceeded, as far as the gateways'
//! clocks agree.
//!
//! What documents take is known by what the index recorded last. Documents on their way are not in it: the index refuses what does
//! not fit, exactly, and the event becomes a dead letter.

use super::{
    Gateway, LATER,
    problem::{Answer, Problem},
    publish::check_connected,
};
use http::{HeaderValue, StatusCode, header};
use nerve_core::{
    Event, EventType, Name,
    function::Views,
    manifest::RuntimeSpec,
    quota::{CollectionUsage, Quota, QuotaExceeded, QuotaKind, rate_key, seconds_until_midnight, usage_key},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use time::OffsetDateTime;
use tokio::time::Instant;

/// How long events that were taken ahead may be used.
const TAKEN_AHEAD_FOR: Duration = Duration::from_secs(5);
/// The part of a minute's events that is taken ahead at once.
const AHEAD_PART: u64 = 16;
/// How often a rate is read again that another gateway writes.
const MAX_TRIES: usize = 16;
/// Microseconds of a minute.
const MINUTE_US: i64 = 60_000_000;
/// Collections whose events taken ahead are remembered.
const REMEMBERED: usize = 4096;
/// How long the index may take to say whether it has a document.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// What was taken ahead of each collection's rate.
#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<HashMap<String, Arc<tokio::sync::Mutex<Ahead>>>>);

#[derive(Debug)]
struct Ahead {
    events: u64,
    until: Instant,
    /// The bound that they were taken by.
    bound: u64,
}

/// How far ahead of its rate a collection is, as it is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct StoredRate {
    /// When the next event would be due, in microseconds since 1970.
    next: i64,
}

impl StoredRate {
    /// Takes some events at `now`, or says after how many microseconds there is one.
    fn take(&mut self, bound: u64, now: i64) -> Result<u64, i64> {
        let apart = (MINUTE_US / i64::try_from(bound).unwrap_or(i64::MAX)).max(1);
        // A clock that was wrong must not bar a collection for longer than a minute.
        let ahead = (self.next - now).clamp(0, MINUTE_US);
        let free = (MINUTE_US - ahead) / apart;
        if free == 0 {
            return Err(ahead + apart - MINUTE_US);
        }
        let taken = free.min(i64::try_from(bound.div_ceil(AHEAD_PART)).unwrap_or(1));
        self.next = now + ahead + taken * apart;
        Ok(u64::try_from(taken).unwrap_or(1))
    }
}

impl Rates {
    fn of(&self, collection: &str) -> Arc<tokio::sync::Mutex<Ahead>> {
        let mut rates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if rates.len() >= REMEMBERED && !rates.contains_key(collection) {
            rates.clear();
        }
        let none = || Arc::new(tokio::sync::Mutex::new(Ahead { events: 0, until: Instant::now(), bound: 0 }));
        Arc::clone(rates.entry(collection.to_owned()).or_insert_with(none))
    }
}

/// What a request does to a collection.
pub(super) enum Wanted<'r> {
    /// Stores a document of this name, whose text has so many bytes as far as that is known.
    Document(&'r str, u64),
    /// Asks a question.
    Question,
    /// Anything else that becomes an event.
    Event,
}

impl Gateway {
    /// Refuses what is over a quota of its collection; nothing of it is stored then.
    pub(super) async fn check_quota(&self, collection: &str, wanted: Wanted<'_>) -> Answer<()> {
        let quota = self.catalogue().quotas.of(collection);
        if !quota.is_limited() {
            return Ok(());
        }
        check_connected(self.bus())?;
        if !matches!(wanted, Wanted::Event) && (quota.limits_documents() || quota.tokens_per_day.is_some()) {
            let usage = self.usage(collection).await?;
            show(collection, quota, &usage);
            usage.check_tokens(quota, collection, OffsetDateTime::now_utc()).map_err(|over| refuse(&over))?;
            if let Wanted::Document(document, bytes) = wanted
                && let Err(over) = usage.check_document(quota, collection, bytes)
                && !self.has_document(collection, document).await
            {
                return Err(refuse(&over));
            }
        }
        match quota.limit(QuotaKind::EventsPerMinute) {
            Some(bound) => self.take_event(collection, bound).await,
            None => Ok(()),
        }
    }

    async fn usage(&self, collection: &str) -> Answer<CollectionUsage> {
        let view = self.bus().view(&usage_key(collection)).await.map_err(|_| unknown())?;
        Ok(view.and_then(|view| serde_json::from_slice(&view.data).ok()).unwrap_or_default())
    }

    /// Whether the index has a document, whose new content may take the place of the old one: then the index decides.
    async fn has_document(&self, collection: &str, document: &str) -> bool {
        #[derive(Deserialize)]
        struct Has {
            replaced: bool,
        }
        let catalogue = self.catalogue();
        let is_index =
            |run: &RuntimeSpec| matches!(run, RuntimeSpec::Builtin { function, .. } if function == "rag/index");
        let index = catalogue.functions.values().find(|entry| is_index(&entry.record.spec.run));
        let (Some(index), Ok(ty)) = (index, EventType::parse("document.check_requested")) else { return false };
        let data = serde_json::json!({"documents": [{"collection": collection, "document": document}]});
        let event = Event::new(uuid::Uuid::now_v7().to_string(), "/nerve/quotas", ty);
        let event = event.with_data("application/json", data.to_string().into_bytes());
        let name: &Name = &index.name;
        let answered = self.bus().invoke(name, &event, CHECK_TIMEOUT).await.unwrap_or_default();
        let has = answered.first().and_then(|answer| serde_json::from_slice::<Has>(&answer.data).ok());
        has.is_some_and(|has| has.replaced)
    }

    async fn take_event(&self, collection: &str, bound: u64) -> Answer<()> {
        let ahead = self.part.shared.rates.of(collection);
        let mut ahead = ahead.lock().await;
        if ahead.events > 0 && ahead.bound == bound && Instant::now() < ahead.until {
            ahead.events -= 1;
            return Ok(());
        }
        for _ in 0..MAX_TRIES {
            let view = self.bus().view(&rate_key(collection)).await.map_err(|_| unknown())?;
            let stored = view.as_ref().and_then(|view| serde_json::from_slice(&view.data).ok());
            let mut rate: StoredRate = stored.unwrap_or_default();
            let now = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000;
            let taken = match rate.take(bound, i64::try_from(now).unwrap_or_default()) {
                Ok(taken) => taken,
                Err(wait) => {
                    let over = QuotaExceeded {
                        collection: collection.to_owned(),
                        kind: QuotaKind::EventsPerMinute,
                        limit: bound,
                    };
                    let seconds = u64::try_from(wait).unwrap_or_default().div_ceil(1_000_000).max(1);
                    return Err(refuse(&over).with(header::RETRY_AFTER, HeaderValue::from(seconds)));
                }
            };
            let data = serde_json::to_vec(&rate).unwrap_or_default();
            let revision = view.map(|view| view.revision);
            if self.bus().put_view(&rate_key(collection), data.into(), revision).await.map_err(|_| unknown())? {
                *ahead = Ahead { events: taken - 1, until: Instant::now() + TAKEN_AHEAD_FOR, bound };
                return Ok(());
            }
        }
        Err(unknown())
    }
}

fn unknown() -> Problem {
    Problem::unavailable("the quota of this collection cannot be looked up now; try again", LATER)
}

fn refuse(over: &QuotaExceeded) -> Problem {
    let labels = [("collection", over.collection.clone()), ("quota", over.kind.name().to_owned())];
    metrics::counter!("nerve_collection_refused_total", &labels).increment(1);
    let detail = format!("{over}; nothing was stored");
    match over.kind {
        QuotaKind::Documents | QuotaKind::DocumentsBytes => Problem::new(StatusCode::INSUFFICIENT_STORAGE, detail),
        QuotaKind::EventsPerMinute => Problem::new(StatusCode::TOO_MANY_REQUESTS, detail),
        QuotaKind::TokensPerDay => {
            let wait = HeaderValue::from(seconds_until_midnight(OffsetDateTime::now_utc()));
            Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).with(header::RETRY_AFTER, wait)
        }
    }
}

/// Shows in metrics what a collection with a quota has used, and of what.
fn show(collection: &str, quota: Quota, usage: &CollectionUsage) {
    let used = [
        (QuotaKind::Documents, usage.documents),
        (QuotaKind::DocumentsBytes, usage.documents_bytes),
        (QuotaKind::TokensPerDay, usage.tokens_at(OffsetDateTime::now_utc())),
    ];
    for (kind, used) in used {
        let Some(bound) = quota.limit(kind) else { continue };
        let labels = [("collection", collection.to_owned()), ("quota", kind.name().to_owned())];
        metrics::gauge!("nerve_collection_used", &labels).set(approximate(used));
        metrics::gauge!("nerve_collection_quota", &labels).set(approximate(bound));
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge need not be exact")]
fn approximate(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minute_has_so_many_events_however_they_are_taken() {
        let (mut rate, mut now, mut taken) = (StoredRate::default(), 1_000_000_000_000_i64, 0);
        while let Ok(events) = rate.take(100, now) {
            assert!(events <= 7, "a part at once");
            taken += events;
        }
        assert_eq!(taken, 100);
        let wait = rate.take(100, now).unwrap_err();
        assert_eq!(wait, MINUTE_US / 100);
        now += wait;
        assert_eq!((rate.take(100, now), rate.take(100, now).is_err()), (Ok(1), true));
        assert!(StoredRate { next: i64::MAX / 2 }.take(100, now).unwrap_err() <= MINUTE_US, "a wrong clock");
        assert_eq!(StoredRate::default().take(1, now), Ok(1));
    }
}

//! Quotas of collections, checked before anything is stored.
//!
//! All gateways share the rate of a collection. It is a document of the bucket `views`: when the next event is due, as in
//! [`nerve_core::rate_limit`]. A gateway reserves several events at a time, so that most need no round trip; reservations expire after
//! [`RESERVATION_TTL`]. So the rate is never exceeded, up to the difference between the gateways' clocks.
//!
//! The size of documents is what the index recorded last. Documents in flight are not part of it: the index checks exactly, and the event of
//! a document over the quota becomes a dead letter.

use crate::{
    Gateway, OVERLOAD_RETRY_AFTER,
    http::problem::{HttpResult, Problem, ProblemType},
    publish::check_connected,
};
use http::{HeaderValue, header};
use nerve_core::{
    Event, EventType, Name,
    function::Views,
    manifest::RuntimeSpec,
    quota::{CollectionUsage, Quota, QuotaExceeded, QuotaKind, rate_key, seconds_until_midnight, usage_key},
};
use nerve_events::documents::DocumentIndexed;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, sync::Arc, time::Duration};
use time::OffsetDateTime;
use tokio::time::Instant;

/// Lifetime of reserved events.
const RESERVATION_TTL: Duration = Duration::from_secs(5);
/// Part of a minute's events to reserve at a time, as a divisor.
const RESERVATION_DIVISOR: u64 = 16;
/// Maximum attempts to update a rate that other gateways update.
const MAX_TRIES: usize = 16;
/// Microseconds per minute.
const MINUTE_US: i64 = 60_000_000;
/// Maximum number of collections with reservations.
const MAX_COLLECTIONS: usize = 4096;
/// Maximum time of the query whether the index has a document.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// Reserved events per collection.
#[derive(Debug, Default)]
pub(crate) struct Rates(Mutex<HashMap<String, Arc<tokio::sync::Mutex<Reserved>>>>);

#[derive(Debug)]
struct Reserved {
    events: u64,
    until: Instant,
    /// The limit that they were reserved under.
    bound: u64,
}

/// The rate of a collection, as stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct StoredRate {
    /// When the next event is due, in microseconds since 1970.
    next: i64,
}

impl StoredRate {
    /// Reserves events at `now`.
    ///
    /// # Errors
    /// The microseconds until an event is due.
    fn take(&mut self, bound: u64, now: i64) -> Result<u64, i64> {
        let apart = (MINUTE_US / i64::try_from(bound).unwrap_or(i64::MAX)).max(1);
        // A wrong clock must not block a collection for more than a minute.
        let ahead = (self.next - now).clamp(0, MINUTE_US);
        let free = (MINUTE_US - ahead) / apart;
        if free == 0 {
            return Err(ahead + apart - MINUTE_US);
        }
        let taken = free.min(i64::try_from(bound.div_ceil(RESERVATION_DIVISOR)).unwrap_or(1));
        self.next = now + ahead + taken * apart;
        Ok(u64::try_from(taken).unwrap_or(1))
    }
}

impl Rates {
    fn of(&self, collection: &str) -> Arc<tokio::sync::Mutex<Reserved>> {
        let mut rates = self.0.lock();
        if rates.len() >= MAX_COLLECTIONS && !rates.contains_key(collection) {
            rates.clear();
        }
        let none = || Arc::new(tokio::sync::Mutex::new(Reserved { events: 0, until: Instant::now(), bound: 0 }));
        Arc::clone(rates.entry(collection.to_owned()).or_insert_with(none))
    }
}

/// What a request counts against.
pub(crate) enum QuotaUse<'r> {
    /// A document of this id, with the length of its text in bytes if known.
    Document(&'r str, u64),
    /// A question.
    Question,
    /// Another event.
    Event,
}

impl Gateway {
    /// Checks the quotas of a collection.
    ///
    /// # Errors
    /// 429 or 413 over a quota, 503 if the usage cannot be read.
    pub(crate) async fn check_quota(&self, collection: &str, wanted: QuotaUse<'_>) -> HttpResult<()> {
        let quota = self.catalogue().quotas.of(collection);
        if !quota.is_limited() {
            return Ok(());
        }
        check_connected(self.bus())?;
        if !matches!(wanted, QuotaUse::Event) && (quota.limits_documents() || quota.tokens_per_day.is_some()) {
            let usage = self.usage(collection).await?;
            show(collection, quota, &usage);
            usage.check_tokens(quota, collection, OffsetDateTime::now_utc()).map_err(|over| refuse(&over))?;
            if let QuotaUse::Document(document, bytes) = wanted
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

    async fn usage(&self, collection: &str) -> HttpResult<CollectionUsage> {
        let view = self.bus().view(&usage_key(collection)).await.map_err(|_| unknown())?;
        Ok(view.and_then(|view| serde_json::from_slice(&view.data).ok()).unwrap_or_default())
    }

    /// Whether the index has a document. Its new content may replace the old one within the quota, so then the index decides.
    async fn has_document(&self, collection: &str, document: &str) -> bool {
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
        let indexed = answered.first().and_then(|answer| serde_json::from_slice::<DocumentIndexed>(&answer.data).ok());
        indexed.is_some_and(|indexed| indexed.replaced)
    }

    async fn take_event(&self, collection: &str, bound: u64) -> HttpResult<()> {
        let ahead = self.shared().rates.of(collection);
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
                *ahead = Reserved { events: taken - 1, until: Instant::now() + RESERVATION_TTL, bound };
                return Ok(());
            }
        }
        Err(unknown())
    }
}

fn unknown() -> Problem {
    let detail = "the quota of this collection cannot be read; retry";
    Problem::retry_after(ProblemType::BrokerUnavailable, detail, OVERLOAD_RETRY_AFTER)
}

fn refuse(over: &QuotaExceeded) -> Problem {
    let labels = [("collection", over.collection.clone()), ("quota", over.kind.name().to_owned())];
    metrics::counter!("nerve_collection_refused_total", &labels).increment(1);
    let detail = format!("{over}; nothing was stored");
    match over.kind {
        QuotaKind::Documents | QuotaKind::DocumentsBytes => Problem::new(ProblemType::StorageQuotaExceeded, detail),
        QuotaKind::EventsPerMinute => Problem::new(ProblemType::QuotaExceeded, detail),
        QuotaKind::TokensPerDay => {
            let wait = Duration::from_secs(seconds_until_midnight(OffsetDateTime::now_utc()));
            Problem::retry_after(ProblemType::QuotaExceeded, detail, wait)
        }
    }
}

/// Exports the usage of a collection with a quota as metrics.
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

//! Quotas of collections, the tenants of a server: what each may have, and what it has used.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fmt};
use time::OffsetDateTime;

/// Seconds of a day.
const DAY_SECONDS: i64 = 24 * 3600;

/// What a collection may have. What is `None` or 0 is not bounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Documents in the index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documents: Option<u64>,
    /// Bytes of their text, as their chunks have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documents_bytes: Option<u64>,
    /// Documents, deletions, questions and feedback that gateways accept in a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_per_minute: Option<u64>,
    /// Tokens of models in a day (UTC): of documents that are embedded, and of answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_day: Option<u64>,
}

/// One of the quotas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QuotaKind {
    /// [`Quota::documents`].
    Documents,
    /// [`Quota::documents_bytes`].
    DocumentsBytes,
    /// [`Quota::events_per_minute`].
    EventsPerMinute,
    /// [`Quota::tokens_per_day`].
    TokensPerDay,
}

impl QuotaKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Documents, Self::DocumentsBytes, Self::EventsPerMinute, Self::TokensPerDay];

    /// Its name in settings and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Documents => "documents",
            Self::DocumentsBytes => "documents_bytes",
            Self::EventsPerMinute => "events_per_minute",
            Self::TokensPerDay => "tokens_per_day",
        }
    }

    /// Its option of `nerve collections quota`.
    fn option(self) -> String {
        format!("--{}", self.name().replace('_', "-"))
    }
}

impl Quota {
    /// The bound of this kind, if there is one.
    pub fn bound(&self, kind: QuotaKind) -> Option<u64> {
        let bound = match kind {
            QuotaKind::Documents => self.documents,
            QuotaKind::DocumentsBytes => self.documents_bytes,
            QuotaKind::EventsPerMinute => self.events_per_minute,
            QuotaKind::TokensPerDay => self.tokens_per_day,
        };
        bound.filter(|bound| *bound > 0)
    }

    /// This quota, and the default's where it says nothing.
    pub fn or(self, default: Self) -> Self {
        Self {
            documents: self.documents.or(default.documents),
            documents_bytes: self.documents_bytes.or(default.documents_bytes),
            events_per_minute: self.events_per_minute.or(default.events_per_minute),
            tokens_per_day: self.tokens_per_day.or(default.tokens_per_day),
        }
    }

    /// Whether documents are bounded, by number or bytes.
    pub fn bounds_documents(&self) -> bool {
        self.bound(QuotaKind::Documents).or(self.bound(QuotaKind::DocumentsBytes)).is_some()
    }

    /// Whether anything is bounded.
    pub fn bounds_anything(&self) -> bool {
        QuotaKind::ALL.into_iter().any(|kind| self.bound(kind).is_some())
    }
}

/// The quotas of all collections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Of collections that have none of their own.
    pub default: Quota,
    /// What was set for a collection.
    pub own: BTreeMap<String, Quota>,
}

impl Quotas {
    /// The quota of a collection.
    pub fn of(&self, collection: &str) -> Quota {
        self.own.get(collection).copied().unwrap_or_default().or(self.default)
    }
}

/// Why something of a collection is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverQuota {
    /// The collection.
    pub collection: String,
    /// Which quota.
    pub kind: QuotaKind,
    /// Its bound.
    pub bound: u64,
}

impl fmt::Display for OverQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { collection, kind, bound } = self;
        let next = format!("raise it with `nerve collections quota {collection} {} N`", kind.option());
        match kind {
            QuotaKind::Documents => {
                write!(f, "the collection `{collection}` has its quota of {bound} documents: delete some, or {next}")
            }
            QuotaKind::DocumentsBytes => write!(
                f,
                "the documents of the collection `{collection}` would exceed its quota of {bound} bytes: delete some, or {next}"
            ),
            QuotaKind::EventsPerMinute => write!(
                f,
                "the collection `{collection}` has had its quota of {bound} events in a minute: come back later, or {next}"
            ),
            QuotaKind::TokensPerDay => write!(
                f,
                "the collection `{collection}` has used its quota of {bound} model tokens of this day (UTC): come back \
                 tomorrow, or {next}"
            ),
        }
    }
}

impl std::error::Error for OverQuota {}

/// What a collection has used, as the bucket `views` has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CollectionUsage {
    /// The collection.
    pub collection: String,
    /// Documents in the index.
    pub documents: u64,
    /// Bytes of their text.
    pub documents_bytes: u64,
    /// The day that `tokens` are of, in days since 1970.
    pub day: i64,
    /// Tokens of that day.
    pub tokens: u64,
}

impl CollectionUsage {
    /// Tokens of the day that is at `now`.
    pub fn tokens_at(&self, now: OffsetDateTime) -> u64 {
        if self.day == day_of(now) { self.tokens } else { 0 }
    }

    /// Counts tokens that were used at `now`.
    pub fn add_tokens(&mut self, tokens: u64, now: OffsetDateTime) {
        self.tokens = self.tokens_at(now).saturating_add(tokens);
        self.day = day_of(now);
    }

    /// Checks that tokens of the day are left.
    ///
    /// # Errors
    /// Names the quota that is used up.
    pub fn check_tokens(&self, quota: Quota, collection: &str, now: OffsetDateTime) -> Result<(), OverQuota> {
        let kind = QuotaKind::TokensPerDay;
        match quota.bound(kind) {
            Some(bound) if self.tokens_at(now) >= bound => {
                Err(OverQuota { collection: collection.to_owned(), kind, bound })
            }
            _ => Ok(()),
        }
    }

    /// Checks that a document of so many bytes fits beside those that are there.
    ///
    /// # Errors
    /// Names the quota that it would exceed.
    pub fn check_document(&self, quota: Quota, collection: &str, bytes: u64) -> Result<(), OverQuota> {
        let used =
            [(QuotaKind::Documents, self.documents, 1), (QuotaKind::DocumentsBytes, self.documents_bytes, bytes)];
        for (kind, used, more) in used {
            if let Some(bound) = quota.bound(kind).filter(|bound| used.saturating_add(more) > *bound) {
                return Err(OverQuota { collection: collection.to_owned(), kind, bound });
            }
        }
        Ok(())
    }
}

fn day_of(moment: OffsetDateTime) -> i64 {
    moment.unix_timestamp().div_euclid(DAY_SECONDS)
}

/// How long the day that is at `now` goes on, in seconds.
pub fn rest_of_day(now: OffsetDateTime) -> u64 {
    u64::try_from(DAY_SECONDS - now.unix_timestamp().rem_euclid(DAY_SECONDS)).unwrap_or_default()
}

/// How the keys in `views` of what collections have used begin.
pub const USED_PREFIX: &str = "usage.used.";

/// The key in `views` of what a collection has used.
pub fn used_key(collection: &str) -> String {
    format!("{USED_PREFIX}{}", digest(collection))
}

/// The key in `views` of how far ahead of its rate a collection is.
pub fn rate_key(collection: &str) -> String {
    format!("usage.rate.{}", digest(collection))
}

fn digest(collection: &str) -> String {
    HEXLOWER.encode(Sha256::digest(collection).get(..12).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn own_quota_wins_and_zero_is_no_bound() {
        let default = Quota { documents: Some(5), tokens_per_day: Some(7), ..Quota::default() };
        let own = Quota { documents: Some(0), documents_bytes: Some(9), ..Quota::default() };
        let quotas = Quotas { default, own: [("a".to_owned(), own)].into() };
        let (of_a, of_b) = (quotas.of("a"), quotas.of("b"));
        assert_eq!(QuotaKind::ALL.map(|kind| of_a.bound(kind)), [None, Some(9), None, Some(7)]);
        assert_eq!(QuotaKind::ALL.map(|kind| of_b.bound(kind)), [Some(5), None, None, Some(7)]);
        assert!(of_a.bounds_documents() && !Quotas::default().of("a").bounds_anything());
    }

    #[test]
    fn usage_is_checked_against_each_bound_and_tokens_are_of_one_day() {
        let quota = Quota { documents: Some(2), documents_bytes: Some(10), ..Quota::default() };
        let mut usage = CollectionUsage { documents: 1, documents_bytes: 6, ..CollectionUsage::default() };
        assert_eq!(usage.check_document(quota, "a", 4), Ok(()));
        assert_eq!(usage.check_document(quota, "a", 5).unwrap_err().kind, QuotaKind::DocumentsBytes);
        usage.documents = 2;
        let over = usage.check_document(quota, "a", 0).unwrap_err();
        assert!(over.to_string().contains("`nerve collections quota a --documents N`"), "{over}");
        let (evening, morning) = (datetime!(2026-01-01 23:59:00 UTC), datetime!(2026-01-02 00:00:01 UTC));
        usage.add_tokens(5, evening);
        usage.add_tokens(5, evening);
        let quota = Quota { tokens_per_day: Some(10), ..Quota::default() };
        assert_eq!(usage.check_tokens(quota, "a", evening).unwrap_err().kind, QuotaKind::TokensPerDay);
        assert_eq!((usage.check_tokens(quota, "a", morning), usage.tokens_at(morning)), (Ok(()), 0));
        assert_eq!(rest_of_day(evening), 60);
    }
}

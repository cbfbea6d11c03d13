//! Quotas and usage of collections, the tenants of a server.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fmt};
use time::OffsetDateTime;

/// Seconds per day.
const DAY_SECONDS: i64 = 24 * 3600;

/// Limits of a collection. `None` and 0 are unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Documents in the index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documents: Option<u64>,
    /// Bytes of the documents' text, measured on their chunks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documents_bytes: Option<u64>,
    /// Documents, deletions, questions and feedback that gateways accept per minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_per_minute: Option<u64>,
    /// Model tokens per day (UTC), for embedding documents and generating answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_day: Option<u64>,
}

/// A kind of quota.
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
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Documents, Self::DocumentsBytes, Self::EventsPerMinute, Self::TokensPerDay];

    /// The name in settings and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Documents => "documents",
            Self::DocumentsBytes => "documents_bytes",
            Self::EventsPerMinute => "events_per_minute",
            Self::TokensPerDay => "tokens_per_day",
        }
    }

    /// The option of `nerve collections quota`.
    fn option(self) -> String {
        format!("--{}", self.name().replace('_', "-"))
    }
}

impl Quota {
    /// Returns the limit of this kind; `None` if unlimited.
    pub fn limit(&self, kind: QuotaKind) -> Option<u64> {
        let limit = match kind {
            QuotaKind::Documents => self.documents,
            QuotaKind::DocumentsBytes => self.documents_bytes,
            QuotaKind::EventsPerMinute => self.events_per_minute,
            QuotaKind::TokensPerDay => self.tokens_per_day,
        };
        limit.filter(|limit| *limit > 0)
    }

    /// Fills unset limits from `default`.
    pub fn or(self, default: Self) -> Self {
        Self {
            documents: self.documents.or(default.documents),
            documents_bytes: self.documents_bytes.or(default.documents_bytes),
            events_per_minute: self.events_per_minute.or(default.events_per_minute),
            tokens_per_day: self.tokens_per_day.or(default.tokens_per_day),
        }
    }

    /// Whether the number or size of documents is limited.
    pub fn limits_documents(&self) -> bool {
        self.limit(QuotaKind::Documents).or(self.limit(QuotaKind::DocumentsBytes)).is_some()
    }

    /// Whether any limit is set.
    pub fn is_limited(&self) -> bool {
        QuotaKind::ALL.into_iter().any(|kind| self.limit(kind).is_some())
    }
}

/// Quotas of all collections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quotas {
    /// The quota of collections without their own.
    pub default: Quota,
    /// Quotas per collection.
    pub own: BTreeMap<String, Quota>,
}

impl Quotas {
    /// Returns the quota of a collection.
    pub fn of(&self, collection: &str) -> Quota {
        self.own.get(collection).copied().unwrap_or_default().or(self.default)
    }
}

/// An exceeded quota of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaExceeded {
    /// The collection.
    pub collection: String,
    /// The kind of quota.
    pub kind: QuotaKind,
    /// The limit.
    pub limit: u64,
}

impl fmt::Display for QuotaExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { collection, kind, limit } = self;
        let next = format!("raise it with `nerve collections quota {collection} {} N`", kind.option());
        match kind {
            QuotaKind::Documents => {
                write!(
                    f,
                    "the collection `{collection}` has reached its quota of {limit} documents: delete some, or {next}"
                )
            }
            QuotaKind::DocumentsBytes => write!(
                f,
                "the documents of the collection `{collection}` would exceed its quota of {limit} bytes: delete some, or {next}"
            ),
            QuotaKind::EventsPerMinute => write!(
                f,
                "the collection `{collection}` has reached its quota of {limit} events per minute: retry later, or {next}"
            ),
            QuotaKind::TokensPerDay => write!(
                f,
                "the collection `{collection}` has used its quota of {limit} model tokens for this day (UTC): retry \
                 tomorrow, or {next}"
            ),
        }
    }
}

impl std::error::Error for QuotaExceeded {}

/// Usage of a collection, as stored in the bucket `views`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CollectionUsage {
    /// The collection.
    pub collection: String,
    /// Documents in the index.
    pub documents: u64,
    /// Bytes of their text.
    pub documents_bytes: u64,
    /// The day of `tokens`, in days since the Unix epoch.
    pub day: i64,
    /// Tokens used on that day.
    pub tokens: u64,
}

impl CollectionUsage {
    /// Returns the tokens used on the day of `now`.
    pub fn tokens_at(&self, now: OffsetDateTime) -> u64 {
        if self.day == day_of(now) { self.tokens } else { 0 }
    }

    /// Adds tokens used at `now`.
    pub fn add_tokens(&mut self, tokens: u64, now: OffsetDateTime) {
        self.tokens = self.tokens_at(now).saturating_add(tokens);
        self.day = day_of(now);
    }

    /// Checks the token quota of the day.
    ///
    /// # Errors
    /// If the quota is used up.
    pub fn check_tokens(&self, quota: Quota, collection: &str, now: OffsetDateTime) -> Result<(), QuotaExceeded> {
        let kind = QuotaKind::TokensPerDay;
        match quota.limit(kind) {
            Some(limit) if self.tokens_at(now) >= limit => {
                Err(QuotaExceeded { collection: collection.to_owned(), kind, limit })
            }
            _ => Ok(()),
        }
    }

    /// Checks that a further document of `bytes` fits the quota.
    ///
    /// # Errors
    /// If the document would exceed a quota.
    pub fn check_document(&self, quota: Quota, collection: &str, bytes: u64) -> Result<(), QuotaExceeded> {
        let used =
            [(QuotaKind::Documents, self.documents, 1), (QuotaKind::DocumentsBytes, self.documents_bytes, bytes)];
        for (kind, used, more) in used {
            if let Some(limit) = quota.limit(kind).filter(|limit| used.saturating_add(more) > *limit) {
                return Err(QuotaExceeded { collection: collection.to_owned(), kind, limit });
            }
        }
        Ok(())
    }
}

fn day_of(time: OffsetDateTime) -> i64 {
    time.unix_timestamp().div_euclid(DAY_SECONDS)
}

/// Seconds from `now` to the end of the day (UTC).
pub fn seconds_until_midnight(now: OffsetDateTime) -> u64 {
    u64::try_from(DAY_SECONDS - now.unix_timestamp().rem_euclid(DAY_SECONDS)).unwrap_or_default()
}

/// Prefix of the usage keys in `views`.
pub const USAGE_KEY_PREFIX: &str = "usage.used.";

/// Key in `views` of a collection's usage.
pub fn usage_key(collection: &str) -> String {
    format!("{USAGE_KEY_PREFIX}{}", digest(collection))
}

/// Key in `views` of a collection's rate limiter state.
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
    fn own_quota_overrides_default_and_zero_is_unlimited() {
        let default = Quota { documents: Some(5), tokens_per_day: Some(7), ..Quota::default() };
        let own = Quota { documents: Some(0), documents_bytes: Some(9), ..Quota::default() };
        let quotas = Quotas { default, own: [("a".to_owned(), own)].into() };
        let (of_a, of_b) = (quotas.of("a"), quotas.of("b"));
        assert_eq!(QuotaKind::ALL.map(|kind| of_a.limit(kind)), [None, Some(9), None, Some(7)]);
        assert_eq!(QuotaKind::ALL.map(|kind| of_b.limit(kind)), [Some(5), None, None, Some(7)]);
        assert!(of_a.limits_documents() && !Quotas::default().of("a").is_limited());
    }

    #[test]
    fn usage_is_checked_against_each_limit_and_tokens_reset_daily() {
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
        assert_eq!(seconds_until_midnight(evening), 60);
    }
}

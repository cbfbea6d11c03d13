//! All data of a tenant: its documents in the index and in the bucket `views`.
//!
//! A tenant is a collection. The memory of its conversations is in `views`, and their earlier answers are in
//! collections of the index with derived names; [`Tenant::owns`] recognizes these names.

use crate::learn::{self, AnswerRanking};
use nerve_core::{Event, EventType, quota, subject::InvalidSubject};
pub use nerve_index::collections::ErasedDocuments;
use nerve_index::collections::TenantCollections;
use serde::{Deserialize, Serialize};

/// Event type of a direct call to `rag/index` that erases the documents of a tenant.
pub const ERASE_REQUESTED: &str = "collection.erase_requested";

/// A collection and everything stored for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    collections: TenantCollections,
}

impl Tenant {
    /// The tenant of the collection `collection`.
    pub fn new(collection: impl Into<String>) -> Self {
        Self { collections: TenantCollections::new(collection) }
    }

    /// Name of its collection.
    pub fn collection(&self) -> &str {
        self.collections.collection()
    }

    /// Whether a collection of the index belongs to the tenant: its own, or that of one of its conversations.
    pub fn owns(&self, collection: &str) -> bool {
        self.collections.owns(collection)
    }

    /// Key pattern of its conversations in `views`.
    pub fn memory_keys(&self) -> String {
        format!("{}>", self.collections.conversations())
    }

    /// Keys in `views` of its feedback and weights.
    pub fn learned_keys(&self) -> [String; 2] {
        learn::keys_of(self.collection())
    }

    /// Keys in `views` of its usage.
    pub fn usage_keys(&self) -> [String; 2] {
        [quota::usage_key(self.collection()), quota::rate_key(self.collection())]
    }

    /// Key pattern in `views` of the rankings of recent answers. One document contains answers of several tenants;
    /// [`without_rankings`](Self::without_rankings) returns it without those of one tenant.
    pub fn ranking_keys() -> &'static str {
        learn::RANKING_KEYS
    }

    /// Removes the tenant's answers from a document of rankings: those of its collection, and those whose id satisfies
    /// `is_its_answer`.
    ///
    /// Returns `None` if the document has no such answer.
    pub fn without_rankings(&self, document: &[u8], is_its_answer: impl Fn(&str) -> bool) -> Option<RemainingRankings> {
        let is_its = |known: &AnswerRanking| self.owns(&known.collection) || is_its_answer(&known.answer);
        learn::remove_answers(document, is_its).map(|(removed, document)| RemainingRankings { removed, document })
    }
}

/// A document of rankings after the answers of one tenant were removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemainingRankings {
    /// Number of removed answers.
    pub removed: usize,
    /// The document with the remaining answers; `None` if none remain.
    pub document: Option<Vec<u8>>,
}

/// Data of [`ERASE_REQUESTED`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EraseRequest {
    /// Collection of the tenant.
    pub collection: String,
    /// Whether to count the documents without erasing them.
    #[serde(default)]
    pub dry_run: bool,
}

impl EraseRequest {
    /// Builds the event for a direct call to `rag/index`.
    ///
    /// # Errors
    /// If [`ERASE_REQUESTED`] is not a valid type, which the tests rule out.
    pub fn event(&self, id: String) -> Result<Event, InvalidSubject> {
        let data = serde_json::to_vec(self).unwrap_or_default();
        let event = Event::new(id, "/nerve/collections", EventType::parse(ERASE_REQUESTED)?);
        Ok(event.with_data("application/json", data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_index::collections::conversation_collection;
    use serde_json::{Value, json};

    #[test]
    fn tenant_owns_its_collection_and_its_conversations_only() {
        let (acme, other) = (Tenant::new("acme"), Tenant::new("acm"));
        let conversation = conversation_collection("acme", "ada");
        assert!(acme.owns("acme") && acme.owns(&conversation));
        assert!(!other.owns("acme") && !other.owns(&conversation) && !acme.owns("acme2") && !acme.owns("default"));
        assert!(conversation.starts_with(acme.memory_keys().trim_end_matches('>')));
        assert_ne!(acme.learned_keys(), other.learned_keys());
    }

    #[test]
    fn request_is_an_event_of_its_type() {
        let request = EraseRequest { collection: "acme".into(), dry_run: true };
        let event = request.event("1".into()).unwrap();
        assert_eq!(event.ty.as_str(), ERASE_REQUESTED);
        assert_eq!(serde_json::from_slice::<EraseRequest>(&event.data).unwrap(), request);
    }

    #[test]
    fn rankings_of_other_tenants_stay() {
        let acme = Tenant::new("acme");
        let answers = |collections: &[(&str, &str)]| {
            let answers = collections.iter().map(|(answer, of)| json!({"answer": answer, "collection": of}));
            json!({"answers": answers.collect::<Vec<_>>()}).to_string()
        };
        let mixed = acme.without_rankings(answers(&[("1", "acme"), ("2", "other")]).as_bytes(), |_| false).unwrap();
        let left: Value = serde_json::from_slice(&mixed.document.unwrap()).unwrap();
        assert_eq!((mixed.removed, &left["answers"][0]["answer"]), (1, &json!("2")));
        // An answer whose citations arrived before its ranking has no collection yet.
        let cited = acme.without_rankings(answers(&[("3", "")]).as_bytes(), |answer| answer == "3").unwrap();
        assert_eq!(cited, RemainingRankings { removed: 1, document: None });
        assert_eq!(acme.without_rankings(answers(&[("2", "other"), ("4", "")]).as_bytes(), |_| false), None);
        assert_eq!(acme.without_rankings(b"no JSON", |_| true), None);
    }
}

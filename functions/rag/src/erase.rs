//! Everything that the functions here keep of a tenant: its documents in the index, and its documents in the bucket `views`.
//!
//! A tenant is a collection. The memory of its conversations is in `views`, and their earlier answers are in collections of
//! the index that are named after it; [`Tenant::owns`] tells these names.

use crate::learn::{self, Answered};
use nerve_core::{Event, EventType, quota, subject::InvalidSubject};
pub use nerve_index::collections::ErasedDocuments;
use nerve_index::collections::TenantCollections;
use serde::{Deserialize, Serialize};

/// The type of the event by which `rag/index` is called directly to erase the documents of a tenant.
pub const ERASE_REQUESTED: &str = "collection.erase_requested";

/// One collection, and what is kept in its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    collections: TenantCollections,
}

impl Tenant {
    /// The tenant whose documents are in `collection`.
    pub fn new(collection: impl Into<String>) -> Self {
        Self { collections: TenantCollections::new(collection) }
    }

    /// The name of its collection.
    pub fn collection(&self) -> &str {
        self.collections.collection()
    }

    /// Whether a collection of the index is the tenant's: its own, or one of its conversations.
    pub fn owns(&self, collection: &str) -> bool {
        self.collections.owns(collection)
    }

    /// The keys in `views` of what is remembered of its conversations, as a pattern.
    pub fn memory_keys(&self) -> String {
        format!("{}>", self.collections.conversations())
    }

    /// The keys in `views` of what was learned from its feedback.
    pub fn learned_keys(&self) -> [String; 2] {
        learn::keys_of(self.collection())
    }

    /// The keys in `views` of what it has used.
    pub fn usage_keys(&self) -> [String; 2] {
        [quota::usage_key(self.collection()), quota::rate_key(self.collection())]
    }

    /// The keys in `views` of the rankings of the last answers, as a pattern. Each document has answers of several tenants:
    /// [`without_rankings`](Self::without_rankings) is what stays of it.
    pub fn ranking_keys() -> &'static str {
        learn::RANKINGS
    }

    /// Removes the tenant's answers from a document of rankings: those that were asked in its collection, and those that
    /// `is_its_answer` names by their ids.
    ///
    /// Returns nothing for a document without any.
    pub fn without_rankings(&self, document: &[u8], is_its_answer: impl Fn(&str) -> bool) -> Option<Rankings> {
        let is_its = |known: &Answered| self.owns(&known.collection) || is_its_answer(&known.answer);
        learn::without(document, is_its).map(|(removed, document)| Rankings { removed, document })
    }
}

/// A document of rankings without those of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rankings {
    /// How many answers were removed.
    pub removed: usize,
    /// The document with the other answers; none if there are no others.
    pub document: Option<Vec<u8>>,
}

/// The data of [`ERASE_REQUESTED`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EraseRequest {
    /// The tenant's collection.
    pub collection: String,
    /// Whether the documents are only counted.
    #[serde(default)]
    pub dry_run: bool,
}

impl EraseRequest {
    /// The event that `rag/index` is called with.
    ///
    /// # Errors
    /// When [`ERASE_REQUESTED`] is no type, which the tests exclude.
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
        // An answer whose citations were heard of before its ranking has no collection yet.
        let cited = acme.without_rankings(answers(&[("3", "")]).as_bytes(), |answer| answer == "3").unwrap();
        assert_eq!(cited, Rankings { removed: 1, document: None });
        assert_eq!(acme.without_rankings(answers(&[("2", "other"), ("4", "")]).as_bytes(), |_| false), None);
        assert_eq!(acme.without_rankings(b"no JSON", |_| true), None);
    }
}

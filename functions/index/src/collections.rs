//! Names of collections: a tenant's own, and those of its conversations.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A name as a part of a key, whatever it holds.
pub fn digest(name: &str) -> String {
    HEXLOWER.encode(Sha256::digest(name).get(..12).unwrap_or_default())
}

/// How the keys of all conversations of a collection begin.
pub fn conversations_of(collection: &str) -> String {
    format!("memory.{}.", digest(collection))
}

/// Whether a collection of the index has the earlier answers of a conversation: [`conversations_of`] and a digest. These are in
/// nobody's quota.
pub fn is_conversation(collection: &str) -> bool {
    let mut parts = collection.strip_prefix("memory.").unwrap_or_default().split('.');
    let is_digest = |part: Option<&str>| {
        part.is_some_and(|part| part.len() == 24 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    is_digest(parts.next()) && is_digest(parts.next()) && parts.next().is_none()
}

/// The collection of the index that has the earlier answers of a conversation.
pub fn conversation_collection(collection: &str, conversation: &str) -> String {
    format!("{}{}", conversations_of(collection), digest(conversation))
}

/// The collections of the index that are a tenant's: its own, and those of its conversations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantCollections {
    collection: String,
    /// How the names of its conversations' collections begin.
    conversations: String,
}

impl TenantCollections {
    /// The collections of the tenant whose documents are in `collection`.
    pub fn new(collection: impl Into<String>) -> Self {
        let collection = collection.into();
        Self { conversations: conversations_of(&collection), collection }
    }

    /// The name of its collection.
    pub fn collection(&self) -> &str {
        &self.collection
    }

    /// How the names of the collections begin that hold earlier answers of its conversations.
    pub fn conversations(&self) -> &str {
        &self.conversations
    }

    /// Whether a collection is the tenant's: its own, or one of its conversations.
    pub fn owns(&self, collection: &str) -> bool {
        collection == self.collection || collection.starts_with(&self.conversations)
    }
}

/// What the index had of a tenant: what was erased.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedDocuments {
    /// Its documents, with the earlier answers of its conversations.
    pub documents: usize,
    /// Their chunks.
    pub chunks: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_conversation_of_each_collection_has_its_place() {
        let places = [
            conversation_collection("a", "b"),
            conversation_collection("a", "c"),
            conversation_collection("b", "b"),
            conversation_collection("a.b", ""),
            conversation_collection("a", ".b"),
        ];
        assert_eq!(places.iter().collect::<std::collections::BTreeSet<_>>().len(), places.len());
        assert!(places.iter().all(|key| key.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')));
    }
}

//! Collections of the index that belong to a tenant or to a conversation.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Digest of a name, safe as a part of a key or collection name.
pub fn name_digest(name: &str) -> String {
    HEXLOWER.encode(Sha256::digest(name).get(..12).unwrap_or_default())
}

/// Prefix of the collections of all conversations of a collection, and of their keys in `views`.
pub fn conversation_prefix(collection: &str) -> String {
    format!("memory.{}.", name_digest(collection))
}

/// Whether a collection contains the earlier answers of a conversation. Quotas do not apply to it.
pub fn is_conversation(collection: &str) -> bool {
    let mut parts = collection.strip_prefix("memory.").unwrap_or_default().split('.');
    let is_digest = |part: Option<&str>| {
        part.is_some_and(|part| part.len() == 24 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    is_digest(parts.next()) && is_digest(parts.next()) && parts.next().is_none()
}

/// The collection with the earlier answers of a conversation.
pub fn conversation_collection(collection: &str, conversation: &str) -> String {
    format!("{}{}", conversation_prefix(collection), name_digest(conversation))
}

/// The collections of a tenant: its own, and those of its conversations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantCollections {
    collection: String,
    /// Prefix of its conversations' collections.
    conversations: String,
}

impl TenantCollections {
    /// The collections of the tenant with this collection.
    pub fn new(collection: impl Into<String>) -> Self {
        let collection = collection.into();
        Self { conversations: conversation_prefix(&collection), collection }
    }

    /// Name of its own collection.
    pub fn collection(&self) -> &str {
        &self.collection
    }

    /// Prefix of its conversations' collections.
    pub fn conversations(&self) -> &str {
        &self.conversations
    }

    /// Whether a collection belongs to the tenant.
    pub fn owns(&self, collection: &str) -> bool {
        collection == self.collection || collection.starts_with(&self.conversations)
    }
}

/// Number of documents and chunks that were erased.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedDocuments {
    /// Documents, including the earlier answers of conversations.
    pub documents: usize,
    /// Chunks.
    pub chunks: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_conversation_has_its_own_collection() {
        let names = [
            conversation_collection("a", "b"),
            conversation_collection("a", "c"),
            conversation_collection("b", "b"),
            conversation_collection("a.b", ""),
            conversation_collection("a", ".b"),
        ];
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
        assert!(names.iter().all(|key| key.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')));
    }
}

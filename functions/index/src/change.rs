//! Changes of documents and their results.

use crate::{collections::is_conversation, error::IndexError};
use nerve_core::quota::{CollectionUsage, Quotas};
use nerve_events::documents::{Chunk, Document};

/// A change of one document.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Replaces the document and its chunks.
    Replace {
        /// The document.
        document: Document,
        /// Its chunks, each with its vector.
        chunks: Vec<(Chunk, Vec<f32>)>,
    },
    /// Removes the document. Only `collection`, `document` and `uploaded_at` are used.
    Remove(Document),
    /// Marks the document as uploaded at this time if its stored digest is equal; otherwise changes nothing. Only
    /// `collection`, `document`, `digest` and `uploaded_at` are used.
    Confirm(Document),
}

impl Change {
    /// The changed document.
    pub fn document(&self) -> &Document {
        match self {
            Self::Replace { document, .. } | Self::Remove(document) | Self::Confirm(document) => document,
        }
    }

    /// Size of the document's text in bytes: the sum of its chunks.
    pub(crate) fn text_bytes(&self) -> u64 {
        let bytes: usize = self.chunks().iter().map(|(chunk, _)| chunk.text.len()).sum();
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Checks the quota of the collection, given the usage of its other documents.
    pub(crate) fn check_quota(
        &self,
        quotas: &Quotas,
        (documents, documents_bytes): (u64, u64),
    ) -> Result<(), IndexError> {
        let collection = &self.document().collection;
        let others = CollectionUsage { documents, documents_bytes, ..CollectionUsage::default() };
        let checked = others.check_document(quotas.of(collection), collection, self.text_bytes());
        checked.map_err(IndexError::QuotaExceeded)
    }

    /// Whether a quota applies to the document.
    pub(crate) fn has_quota(&self, quotas: &Quotas) -> bool {
        let Self::Replace { document, .. } = self else { return false };
        quotas.of(&document.collection).limits_documents() && !is_conversation(&document.collection)
    }

    /// The new chunks of the document.
    pub(crate) fn chunks(&self) -> &[(Chunk, Vec<f32>)] {
        match self {
            Self::Replace { chunks, .. } => chunks,
            Self::Remove(_) | Self::Confirm(_) => &[],
        }
    }
}

/// Result of a change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChangeResult {
    /// Number of chunks of the document after the change.
    pub chunks: usize,
    /// Whether the document existed before.
    pub replaced: bool,
    /// Whether a later upload was already indexed, so that nothing changed.
    pub stale: bool,
    /// Whether another upload of the same content was already indexed, so that no chunk was written.
    pub unchanged: bool,
    /// Time of the document's last upload or deletion, in nanoseconds since 1970; 0 if there is none.
    pub latest_upload: i64,
}

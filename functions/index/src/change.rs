//! What is to change in an index.

use crate::{collections::is_conversation, document::Document, error::IndexError};
use nerve_core::quota::{CollectionUsage, Quotas};
use nerve_text::chunk::Chunk;
use serde::Serialize;

/// A change of one document.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// It has these chunks now, and no others.
    Replace {
        /// The document.
        document: Document,
        /// Its chunks, each with its vector.
        chunks: Vec<(Chunk, Vec<f32>)>,
    },
    /// It is gone. Only `collection`, `document` and `uploaded_at` count.
    Remove(Document),
    /// If the index has it with this digest, it counts as uploaded at this time; else nothing changes. Only `collection`,
    /// `document`, `digest` and `uploaded_at` count.
    Confirm(Document),
}

impl Change {
    /// The document that it changes.
    pub fn document(&self) -> &Document {
        match self {
            Self::Replace { document, .. } | Self::Remove(document) | Self::Confirm(document) => document,
        }
    }

    /// The bytes of the document's text, as its chunks have it.
    pub(crate) fn text_bytes(&self) -> u64 {
        let bytes: usize = self.chunks().iter().map(|(chunk, _)| chunk.text.len()).sum();
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Checks it against the quota of its collection, which has so many documents, and bytes of text, besides this one.
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

    /// Whether its document is under a quota.
    pub(crate) fn is_bounded(&self, quotas: &Quotas) -> bool {
        let Self::Replace { document, .. } = self else { return false };
        quotas.of(&document.collection).limits_documents() && !is_conversation(&document.collection)
    }

    /// The chunks that it gives the document.
    pub(crate) fn chunks(&self) -> &[(Chunk, Vec<f32>)] {
        match self {
            Self::Replace { chunks, .. } => chunks,
            Self::Remove(_) | Self::Confirm(_) => &[],
        }
    }
}

/// What came of a change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Chunks that the document has now.
    pub chunks: usize,
    /// Whether the index had the document before.
    pub replaced: bool,
    /// Whether a later upload was there already, so that nothing was changed.
    pub stale: bool,
    /// Whether the index had exactly this content from another upload, so that no chunk was written.
    pub unchanged: bool,
    /// When the document's last upload or deletion was made, in nanoseconds since 1970; 0 where there was none.
    pub latest_upload: i64,
}

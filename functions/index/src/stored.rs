//! The stored state of a document before a change.

use crate::change::{Change, ChangeResult};
use nerve_events::documents::{Chunk, Document};
use serde_json::{Map, Value};

/// Squared distance, relative to the squared length, below which two vectors of one text are equal despite rounding.
const ROUNDING_TOLERANCE: f32 = 1e-4;

/// The stored state of a document before a change.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoredDocument {
    pub(crate) uploaded_at: i64,
    /// Whether the document was removed. Its row remains, so that an older upload does not restore it.
    pub(crate) removed: bool,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) digest: String,
    pub(crate) metadata: Map<String, Value>,
}

impl StoredDocument {
    /// The stored state after a change.
    #[cfg(feature = "postgres")]
    pub(crate) fn after(change: &Change) -> Self {
        let Document { name, version, digest, uploaded_at, metadata, .. } = change.document().clone();
        Self { uploaded_at, removed: matches!(change, Change::Remove(_)), name, version, digest, metadata }
    }

    /// Whether the stored state is newer than the change.
    pub(crate) fn is_newer_than(&self, change: &Change) -> bool {
        self.uploaded_at > change.document().uploaded_at
    }

    /// Whether the stored row already matches the change; [`same_chunks`] compares the chunks.
    pub(crate) fn row_matches(&self, change: &Change) -> bool {
        let (name, version, metadata) = (&self.name, &self.version, &self.metadata);
        !self.removed
            && match change {
                Change::Remove(_) => false,
                Change::Confirm(document) => !document.digest.is_empty() && document.digest == self.digest,
                Change::Replace { document: new, .. } => {
                    (name, version, metadata) == (&new.name, &new.version, &new.metadata)
                }
            }
    }

    /// Result of a change that writes no chunk.
    pub(crate) fn without_write(&self, change: &Change, chunks: usize, same: bool) -> ChangeResult {
        let uploaded_at = change.document().uploaded_at;
        let latest = if same { self.uploaded_at.max(uploaded_at) } else { self.uploaded_at };
        ChangeResult {
            chunks,
            replaced: !self.removed,
            stale: self.is_newer_than(change),
            // A redelivery of the same upload after a crash is not another upload.
            unchanged: same && self.uploaded_at != uploaded_at,
            latest_upload: latest,
        }
    }
}

/// Whether two lists of chunks and vectors are equal, up to rounding.
pub(crate) fn same_chunks(stored: &[(Chunk, Vec<f32>)], new: &[(Chunk, Vec<f32>)]) -> bool {
    let near = |a: &[f32], b: &[f32]| {
        let distance: f32 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
        let length: f32 = b.iter().map(|b| b * b).sum();
        a.len() == b.len() && distance <= length * ROUNDING_TOLERANCE
    };
    stored.len() == new.len() && stored.iter().zip(new).all(|(a, b)| a.0 == b.0 && near(&a.1, &b.1))
}

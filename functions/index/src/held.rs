//! What the index has of a document before a change.

use crate::{
    change::{Applied, Change},
    document::Document,
};
use nerve_text::chunk::Chunk;
use serde_json::{Map, Value};

/// The squared distance of two vectors of one text, in squared lengths, that a model's rounding may make.
const ROUNDING: f32 = 1e-4;

/// What the index has of a document before a change.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held {
    pub(crate) uploaded_at: i64,
    /// Its row stays after a deletion, so that an older upload does not bring it back.
    pub(crate) removed: bool,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) digest: String,
    pub(crate) metadata: Map<String, Value>,
}

impl Held {
    /// What the index has once it has written the change.
    pub(crate) fn after(change: &Change) -> Self {
        let Document { name, version, digest, uploaded_at, metadata, .. } = change.document().clone();
        Self { uploaded_at, removed: matches!(change, Change::Remove(_)), name, version, digest, metadata }
    }

    /// Whether the change is older than what is there.
    pub(crate) fn is_newer_than(&self, change: &Change) -> bool {
        self.uploaded_at > change.document().uploaded_at
    }

    /// Whether the document is there as the change has it, as far as its row shows: chunks are compared by [`same_chunks`].
    pub(crate) fn has_row_of(&self, change: &Change) -> bool {
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

    /// What comes of a change that writes no chunk.
    pub(crate) fn kept(&self, change: &Change, chunks: usize, same: bool) -> Applied {
        let uploaded_at = change.document().uploaded_at;
        let latest = if same { self.uploaded_at.max(uploaded_at) } else { self.uploaded_at };
        Applied {
            chunks,
            replaced: !self.removed,
            stale: self.is_newer_than(change),
            // The same upload comes again after a crash: it is no other upload of the same content.
            unchanged: same && self.uploaded_at != uploaded_at,
            latest_upload: latest,
        }
    }
}

/// Whether two lists of chunks are the same, each with its vector; a model's rounding makes no difference.
pub(crate) fn same_chunks(held: &[(Chunk, Vec<f32>)], new: &[(Chunk, Vec<f32>)]) -> bool {
    let near = |a: &[f32], b: &[f32]| {
        let distance: f32 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
        let length: f32 = b.iter().map(|b| b * b).sum();
        a.len() == b.len() && distance <= length * ROUNDING
    };
    held.len() == new.len() && held.iter().zip(new).all(|(a, b)| a.0 == b.0 && near(&a.1, &b.1))
}

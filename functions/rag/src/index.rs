//! Chunks that are found by words and by meaning.
//!
//! # Layout
//! - [`Change`]: what is to change.
//! - `embedded`: the index in a folder, for one worker: `store` (SQLite), `lexical` (tantivy), `dense` (usearch). `scrub`: its
//!   files without what was erased.
//! - `postgres`: the index in a database, for any number of workers.
//!
//! Both kinds take the same changes and answer the same queries. Each ranks chunks by words and by meaning in its own
//! way, and both fuse the two rankings here.

mod change;
mod dense;
mod embedded;
mod lexical;
mod postgres;
mod scrub;
mod store;
#[cfg(test)]
mod tests;

pub use change::Change;
pub use postgres::Database;

use crate::{
    chunk::Chunk,
    document::Document,
    erase::{ErasedDocuments, Tenant},
};
use embedded::Embedded;
use nerve_core::quota::{OverQuota, Quotas};
use postgres::Postgres;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{collections::HashMap, path::Path};

/// What the rank of a hit is added to before it is turned over (Cormack et al., 2009: reciprocal rank fusion).
const RANK_OFFSET: f32 = 60.0;
/// Candidates that each way of searching gives, for each result that is asked for.
const CANDIDATES: usize = 5;
/// The fewest candidates that each way of searching gives.
const FEWEST: usize = 50;
/// The squared distance of two vectors of one text, in squared lengths, that a model's rounding may make.
const ROUNDING: f32 = 1e-4;

/// Why the index cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The request can never succeed on this index.
    #[error("{0}")]
    Invalid(String),
    /// Its database cannot be reached, or cannot do it now: the same may succeed later.
    #[error("the index's database is not available, while {what}")]
    Unavailable {
        /// What was being done.
        what: &'static str,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A document is over a quota of its collection.
    #[error("{0}")]
    OverQuota(OverQuota),
    /// A file cannot be read or written, or the database refuses.
    #[error("the index failed while {what}")]
    Failed {
        /// What was being done.
        what: &'static str,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl IndexError {
    fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Failed { what, source: source.into() }
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

/// What is searched for.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// In which collection.
    pub collection: String,
    /// Its words.
    pub text: String,
    /// Its vector, of length one.
    pub vector: Vec<f32>,
    /// Metadata that a document must have; an array stands for any of its values.
    pub filter: Map<String, Value>,
    /// The most results.
    pub limit: usize,
    /// How much ranks by words and by meaning weigh.
    pub weights: Weights,
}

impl Query {
    /// Candidates that each way of searching gives.
    fn candidates(&self) -> usize {
        (self.limit * CANDIDATES).max(FEWEST)
    }
}

/// How much each way of searching weighs in the fusion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// BM25.
    pub lexical: f32,
    /// Cosine.
    pub dense: f32,
}

impl Default for Weights {
    fn default() -> Self {
        Self { lexical: 1.0, dense: 1.0 }
    }
}

/// A chunk that was found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// The chunk's own id, as long as its document is not uploaded again.
    pub id: String,
    /// The document.
    pub document: String,
    /// The document's name.
    pub name: String,
    /// The chunk.
    #[serde(flatten)]
    pub chunk: Chunk,
    /// The document's metadata.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    /// The fused score; only its order means something.
    #[serde(default)]
    pub score: f32,
    /// What its words are worth, where it was among the candidates by words: BM25, or PostgreSQL's rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bm25: Option<f32>,
    /// The cosine of its vector and the question's, however it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f32>,
    /// Its place among the candidates by words, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lexical_rank: Option<usize>,
    /// Its place among the candidates by meaning, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense_rank: Option<usize>,
}

/// The index of every collection.
///
/// Its calls block: from async code, make them where blocking is allowed.
pub struct Index {
    kind: Kind,
}

enum Kind {
    Embedded(Box<Embedded>),
    Postgres(Postgres),
}

impl Index {
    /// Opens the index in `folder`, or begins it, for vectors that `model` gives.
    pub fn open(folder: &Path, model: &str, dimensions: usize) -> Result<Self, IndexError> {
        let embedded = Embedded::open(folder, model, dimensions)?;
        Ok(Self { kind: Kind::Embedded(Box::new(embedded)) })
    }

    /// Opens the index in `database`, or begins it, for vectors that `model` gives. Its connections live on the Tokio
    /// runtime that this is called in.
    pub fn connect(database: &Database, model: &str, dimensions: usize) -> Result<Self, IndexError> {
        Ok(Self { kind: Kind::Postgres(Postgres::connect(database, model, dimensions)?) })
    }

    /// Applies changes, all or none; what they add is found once this returns.
    pub fn apply(&self, changes: &[Change]) -> Result<Vec<Applied>, IndexError> {
        self.apply_within(changes, &Quotas::default())
    }

    /// Applies changes, all or none, where they are within the quotas of their collections. These are checked in the transaction
    /// that writes the documents, so they hold exactly.
    ///
    /// # Errors
    /// [`IndexError::OverQuota`] for the first change that is not.
    pub fn apply_within(&self, changes: &[Change], quotas: &Quotas) -> Result<Vec<Applied>, IndexError> {
        match &self.kind {
            Kind::Embedded(index) => index.apply(changes, quotas),
            Kind::Postgres(index) => index.apply(changes, quotas),
        }
    }

    /// How many documents a collection has, and how many bytes their text has.
    pub fn held_of(&self, collection: &str) -> Result<(u64, u64), IndexError> {
        match &self.kind {
            Kind::Embedded(index) => index.held_of(collection),
            Kind::Postgres(index) => index.held_of(collection),
        }
    }

    /// Counts the documents of a tenant, those that [`erase`](Self::erase) would delete.
    pub fn count_of(&self, tenant: &Tenant) -> Result<ErasedDocuments, IndexError> {
        match &self.kind {
            Kind::Embedded(index) => index.count_of(tenant),
            Kind::Postgres(index) => index.count_of(tenant),
        }
    }

    /// Deletes every document of a tenant, and what remembers that there were some: an older upload brings them back. Once
    /// this returns, nothing of them is in the index's files either; in a database, `vacuum` has passed over them.
    ///
    /// In a folder, the words and the graph of vectors of all that stays are made again, while searches go on.
    pub fn erase(&self, tenant: &Tenant) -> Result<ErasedDocuments, IndexError> {
        match &self.kind {
            Kind::Embedded(index) => index.erase(tenant),
            Kind::Postgres(index) => index.erase(tenant),
        }
    }

    /// The best chunks, the best first.
    pub fn search(&self, query: &Query) -> Result<Vec<Hit>, IndexError> {
        let dimensions = match &self.kind {
            Kind::Embedded(index) => index.dimensions(),
            Kind::Postgres(index) => index.dimensions(),
        };
        if query.vector.len() != dimensions {
            return Err(IndexError::Invalid(format!(
                "the question's vector has {} dimensions, and the index has {dimensions}: embed both with the same model",
                query.vector.len(),
            )));
        }
        match &self.kind {
            Kind::Embedded(index) => index.search(query),
            Kind::Postgres(index) => index.search(query),
        }
    }

    /// Chunks in the index, of all collections.
    pub fn len(&self) -> Result<usize, IndexError> {
        match &self.kind {
            Kind::Embedded(index) => index.len(),
            Kind::Postgres(index) => index.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> Result<bool, IndexError> {
        Ok(self.len()? == 0)
    }

    /// Writes down what a restart would have to make again; a database needs none of that.
    pub fn save(&self) -> Result<(), IndexError> {
        match &self.kind {
            Kind::Embedded(index) => index.save(),
            Kind::Postgres(_) => Ok(()),
        }
    }
}

/// What the index has of a document before a change.
#[derive(Debug, Clone, Default)]
struct Held {
    uploaded_at: i64,
    /// Its row stays after a deletion, so that an older upload does not bring it back.
    removed: bool,
    name: String,
    version: String,
    digest: String,
    metadata: Map<String, Value>,
}

impl Held {
    /// What the index has once it has written the change.
    fn after(change: &Change) -> Self {
        let Document { name, version, digest, uploaded_at, metadata, .. } = change.document().clone();
        Self { uploaded_at, removed: matches!(change, Change::Remove(_)), name, version, digest, metadata }
    }

    /// Whether the change is older than what is there.
    fn is_newer_than(&self, change: &Change) -> bool {
        self.uploaded_at > change.document().uploaded_at
    }

    /// Whether the document is there as the change has it, as far as its row shows: chunks are compared by [`same_chunks`].
    fn has_row_of(&self, change: &Change) -> bool {
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
    fn kept(&self, change: &Change, chunks: usize, same: bool) -> Applied {
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
fn same_chunks(held: &[(Chunk, Vec<f32>)], new: &[(Chunk, Vec<f32>)]) -> bool {
    let near = |a: &[f32], b: &[f32]| {
        let distance: f32 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
        let length: f32 = b.iter().map(|b| b * b).sum();
        a.len() == b.len() && distance <= length * ROUNDING
    };
    held.len() == new.len() && held.iter().zip(new).all(|(a, b)| a.0 == b.0 && near(&a.1, &b.1))
}

/// A chunk and how it was found.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Found {
    chunk: u64,
    score: f32,
    bm25: Option<f32>,
    similarity: Option<f32>,
    lexical_rank: Option<usize>,
    dense_rank: Option<usize>,
}

/// What one ranking adds to a chunk's score: its weight over the rank, from 1, and a constant.
pub(crate) fn share(weight: f32, rank: usize) -> f32 {
    // Ranks are far below where an f32 loses whole numbers.
    #[expect(clippy::cast_precision_loss)]
    let rank = rank as f32;
    weight / (RANK_OFFSET + rank)
}

/// Adds up what each ranking says of a chunk.
fn fuse(by_words: &[(u64, f32)], by_meaning: &[(u64, f32)], weights: Weights) -> Vec<Found> {
    let mut found: HashMap<u64, Found> = HashMap::new();
    let rankings = [(by_words, weights.lexical, true), (by_meaning, weights.dense, false)];
    for (ranking, weight, words) in rankings {
        for (place, (chunk, value)) in ranking.iter().enumerate() {
            let rank = place + 1;
            let one = found.entry(*chunk).or_insert(Found { chunk: *chunk, ..Found::default() });
            one.score += share(weight, rank);
            match words {
                true => (one.bm25, one.lexical_rank) = (Some(*value), Some(rank)),
                false => (one.similarity, one.dense_rank) = (Some(*value), Some(rank)),
            }
        }
    }
    let mut fused: Vec<Found> = found.into_values().collect();
    fused.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.chunk.cmp(&b.chunk)));
    fused
}

//! Chunks on disk, found by words and by meaning.
//!
//! # Layout
//! - `store`: documents, chunks and vectors in SQLite: the truth, in one file.
//! - `lexical`: their words, in tantivy (BM25).
//! - `dense`: their vectors, in usearch (HNSW, cosine).
//!
//! # How they stay one
//! A change is one transaction of `store`, which numbers it. Both others remember the number they have got to, and
//! catch up when the index is opened: after a crash, or when their files are gone, they are made again from `store`.

mod dense;
mod lexical;
mod store;
#[cfg(test)]
mod tests;

use crate::{chunk::Chunk, document::Document};
use dense::Dense;
use lexical::Lexical;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError, RwLock},
};
use store::Store;

/// What the rank of a hit is added to before it is turned over (Cormack et al., 2009: reciprocal rank fusion).
const RANK_OFFSET: f32 = 60.0;
/// Candidates that each way of searching gives, for each result that is asked for.
const CANDIDATES: usize = 5;
/// The fewest candidates that each way of searching gives.
const FEWEST: usize = 50;

/// Why the index cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The request can never succeed on this index.
    #[error("{0}")]
    Invalid(String),
    /// A file cannot be read or written.
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
}

/// What came of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Chunks that the document has now.
    pub chunks: usize,
    /// Whether the index had the document before.
    pub replaced: bool,
    /// Whether a later upload was there already, so that nothing was changed.
    pub stale: bool,
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
    /// BM25, where it was among the candidates by words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bm25: Option<f32>,
    /// Cosine, where it was among the candidates by meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f32>,
}

/// The index of every collection on this machine.
pub struct Index {
    store: Mutex<Store>,
    lexical: Lexical,
    dense: Dense,
    /// The document of each chunk, to tell during a search whether a chunk counts.
    owners: RwLock<HashMap<u64, u64>>,
    documents: RwLock<HashMap<u64, Document>>,
}

impl Index {
    /// Opens the index in `folder`, or begins it, for vectors that `model` gives.
    pub fn open(folder: &Path, model: &str, dimensions: usize) -> Result<Self, IndexError> {
        std::fs::create_dir_all(folder).map_err(IndexError::failed("making its folder"))?;
        let store = Store::open(&folder.join("chunks.sqlite"), model, dimensions)?;
        let lexical = Lexical::open(&folder.join("words"))?;
        let dense = Dense::open(&folder.join("vectors"), dimensions)?;
        let (documents, owners) = store.catalogue()?;
        let index = Self {
            lexical,
            dense,
            owners: RwLock::new(owners),
            documents: RwLock::new(documents),
            store: Mutex::new(store),
        };
        let store = index.store();
        index.catch_up(&store)?;
        drop(store);
        Ok(index)
    }

    /// Applies changes, all or none; what they add is found once this returns.
    pub fn apply(&self, changes: &[Change]) -> Result<Vec<Applied>, IndexError> {
        let mut store = self.store();
        let applied = store.apply(changes)?;
        let (documents, owners) = store.catalogue_since(&applied)?;
        // Readers see a chunk of a document only when its owner is known.
        write(&self.documents).extend(documents);
        write(&self.owners).extend(owners);
        self.catch_up(&store)?;
        Ok(applied.into_iter().map(|one| one.applied).collect())
    }

    /// Brings words and vectors to where the store is.
    fn catch_up(&self, store: &Store) -> Result<(), IndexError> {
        self.lexical.catch_up(store)?;
        self.dense.catch_up(store)?;
        let gone = store.forget_before(self.lexical.position().min(self.dense.saved()))?;
        let mut owners = write(&self.owners);
        for chunk in gone {
            owners.remove(&chunk);
        }
        Ok(())
    }

    /// The best chunks, the best first.
    pub fn search(&self, query: &Query) -> Result<Vec<Hit>, IndexError> {
        if query.vector.len() != self.dense.dimensions() {
            return Err(IndexError::Invalid(format!(
                "the question's vector has {} dimensions, and the index has {}: embed both with the same model",
                query.vector.len(),
                self.dense.dimensions()
            )));
        }
        let count = (query.limit * CANDIDATES).max(FEWEST);
        let (owners, documents) = (read(&self.owners), read(&self.documents));
        let counts = |chunk: u64| {
            let document = owners.get(&chunk).and_then(|owner| documents.get(owner));
            document.is_some_and(|document| document.collection == query.collection && matches(document, &query.filter))
        };
        let by_words = self.lexical.search(&query.text, &query.collection, count, &counts)?;
        let by_meaning = self.dense.search(&query.vector, count, &counts)?;
        let fused = fuse(&by_words, &by_meaning, query.weights);
        drop((owners, documents));
        let best: Vec<Found> = fused.into_iter().take(query.limit).collect();
        self.store().hits(&best)
    }

    /// Chunks in the index, of all collections.
    pub fn len(&self) -> Result<usize, IndexError> {
        self.store().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> Result<bool, IndexError> {
        Ok(self.len()? == 0)
    }

    /// Writes down what a restart would have to make again.
    pub fn save(&self) -> Result<(), IndexError> {
        let store = self.store();
        self.dense.save(&store)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn matches(document: &Document, filter: &Map<String, Value>) -> bool {
    filter.iter().all(|(key, wanted)| match (document.metadata.get(key), wanted) {
        (None, _) => false,
        (Some(Value::Array(has)), Value::Array(any)) => any.iter().any(|one| has.contains(one)),
        (Some(Value::Array(has)), one) => has.contains(one),
        (Some(has), Value::Array(any)) => any.contains(has),
        (Some(has), one) => has == one,
    })
}

/// A chunk and how it was found.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Found {
    chunk: u64,
    score: f32,
    bm25: Option<f32>,
    similarity: Option<f32>,
}

/// Adds up what each ranking says of a chunk: its weight over its rank and a constant.
fn fuse(by_words: &[(u64, f32)], by_meaning: &[(u64, f32)], weights: Weights) -> Vec<Found> {
    let mut found: HashMap<u64, Found> = HashMap::new();
    let rankings = [(by_words, weights.lexical, true), (by_meaning, weights.dense, false)];
    for (ranking, weight, words) in rankings {
        // Ranks are far below where an f32 loses whole numbers.
        #[expect(clippy::cast_precision_loss)]
        for (rank, (chunk, value)) in ranking.iter().enumerate() {
            let one = found.entry(*chunk).or_insert(Found { chunk: *chunk, score: 0.0, bm25: None, similarity: None });
            one.score += weight / (RANK_OFFSET + rank as f32 + 1.0);
            *(if words { &mut one.bm25 } else { &mut one.similarity }) = Some(*value);
        }
    }
    let mut fused: Vec<Found> = found.into_values().collect();
    fused.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.chunk.cmp(&b.chunk)));
    fused
}

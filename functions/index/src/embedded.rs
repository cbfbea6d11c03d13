//! The index in a folder, for one process.
//!
//! # Layout
//! - `store`: documents, chunks and vectors in SQLite, the source of truth. `rows`: its rows as values.
//! - `lexical`: the lexical index, in tantivy (BM25).
//! - `dense`: the vector index, in usearch (HNSW, cosine).
//! - `scrub`: removal of erased data from all files.
//!
//! # Consistency
//! A change is one numbered transaction of `store`. The other two store the number of their last change and catch up
//! when the index is opened: after a crash they apply the missing changes, and missing or corrupt files are rebuilt
//! from `store`.

mod dense;
mod lexical;
mod rows;
mod scrub;
mod store;

use crate::{
    change::{Change, ChangeResult},
    error::IndexError,
    fusion::{Candidate, fuse},
    query::Query,
};
use dense::Dense;
use lexical::Lexical;
use nerve_core::quota::Quotas;
use nerve_events::{documents::Document, retrieval::Hit};
use parking_lot::{Mutex, RwLock};
use serde_json::{Map, Value};
use std::{collections::HashMap, path::Path};
use store::Store;

/// The index of all collections on this machine.
pub(crate) struct Embedded {
    store: Mutex<Store>,
    pub(crate) lexical: Lexical,
    pub(crate) dense: Dense,
    /// Document of each chunk, for filtering during a search.
    owners: RwLock<HashMap<u64, u64>>,
    pub(crate) documents: RwLock<HashMap<u64, Document>>,
}

impl Embedded {
    /// Opens or creates the index in `folder`, for vectors of `model`.
    ///
    /// # Errors
    /// [`IndexError::Invalid`] if the index was built with another model; [`IndexError::Failed`] if files cannot be
    /// read or written.
    pub(crate) fn open(folder: &Path, model: &str, dimensions: usize) -> Result<Self, IndexError> {
        std::fs::create_dir_all(folder).map_err(IndexError::failed("creating the index folder"))?;
        let store = Store::open(&folder.join("chunks.sqlite"), model, dimensions)?;
        let lexical = Lexical::open(&folder.join("words"))?;
        let dense = Dense::open(&folder.join("vectors"), dimensions)?;
        let (documents, owners) = store.catalog()?;
        let index = Self {
            lexical,
            dense,
            owners: RwLock::new(owners),
            documents: RwLock::new(documents),
            store: Mutex::new(store),
        };
        let store = index.store.lock();
        index.catch_up(&store)?;
        drop(store);
        Ok(index)
    }

    /// Applies changes atomically. They are searchable when this returns.
    pub(crate) fn apply(&self, changes: &[Change], quotas: &Quotas) -> Result<Vec<ChangeResult>, IndexError> {
        let mut store = self.store.lock();
        let applied = store.apply(changes, quotas)?;
        let (documents, owners) = store.catalog_of(&applied)?;
        // A chunk is visible to searches only once its owner is known.
        self.documents.write().extend(documents);
        self.owners.write().extend(owners);
        self.catch_up(&store)?;
        Ok(applied.into_iter().map(|one| one.applied).collect())
    }

    /// Brings the lexical and the vector index up to date with the store.
    pub(crate) fn catch_up(&self, store: &Store) -> Result<(), IndexError> {
        self.lexical.catch_up(store)?;
        self.dense.catch_up(store)?;
        let removed = store.prune_changes(self.lexical.position().min(self.dense.saved()))?;
        let mut owners = self.owners.write();
        for chunk in removed {
            owners.remove(&chunk);
        }
        Ok(())
    }

    /// Returns the best chunks, best first.
    pub(crate) fn search(&self, query: &Query) -> Result<Vec<Hit>, IndexError> {
        let limit = query.candidates();
        let (owners, documents) = (self.owners.read(), self.documents.read());
        let filter = |chunk: u64| {
            let document = owners.get(&chunk).and_then(|owner| documents.get(owner));
            document.is_some_and(|document| document.collection == query.collection && matches(document, &query.filter))
        };
        let lexical_candidates = self.lexical.search(&query.text, &query.collection, limit, &filter)?;
        let dense_candidates = self.dense.search(&query.vector, limit, &filter)?;
        let fused = fuse(&lexical_candidates, &dense_candidates, query.weights);
        drop((owners, documents));
        let mut best: Vec<Candidate> = fused.into_iter().take(query.limit).collect();
        // A reranker needs the similarity of every hit and would otherwise embed the text again.
        for found in best.iter_mut().filter(|found| found.similarity.is_none()) {
            found.similarity = self.dense.similarity(found.chunk, &query.vector)?;
        }
        self.store.lock().hits(&best)
    }

    /// Number of documents in a collection, and the size of their text in bytes.
    pub(crate) fn collection_usage(&self, collection: &str) -> Result<(u64, u64), IndexError> {
        self.store.lock().collection_usage(collection)
    }

    /// Number of chunks in all collections.
    pub(crate) fn len(&self) -> Result<usize, IndexError> {
        self.store.lock().len()
    }

    pub(crate) fn dimensions(&self) -> usize {
        self.dense.dimensions()
    }

    /// Saves what a restart would otherwise have to rebuild.
    pub(crate) fn save(&self) -> Result<(), IndexError> {
        let store = self.store.lock();
        self.dense.save(&store)
    }
}

fn matches(document: &Document, filter: &Map<String, Value>) -> bool {
    filter.iter().all(|(key, expected)| match (document.metadata.get(key), expected) {
        (None, _) => false,
        (Some(Value::Array(has)), Value::Array(any)) => any.iter().any(|one| has.contains(one)),
        (Some(Value::Array(has)), one) => has.contains(one),
        (Some(has), Value::Array(any)) => any.contains(has),
        (Some(has), one) => has == one,
    })
}

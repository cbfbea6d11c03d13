//! The index in a folder, for the one process that has it open.
//!
//! # Layout
//! - `store`: documents, chunks and vectors in SQLite: the truth, in one file.
//! - `lexical`: their words, in tantivy (BM25).
//! - `dense`: their vectors, in usearch (HNSW, cosine).
//! - `scrub`: its files without what was erased.
//!
//! # How they stay one
//! A change is one transaction of `store`, which numbers it. Both others remember the number they have got to, and
//! catch up when the index is opened: after a crash, or when their files are gone, they are made again from `store`.

mod dense;
mod lexical;
mod scrub;
mod store;

use crate::{
    change::{Applied, Change},
    document::Document,
    error::IndexError,
    fusion::{Found, fuse},
    query::{Hit, Query},
};
use dense::Dense;
use lexical::Lexical;
use nerve_core::quota::Quotas;
use serde_json::{Map, Value};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError, RwLock},
};
use store::Store;

/// The index of every collection on this machine.
pub(crate) struct Embedded {
    store: Mutex<Store>,
    pub(crate) lexical: Lexical,
    pub(crate) dense: Dense,
    /// The document of each chunk, to tell during a search whether a chunk counts.
    owners: RwLock<HashMap<u64, u64>>,
    pub(crate) documents: RwLock<HashMap<u64, Document>>,
}

impl Embedded {
    /// Opens the index in `folder`, or begins it, for vectors that `model` gives.
    pub(crate) fn open(folder: &Path, model: &str, dimensions: usize) -> Result<Self, IndexError> {
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
    pub(crate) fn apply(&self, changes: &[Change], quotas: &Quotas) -> Result<Vec<Applied>, IndexError> {
        let mut store = self.store();
        let applied = store.apply(changes, quotas)?;
        let (documents, owners) = store.catalogue_since(&applied)?;
        // Readers see a chunk of a document only when its owner is known.
        write(&self.documents).extend(documents);
        write(&self.owners).extend(owners);
        self.catch_up(&store)?;
        Ok(applied.into_iter().map(|one| one.applied).collect())
    }

    /// Brings words and vectors to where the store is.
    pub(crate) fn catch_up(&self, store: &Store) -> Result<(), IndexError> {
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
    pub(crate) fn search(&self, query: &Query) -> Result<Vec<Hit>, IndexError> {
        let count = query.candidates();
        let (owners, documents) = (read(&self.owners), read(&self.documents));
        let counts = |chunk: u64| {
            let document = owners.get(&chunk).and_then(|owner| documents.get(owner));
            document.is_some_and(|document| document.collection == query.collection && matches(document, &query.filter))
        };
        let by_words = self.lexical.search(&query.text, &query.collection, count, &counts)?;
        let by_meaning = self.dense.search(&query.vector, count, &counts)?;
        let fused = fuse(&by_words, &by_meaning, query.weights);
        drop((owners, documents));
        let mut best: Vec<Found> = fused.into_iter().take(query.limit).collect();
        // Whoever ranks anew wants to know it of all, and would have to embed the text again.
        for found in best.iter_mut().filter(|found| found.similarity.is_none()) {
            found.similarity = self.dense.similarity(found.chunk, &query.vector)?;
        }
        self.store().hits(&best)
    }

    /// How many documents a collection has, and how many bytes their text has.
    pub(crate) fn held_of(&self, collection: &str) -> Result<(u64, u64), IndexError> {
        self.store().held_of(collection)
    }

    /// Chunks in the index, of all collections.
    pub(crate) fn len(&self) -> Result<usize, IndexError> {
        self.store().len()
    }

    pub(crate) fn dimensions(&self) -> usize {
        self.dense.dimensions()
    }

    /// Writes down what a restart would have to make again.
    pub(crate) fn save(&self) -> Result<(), IndexError> {
        let store = self.store();
        self.dense.save(&store)
    }

    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
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

//! The vector index, in usearch.

use super::store::{ChunkChange, Store};
use crate::error::IndexError;
use parking_lot::RwLock;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};
use usearch::{Index, IndexOptions, MetricKind, ScalarKind};

/// Number of neighbors of each vector in the graph.
const CONNECTIVITY: usize = 16;
/// Number of candidates when adding a vector.
const EXPANSION_ADD: usize = 128;
/// Number of candidates when searching.
const EXPANSION_SEARCH: usize = 128;
/// Number of changes between saves of the graph.
const SAVE_INTERVAL_CHANGES: u64 = 20_000;
/// Initial capacity in vectors; later the capacity doubles.
const INITIAL_CAPACITY: usize = 1024;

/// The vector index.
pub(crate) struct Dense {
    /// Locked for writing only to grow or replace it; usearch synchronizes additions and searches.
    graph: RwLock<Index>,
    folder: PathBuf,
    dimensions: usize,
    position: AtomicU64,
    saved: AtomicU64,
}

fn failed<E: std::error::Error + Send + Sync + 'static>(operation: &'static str) -> impl FnOnce(E) -> IndexError {
    IndexError::failed(operation)
}

impl Dense {
    pub(crate) fn open(folder: &Path, dimensions: usize) -> Result<Self, IndexError> {
        fs::create_dir_all(folder).map_err(failed("creating the vector index folder"))?;
        let graph = Index::new(&options(dimensions)).map_err(failed("creating the vector index"))?;
        let mut saved = newest_saved_position(folder);
        if saved > 0 && !load_graph(&graph, &graph_file(folder, saved), dimensions) {
            tracing::warn!(folder = %folder.display(), "the saved vector index cannot be read; rebuilding it");
            graph.reset().map_err(failed("clearing the vector index"))?;
            saved = 0;
        }
        let (position, saved) = (AtomicU64::new(saved), AtomicU64::new(saved));
        Ok(Self { graph: RwLock::new(graph), folder: folder.to_owned(), dimensions, position, saved })
    }

    pub(crate) fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Number of the last applied change.
    pub(crate) fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// Number of the last saved change.
    pub(crate) fn saved(&self) -> u64 {
        self.saved.load(Ordering::Acquire)
    }

    /// Applies the changes since the last one from the store.
    pub(crate) fn catch_up(&self, store: &Store) -> Result<(), IndexError> {
        let (from, to) = (self.position.load(Ordering::Acquire), store.position()?);
        if from == to {
            return Ok(());
        }
        if store.has_changes_since(from)? {
            store.for_each_change(from, |change| self.apply_change(change))?;
        } else {
            self.graph.write().reset().map_err(failed("clearing the vector index"))?;
            store.for_each_chunk(|change| self.apply_change(change))?;
        }
        self.position.store(to, Ordering::Release);
        if to - self.saved() >= SAVE_INTERVAL_CHANGES { self.save(store) } else { Ok(()) }
    }

    /// An empty graph of the same dimensions that will contain the vectors as of `position`.
    pub(crate) fn successor(&self, position: u64) -> Result<Self, IndexError> {
        let graph = Index::new(&options(self.dimensions)).map_err(failed("creating the vector index"))?;
        // It is not saved while it catches up.
        let (position, saved) = (AtomicU64::new(position), AtomicU64::new(position));
        Ok(Self {
            graph: RwLock::new(graph),
            folder: self.folder.clone(),
            dimensions: self.dimensions,
            position,
            saved,
        })
    }

    /// Replaces the graph, which still contains removed vectors, by that of a successor, and saves it.
    pub(crate) fn replace_with(&self, successor: Self, store: &Store) -> Result<(), IndexError> {
        successor.catch_up(store)?;
        let position = successor.position();
        let graph = successor.graph.into_inner();
        *self.graph.write() = graph;
        self.position.store(position, Ordering::Release);
        self.save_graph()
    }

    /// Adds a chunk's vector.
    pub(crate) fn add(&self, chunk: u64, vector: Vec<f32>) -> Result<(), IndexError> {
        self.apply_change(ChunkChange::Add {
            chunk,
            vector,
            collection: String::new(),
            heading: String::new(),
            text: String::new(),
        })
    }

    fn apply_change(&self, change: ChunkChange) -> Result<(), IndexError> {
        match change {
            ChunkChange::Add { chunk, vector, .. } => {
                self.reserve()?;
                let graph = self.graph.read();
                if !graph.contains(chunk) {
                    graph.add(chunk, &vector).map_err(failed("adding a vector"))?;
                }
            }
            ChunkChange::Remove { chunk } => {
                let graph = self.graph.read();
                graph.remove(chunk).map_err(failed("removing a vector"))?;
            }
        }
        Ok(())
    }

    /// Doubles the capacity if the graph is full.
    fn reserve(&self) -> Result<(), IndexError> {
        let full = |graph: &Index| graph.size() >= graph.capacity();
        if !full(&self.graph.read()) {
            return Ok(());
        }
        let graph = self.graph.write();
        let capacity = (graph.size() * 2).max(INITIAL_CAPACITY);
        graph.reserve(capacity).map_err(failed("growing the vector index"))
    }

    /// Saves the graph to a new file and deletes the previous one.
    pub(crate) fn save(&self, store: &Store) -> Result<(), IndexError> {
        self.catch_up_if_behind(store)?;
        if self.saved() == self.position() { Ok(()) } else { self.save_graph() }
    }

    fn save_graph(&self) -> Result<(), IndexError> {
        let (previous, position) = (self.saved(), self.position());
        if position == 0 {
            return Ok(());
        }
        let temporary = self.folder.join("writing");
        let graph = self.graph.read();
        graph.save(&temporary.to_string_lossy()).map_err(failed("saving the vector index"))?;
        fs::rename(&temporary, graph_file(&self.folder, position)).map_err(failed("saving the vector index"))?;
        self.saved.store(position, Ordering::Release);
        if previous != position {
            fs::remove_file(graph_file(&self.folder, previous)).ok();
        }
        Ok(())
    }

    /// No-op if every change was applied when it was made.
    fn catch_up_if_behind(&self, store: &Store) -> Result<(), IndexError> {
        let behind = self.position.load(Ordering::Acquire) != store.position()?;
        if behind { self.catch_up(store) } else { Ok(()) }
    }

    /// The chunks nearest to `vector`, nearest first, with their cosine similarity.
    pub(crate) fn search(
        &self,
        vector: &[f32],
        limit: usize,
        filter: &dyn Fn(u64) -> bool,
    ) -> Result<Vec<(u64, f32)>, IndexError> {
        let graph = self.graph.read();
        if graph.size() == 0 {
            return Ok(Vec::new());
        }
        let found = graph.filtered_search(vector, limit, filter).map_err(failed("searching vectors"))?;
        Ok(found.keys.into_iter().zip(found.distances).map(|(chunk, distance)| (chunk, 1.0 - distance)).collect())
    }

    /// Cosine similarity of a chunk's vector and `vector`; `None` if the chunk was removed.
    pub(crate) fn similarity(&self, chunk: u64, vector: &[f32]) -> Result<Option<f32>, IndexError> {
        let mut known = vec![0.0; self.dimensions];
        let graph = self.graph.read();
        let vectors = graph.get(chunk, &mut known).map_err(failed("reading a vector"))?;
        Ok((vectors > 0).then(|| cosine(&known, vector)))
    }
}

/// Cosine similarity of two vectors of any length.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

fn options(dimensions: usize) -> IndexOptions {
    IndexOptions {
        dimensions,
        metric: MetricKind::Cos,
        quantization: ScalarKind::F16,
        connectivity: CONNECTIVITY,
        expansion_add: EXPANSION_ADD,
        expansion_search: EXPANSION_SEARCH,
        multi: false,
    }
}

fn graph_file(folder: &Path, position: u64) -> PathBuf {
    folder.join(format!("{position}.usearch"))
}

/// Position of the newest graph in `folder`; 0 if there is none.
fn newest_saved_position(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.strip_suffix(".usearch")?.parse().ok()).max().unwrap_or_default()
}

fn load_graph(graph: &Index, graph_file: &Path, dimensions: usize) -> bool {
    graph.load(&graph_file.to_string_lossy()).is_ok() && graph.dimensions() == dimensions
}

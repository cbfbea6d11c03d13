//! The vectors of chunks, in usearch.

use super::store::{Step, Store};
use crate::error::IndexError;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};
use usearch::{Index, IndexOptions, MetricKind, ScalarKind};

/// Neighbours of each vector in the graph.
const CONNECTIVITY: usize = 16;
/// Candidates while a vector is added, and while one is searched for.
const EXPANSION: (usize, usize) = (128, 128);
/// Changes after which the graph is written down.
const SAVED_EVERY: u64 = 20_000;
/// Room for vectors is made for so many at a time, or twice what there is.
const ROOM: usize = 1024;

/// Vectors to chunks.
pub(crate) struct Dense {
    /// Written to only when it grows: adding and searching take care of each other.
    graph: RwLock<Index>,
    folder: PathBuf,
    dimensions: usize,
    position: AtomicU64,
    saved: AtomicU64,
}

fn failed<E: std::error::Error + Send + Sync + 'static>(what: &'static str) -> impl FnOnce(E) -> IndexError {
    IndexError::failed(what)
}

impl Dense {
    pub(crate) fn open(folder: &Path, dimensions: usize) -> Result<Self, IndexError> {
        fs::create_dir_all(folder).map_err(failed("making the folder of its vectors"))?;
        let graph = Index::new(&options(dimensions)).map_err(failed("beginning its vectors"))?;
        let mut saved = saved_in(folder);
        if saved > 0 && !load(&graph, &file(folder, saved), dimensions) {
            tracing::warn!(folder = %folder.display(), "the graph of vectors cannot be read, and is made again");
            graph.reset().map_err(failed("emptying its vectors"))?;
            saved = 0;
        }
        let (position, saved) = (AtomicU64::new(saved), AtomicU64::new(saved));
        Ok(Self { graph: RwLock::new(graph), folder: folder.to_owned(), dimensions, position, saved })
    }

    pub(crate) fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The number of the last change that it has.
    pub(crate) fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// The number of the last change that is written down.
    pub(crate) fn saved(&self) -> u64 {
        self.saved.load(Ordering::Acquire)
    }

    /// Takes over what the store has since.
    pub(crate) fn catch_up(&self, store: &Store) -> Result<(), IndexError> {
        let (from, to) = (self.position.load(Ordering::Acquire), store.position()?);
        if from == to {
            return Ok(());
        }
        if store.remembers(from)? {
            store.steps(from, |step| self.take(step))?;
        } else {
            self.graph
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .reset()
                .map_err(failed("emptying its vectors"))?;
            store.all(|step| self.take(step))?;
        }
        self.position.store(to, Ordering::Release);
        if to - self.saved() >= SAVED_EVERY { self.save(store) } else { Ok(()) }
    }

    /// A graph of as many dimensions, for the vectors that there are from `position` on.
    pub(crate) fn successor(&self, position: u64) -> Result<Self, IndexError> {
        let graph = Index::new(&options(self.dimensions)).map_err(failed("beginning its vectors"))?;
        // It is not written down while it catches up.
        let (position, saved) = (AtomicU64::new(position), AtomicU64::new(position));
        Ok(Self {
            graph: RwLock::new(graph),
            folder: self.folder.clone(),
            dimensions: self.dimensions,
            position,
            saved,
        })
    }

    /// Replaces its graph, which still holds what was removed, by that of a successor, and saves it.
    pub(crate) fn succeed(&self, successor: Self, store: &Store) -> Result<(), IndexError> {
        successor.catch_up(store)?;
        let position = successor.position();
        let graph = successor.graph.into_inner().unwrap_or_else(PoisonError::into_inner);
        *self.graph.write().unwrap_or_else(PoisonError::into_inner) = graph;
        self.position.store(position, Ordering::Release);
        self.write_down()
    }

    /// Adds a chunk's vector.
    pub(crate) fn add(&self, chunk: u64, vector: Vec<f32>) -> Result<(), IndexError> {
        self.take(Step::Add { chunk, vector, collection: String::new(), heading: String::new(), text: String::new() })
    }

    fn take(&self, step: Step) -> Result<(), IndexError> {
        match step {
            Step::Add { chunk, vector, .. } => {
                self.make_room()?;
                let graph = self.graph.read().unwrap_or_else(PoisonError::into_inner);
                if !graph.contains(chunk) {
                    graph.add(chunk, &vector).map_err(failed("adding a vector"))?;
                }
            }
            Step::Remove { chunk } => {
                let graph = self.graph.read().unwrap_or_else(PoisonError::into_inner);
                graph.remove(chunk).map_err(failed("removing a vector"))?;
            }
        }
        Ok(())
    }

    fn make_room(&self) -> Result<(), IndexError> {
        let full = |graph: &Index| graph.size() >= graph.capacity();
        if !full(&self.graph.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        let graph = self.graph.write().unwrap_or_else(PoisonError::into_inner);
        let room = (graph.size() * 2).max(ROOM);
        graph.reserve(room).map_err(failed("making room for vectors"))
    }

    /// Writes the graph down beside the last one, which goes then.
    pub(crate) fn save(&self, store: &Store) -> Result<(), IndexError> {
        self.catch_up_unsaved(store)?;
        if self.saved() == self.position() { Ok(()) } else { self.write_down() }
    }

    fn write_down(&self) -> Result<(), IndexError> {
        let (before, now) = (self.saved(), self.position());
        if now == 0 {
            return Ok(());
        }
        let temporary = self.folder.join("writing");
        let graph = self.graph.read().unwrap_or_else(PoisonError::into_inner);
        graph.save(&temporary.to_string_lossy()).map_err(failed("writing its vectors"))?;
        fs::rename(&temporary, file(&self.folder, now)).map_err(failed("writing its vectors"))?;
        self.saved.store(now, Ordering::Release);
        if before != now {
            fs::remove_file(file(&self.folder, before)).ok();
        }
        Ok(())
    }

    /// Nothing to do where every change was taken over as it was made.
    fn catch_up_unsaved(&self, store: &Store) -> Result<(), IndexError> {
        let behind = self.position.load(Ordering::Acquire) != store.position()?;
        if behind { self.catch_up(store) } else { Ok(()) }
    }

    /// The chunks nearest to `vector`, the nearest first, with their cosine.
    pub(crate) fn search(
        &self,
        vector: &[f32],
        count: usize,
        counts: &dyn Fn(u64) -> bool,
    ) -> Result<Vec<(u64, f32)>, IndexError> {
        let graph = self.graph.read().unwrap_or_else(PoisonError::into_inner);
        if graph.size() == 0 {
            return Ok(Vec::new());
        }
        let found = graph.filtered_search(vector, count, counts).map_err(failed("searching vectors"))?;
        Ok(found.keys.into_iter().zip(found.distances).map(|(chunk, distance)| (chunk, 1.0 - distance)).collect())
    }

    /// The cosine of a chunk's vector and this one; none where the chunk is gone.
    pub(crate) fn similarity(&self, chunk: u64, vector: &[f32]) -> Result<Option<f32>, IndexError> {
        let mut known = vec![0.0; self.dimensions];
        let graph = self.graph.read().unwrap_or_else(PoisonError::into_inner);
        let vectors = graph.get(chunk, &mut known).map_err(failed("reading a vector"))?;
        Ok((vectors > 0).then(|| cosine(&known, vector)))
    }
}

/// The cosine of two vectors of any length.
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
        expansion_add: EXPANSION.0,
        expansion_search: EXPANSION.1,
        multi: false,
    }
}

fn file(folder: &Path, position: u64) -> PathBuf {
    folder.join(format!("{position}.usearch"))
}

/// The position of the newest graph in `folder`; 0 where there is none.
fn saved_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.strip_suffix(".usearch")?.parse().ok()).max().unwrap_or_default()
}

fn load(graph: &Index, file: &Path, dimensions: usize) -> bool {
    graph.load(&file.to_string_lossy()).is_ok() && graph.dimensions() == dimensions
}

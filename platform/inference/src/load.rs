//! From the files of a model to a model in memory.

use crate::{
    causal::{CausalModel, CausalParts},
    files::{FolderError, unreadable},
    folder::locate,
    layout::{self, Layout},
    library::Library,
    loaded::{Kind, Loaded},
    proto::Outline,
    session::Recipe,
    settings::{Provider, Settings},
    tensor::{Origins, TensorModel, TensorParts},
    text::{TextModel, TextParts},
};
use std::{fs, path::Path};
use tokio_util::task::TaskTracker;

/// The most memory that copies of one model's weights may take, in bytes; a larger model has one session.
const COPIES: u64 = 1 << 30;

/// A model to load.
pub(crate) struct Source<'s> {
    pub(crate) name: &'s str,
    pub(crate) library: Library,
    /// Its folder, or the graph in it.
    pub(crate) path: &'s Path,
    /// Where its optimised graph is kept.
    pub(crate) cache: Option<&'s Path>,
}

impl Source<'_> {
    /// Loads it; its threads are in `tasks`.
    pub(crate) fn load(self, settings: &Settings, tasks: &TaskTracker) -> Result<Loaded, FolderError> {
        let Self { name, library, path, cache } = self;
        let (root, graph) = locate(path)?;
        let graph = root.join(graph);
        let root = root.as_path();
        let bytes = nerve_files::read(&graph, u64::MAX).map_err(|error| unreadable(&graph, &error))?;
        let outline = Outline::read(&bytes).map_err(FolderError)?;
        let layout = Layout::read(root, &outline)?;
        let origins = if matches!(layout.kind, layout::Kind::Ports(..)) {
            Origins::read(bytes.into())
        } else {
            drop(bytes);
            Origins::default()
        };
        // An optimised graph would look for its weights beside itself.
        let cache = cache.filter(|_| outline.external.is_empty());
        let recipe = Recipe::prepare(library, graph, settings, cache).map_err(FolderError)?;
        let (sessions, threads) = share(root, settings);
        let description = layout.description();
        let queue = settings.queue;
        let kind = match layout.kind {
            layout::Kind::Text(layout) => {
                let parts = TextParts { name, root, layout, recipe: recipe.with_threads(threads), sessions, queue };
                Kind::Text(TextModel::load(parts, tasks)?)
            }
            layout::Kind::Causal(layout) => {
                // A step has one token: only several threads together make it faster.
                let (recipe, context) = (recipe.with_threads(settings.cores()), settings.context);
                let helpers = settings.trials.as_ref().map(|trials| &trials.pool);
                let parts = CausalParts { name, root, layout, queue, context, helpers };
                Kind::Causal(CausalModel::load(parts, recipe, tasks)?)
            }
            layout::Kind::Ports(..) => {
                let parts = TensorParts { name, recipe: recipe.with_threads(threads), origins, sessions, queue };
                Kind::Tensor(TensorModel::load(parts, tasks)?)
            }
        };
        Ok(Loaded { name: name.to_owned(), description, kind })
    }
}

/// Sessions of a model, and the threads of each.
///
/// A session a core does more in a second than one session over all cores, as nothing waits for the slowest of
/// several threads; but each has a copy of the weights.
fn share(root: &Path, settings: &Settings) -> (usize, usize) {
    let cores = settings.cores();
    if settings.providers.first().is_some_and(|provider| *provider != Provider::Cpu) {
        return (1, cores);
    }
    let size = folder_size(root).max(1);
    let sessions = usize::try_from(COPIES / size).unwrap_or(usize::MAX).clamp(1, cores);
    (sessions, cores.div_ceil(sessions))
}

fn folder_size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_size(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

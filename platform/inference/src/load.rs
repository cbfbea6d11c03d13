//! Loads a model from its files.

use crate::{
    causal::{CausalModel, CausalParts},
    files::{ModelError, unreadable},
    folder::locate,
    library::Library,
    loaded::{LoadedKind, LoadedModel},
    session::SessionConfig,
    settings::{Provider, Settings},
    signature::GraphSignature,
    spec::{self, ModelSpec},
    tensor::{OutputOrigins, TensorModel, TensorParts},
    text::{TextModel, TextParts},
};
use std::{fs, path::Path};
use tokio_util::task::TaskTracker;

/// Maximum size of the weight copies of one model in bytes; a larger model has one session.
const MAX_WEIGHT_COPIES_BYTES: u64 = 1 << 30;

/// A model to load.
pub(crate) struct ModelSource<'s> {
    pub(crate) name: &'s str,
    pub(crate) library: Library,
    /// Folder of the model, or its graph.
    pub(crate) path: &'s Path,
    /// Folder for the optimized graph.
    pub(crate) cache: Option<&'s Path>,
}

impl ModelSource<'_> {
    /// Loads the model; its threads are tracked by `tasks`.
    ///
    /// # Errors
    /// If the files are not a usable model.
    pub(crate) fn load(self, settings: &Settings, tasks: &TaskTracker) -> Result<LoadedModel, ModelError> {
        let Self { name, library, path, cache } = self;
        let (root, graph) = locate(path)?;
        let graph = root.join(graph);
        let root = root.as_path();
        let bytes = nerve_files::read(&graph, u64::MAX).map_err(|error| unreadable(&graph, &error))?;
        let signature = GraphSignature::read(&bytes).map_err(ModelError)?;
        let spec = ModelSpec::read(root, &signature)?;
        let output_origins = if matches!(spec.kind, spec::ModelKind::Tabular(..)) {
            OutputOrigins::read(bytes.into())
        } else {
            drop(bytes);
            OutputOrigins::default()
        };
        // An optimized graph would look for external weights in its own folder.
        let cache = cache.filter(|_| signature.external_files.is_empty());
        let session_config = SessionConfig::prepare(library, graph, settings, cache).map_err(ModelError)?;
        let (sessions, threads) = plan_sessions(root, settings);
        let description = spec.description();
        let queue = settings.queue;
        let kind = match spec.kind {
            spec::ModelKind::Text(spec) => {
                let parts = TextParts {
                    name,
                    root,
                    spec,
                    session_config: session_config.with_threads(threads),
                    sessions,
                    queue,
                };
                LoadedKind::Text(TextModel::load(parts, tasks)?)
            }
            spec::ModelKind::Causal(spec) => {
                // A decoding step has one token, so only intra-op threads make it faster.
                let (session_config, context) = (session_config.with_threads(settings.cores()), settings.context);
                let helpers = settings.prober.as_ref().map(|prober| &prober.pool);
                let parts = CausalParts { name, root, spec, queue, context, helpers };
                LoadedKind::Causal(CausalModel::load(parts, session_config, tasks)?)
            }
            spec::ModelKind::Tabular(..) => {
                let parts = TensorParts {
                    name,
                    session_config: session_config.with_threads(threads),
                    output_origins,
                    sessions,
                    queue,
                };
                LoadedKind::Tensor(TensorModel::load(parts, tasks)?)
            }
        };
        Ok(LoadedModel { name: name.to_owned(), description, kind })
    }
}

/// Number of sessions of a model, and threads per session.
///
/// One session per core has a higher throughput than one session over all cores, because no thread waits for the
/// slowest; but each session has a copy of the weights.
fn plan_sessions(root: &Path, settings: &Settings) -> (usize, usize) {
    let cores = settings.cores();
    if settings.providers.first().is_some_and(|provider| *provider != Provider::Cpu) {
        return (1, cores);
    }
    let size = folder_size(root).max(1);
    let sessions = usize::try_from(MAX_WEIGHT_COPIES_BYTES / size).unwrap_or(usize::MAX).clamp(1, cores);
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

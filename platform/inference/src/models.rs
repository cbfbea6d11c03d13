//! The models of this machine: loaded when they are first asked for, shared by all who ask, dropped when nobody does.

use crate::{
    causal::{CausalModel, CausalParts},
    files::FolderError,
    folder::{ModelFolder, locate},
    layout::{self, Layout},
    library::{Library, LibraryError},
    loaded::{Kind, Loaded},
    proto::Outline,
    session::Recipe,
    settings::{Provider, Settings},
    tensor::{Origins, TensorModel, TensorParts},
    text::{TextModel, TextParts},
};
use data_encoding::HEXLOWER;
use nerve_core::{
    function::Artifact,
    inference::{InferenceError, Model},
};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The most memory that copies of one model's weights may take, in bytes; a larger model has one session.
const COPIES: u64 = 1 << 30;
/// How long the folder of a model that nobody loads is kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// The models of this machine.
pub(crate) struct Models {
    settings: Settings,
    tasks: TaskTracker,
    slots: Mutex<HashMap<String, Arc<AsyncMutex<Slot>>>>,
    bundled: AsyncMutex<HashMap<String, Model>>,
}

/// One model, whether it is loaded or not.
#[derive(Default)]
struct Slot {
    model: Weak<Loaded>,
    /// Kept for requests, of which nobody knows whether another one comes.
    held: Option<(Arc<Loaded>, Instant)>,
}

impl Models {
    /// Starts with no model loaded; until `stop`, what is no longer used is dropped.
    pub(crate) fn start(settings: Settings, stop: CancellationToken, tasks: TaskTracker) -> Arc<Self> {
        let models =
            Arc::new(Self { settings, tasks: tasks.clone(), slots: Mutex::default(), bundled: AsyncMutex::default() });
        let sweeper = models.clone();
        tasks.spawn(async move {
            let every = (sweeper.settings.idle / 4).clamp(Duration::from_millis(50), Duration::from_secs(60));
            while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
                sweeper.sweep();
            }
            sweeper.slots().clear();
        });
        models
    }

    pub(crate) fn bundled_names(&self) -> Vec<String> {
        self.settings.bundled.keys().cloned().collect()
    }

    /// The bundled model of this name, with its files' digests.
    pub(crate) async fn bundled(&self, name: &str) -> Option<Model> {
        let mut known = self.bundled.lock().await;
        if let Some(model) = known.get(name) {
            return Some(model.clone());
        }
        let (folder, owned) = (self.settings.bundled.get(name)?.clone(), name.to_owned());
        let read = tokio::task::spawn_blocking(move || read_model(&owned, &folder)).await;
        match read.map_err(|error| FolderError(error.to_string())).flatten() {
            Ok(model) => {
                known.insert(name.to_owned(), model.clone());
                Some(model)
            }
            Err(error) => {
                tracing::error!(model = name, %error, "a model that comes with this installation cannot be used");
                None
            }
        }
    }

    /// The model in memory; it stays there as long as the result does, and with `hold` a while longer.
    pub(crate) async fn get(self: &Arc<Self>, model: &Model, hold: bool) -> Result<Arc<Loaded>, InferenceError> {
        let digest = digest(model);
        let slot = self.slots().entry(digest.clone()).or_default().clone();
        let mut slot = slot.lock_owned().await;
        let loaded = match slot.model.upgrade() {
            Some(loaded) => loaded,
            None => {
                let (models, model) = (self.clone(), model.clone());
                // On a task of its own: loading goes on for the next caller if this one leaves.
                let load = self.tasks.spawn(async move {
                    let load = tokio::task::spawn_blocking(move || models.load(&model, &digest)).await;
                    let loaded = load.map_err(|_| InferenceError::Failed("loading the model panicked".to_owned()))?;
                    let loaded = Arc::new(loaded?);
                    slot.model = Arc::downgrade(&loaded);
                    Ok::<_, InferenceError>((loaded, slot))
                });
                let ended = load.await.map_err(|_| InferenceError::Failed("loading the model panicked".to_owned()))?;
                let (loaded, taken) = ended?;
                slot = taken;
                loaded
            }
        };
        if hold {
            slot.held = Some((loaded.clone(), Instant::now()));
        }
        Ok(loaded)
    }

    fn load(&self, model: &Model, digest: &str) -> Result<Loaded, InferenceError> {
        let library = self.library().map_err(|error| InferenceError::Unavailable(error.to_string()))?;
        let started = Instant::now();
        let load = || {
            let cache = self.settings.cache.join(digest);
            fs::create_dir_all(&cache).map_err(|error| writing(&cache, &error))?;
            // When it was last used.
            fs::File::open(&cache).and_then(|folder| folder.set_modified(SystemTime::now())).ok();
            let root = place(model, &cache)?;
            self.open(&model.name, library, &root, &cache)
        };
        let loaded: Loaded = load().map_err(|FolderError(why)| {
            InferenceError::Unavailable(format!("the model `{}` cannot be loaded: {why}", model.name))
        })?;
        tracing::info!(model = model.name, seconds = started.elapsed().as_secs_f64(), "loaded");
        Ok(loaded)
    }

    /// ONNX Runtime, or why there is none.
    pub(crate) fn library(&self) -> Result<Library, LibraryError> {
        Library::load(self.settings.library.as_deref())
    }

    fn open(&self, name: &str, library: Library, root: &Path, cache: &Path) -> Result<Loaded, FolderError> {
        let (_, graph) = locate(root)?;
        let graph = root.join(graph);
        let bytes = fs::read(&graph).map_err(|error| crate::files::unreadable(&graph, &error))?;
        let outline = Outline::read(&bytes).map_err(FolderError)?;
        let layout = Layout::read(root, &outline)?;
        let origins = if matches!(layout.kind, layout::Kind::Ports(..)) {
            Origins::read(bytes.into())
        } else {
            drop(bytes);
            Origins::default()
        };
        // An optimised graph would look for its weights beside itself.
        let cache = Some(cache).filter(|_| outline.external.is_empty());
        let recipe = Recipe::prepare(library, graph, &self.settings, cache).map_err(FolderError)?;
        let (sessions, threads) = self.share(root);
        let description = layout.description();
        let queue = self.settings.queue;
        let kind = match layout.kind {
            layout::Kind::Text(layout) => {
                let parts = TextParts { name, root, layout, recipe: recipe.with_threads(threads), sessions, queue };
                Kind::Text(TextModel::load(parts, &self.tasks)?)
            }
            layout::Kind::Causal(layout) => {
                // A step has one token: only several threads together make it faster.
                let (recipe, context) = (recipe.with_threads(self.settings.cores()), self.settings.context);
                let parts = CausalParts { name, root, layout, recipe, queue, context };
                Kind::Causal(CausalModel::load(parts, &self.tasks)?)
            }
            layout::Kind::Ports(..) => {
                let parts = TensorParts { name, recipe: recipe.with_threads(threads), origins, sessions, queue };
                Kind::Tensor(TensorModel::load(parts, &self.tasks)?)
            }
        };
        Ok(Loaded { name: name.to_owned(), description, kind })
    }

    /// Sessions of a model, and the threads of each.
    ///
    /// A session a core does more in a second than one session over all cores, as nothing waits for the slowest of
    /// several threads; but each has a copy of the weights.
    fn share(&self, root: &Path) -> (usize, usize) {
        let cores = self.settings.cores();
        if self.settings.providers.first().is_some_and(|provider| *provider != Provider::Cpu) {
            return (1, cores);
        }
        let size = folder_size(root).max(1);
        let sessions = usize::try_from(COPIES / size).unwrap_or(usize::MAX).clamp(1, cores);
        (sessions, cores.div_ceil(sessions))
    }

    fn sweep(&self) {
        let idle = self.settings.idle;
        self.slots().retain(|_, slot| {
            let Ok(mut slot) = slot.try_lock() else { return true };
            slot.held = slot.held.take().filter(|(_, since)| since.elapsed() < idle);
            slot.model.strong_count() > 0
        });
        self.sweep_folders();
    }

    /// Removes the folders of models that nobody has loaded for long.
    fn sweep_folders(&self) {
        let Ok(folders) = fs::read_dir(&self.settings.cache) else { return };
        for folder in folders.flatten() {
            let name = folder.file_name().to_string_lossy().into_owned();
            let used = folder.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::now());
            let unused = used.elapsed().is_ok_and(|age| age > KEPT);
            if unused && !self.slots().contains_key(&name) {
                tracing::debug!(folder = %folder.path().display(), "removing a model that is no longer used");
                fs::remove_dir_all(folder.path()).ok();
            }
        }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<AsyncMutex<Slot>>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What tells a model from all others: its files' names and digests.
fn digest(model: &Model) -> String {
    let mut files: Vec<(&str, &str)> =
        model.files.iter().map(|file| (file.name.as_str(), file.sha256.as_str())).collect();
    files.sort_unstable();
    let mut hasher = Sha256::new();
    for (name, sha256) in files {
        hasher.update(format!("{name}\0{sha256}\0"));
    }
    HEXLOWER.encode(&hasher.finalize())
}

/// Reads a folder as the model of that name.
pub(crate) fn read_model(name: &str, folder: &Path) -> Result<Model, FolderError> {
    let ModelFolder { root, files, .. } = ModelFolder::read(folder)?;
    let file = |name: String| {
        let file = root.join(&name);
        let hashed = || {
            let mut hasher = Sha256::new();
            std::io::copy(&mut fs::File::open(&file)?, &mut hasher)?;
            Ok(HEXLOWER.encode(&hasher.finalize()))
        };
        let sha256 = hashed().map_err(|error| crate::files::unreadable(&file, &error))?;
        Ok(Artifact { name, sha256, file })
    };
    Ok(Model { name: name.to_owned(), files: files.into_iter().map(file).collect::<Result<_, _>>()? })
}

/// The folder that has the model's files under their own names.
fn place(model: &Model, cache: &Path) -> Result<PathBuf, FolderError> {
    let own = model.files.first().and_then(|first| first.file.to_str()?.strip_suffix(&first.name).map(PathBuf::from));
    if let Some(root) = own.filter(|root| model.files.iter().all(|file| root.join(&file.name) == file.file)) {
        return Ok(root);
    }
    let root = cache.join("files");
    for artifact in &model.files {
        let file = root.join(&artifact.name);
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).map_err(|error| writing(folder, &error))?;
        }
        if file.is_file() {
            continue;
        }
        // A link costs nothing, and outlives the artifact; a copy does where there are no links.
        let linked = fs::hard_link(&artifact.file, &file).or_else(|_| fs::copy(&artifact.file, &file).map(drop));
        linked.map_err(|error| writing(&file, &error))?;
    }
    Ok(root)
}

fn writing(path: &Path, error: &std::io::Error) -> FolderError {
    FolderError(format!("{} cannot be written: {error}", path.display()))
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

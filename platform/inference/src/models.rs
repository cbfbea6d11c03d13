//! The models of this machine: loaded when they are first asked for, shared by all who ask, dropped when nobody does.

use crate::{
    files::FolderError,
    folder::ModelFolder,
    library::{Library, LibraryError},
    load::Source,
    loaded::Loaded,
    settings::Settings,
    trials::{TrialError, Trials, depth},
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
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a model that was refused is not tried again.
const REFUSAL_PAUSE: Duration = Duration::from_secs(600);
/// How long a model that could not be tried is not tried again.
const FAILURE_PAUSE: Duration = Duration::from_secs(10);
/// The file, in a model's folder of the cache, that says how it was tried.
const VERDICT: &str = "tried";
/// How long the folder of a model that nobody loads is kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// The models of this machine.
pub(crate) struct Models {
    settings: Settings,
    tasks: TaskTracker,
    stop: CancellationToken,
    slots: Mutex<HashMap<String, Arc<AsyncMutex<Slot>>>>,
    bundled: AsyncMutex<HashMap<String, Model>>,
}

/// One model, whether it is loaded or not.
#[derive(Default)]
struct Slot {
    model: Weak<Loaded>,
    /// Kept for requests, of which nobody knows whether another one comes.
    held: Option<(Arc<Loaded>, Instant)>,
    /// Why it was not loaded, and until when it is not tried again.
    refused: Option<(String, Instant)>,
}

impl Slot {
    fn refusal(&self) -> Option<InferenceError> {
        let (why, until) = self.refused.as_ref()?;
        (Instant::now() < *until).then(|| InferenceError::Unavailable(why.clone()))
    }
}

/// Why a model is not loaded.
struct LoadFailure {
    why: String,
    /// How long it is not tried again.
    pause: Duration,
}

/// A model whose files lie where they are loaded from.
struct Placed {
    library: Library,
    root: PathBuf,
    /// What Nerve keeps of it.
    cache: PathBuf,
}

impl Models {
    /// Starts with no model loaded; until `stop`, what is no longer used is dropped.
    pub(crate) fn start(settings: Settings, stop: CancellationToken, tasks: TaskTracker) -> Arc<Self> {
        let models = Arc::new(Self {
            settings,
            tasks: tasks.clone(),
            stop: stop.clone(),
            slots: Mutex::default(),
            bundled: AsyncMutex::default(),
        });
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
                if let Some(refusal) = slot.refusal() {
                    return Err(refusal);
                }
                let (models, model) = (self.clone(), model.clone());
                // On a task of its own: loading goes on for the next caller if this one leaves.
                let load = self.tasks.spawn(async move {
                    let loaded = models.load(model, digest).await.map_err(|LoadFailure { why, pause }| {
                        slot.refused = Some((why.clone(), Instant::now() + pause));
                        InferenceError::Unavailable(why)
                    })?;
                    let loaded = Arc::new(loaded);
                    (slot.model, slot.refused) = (Arc::downgrade(&loaded), None);
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

    async fn load(self: Arc<Self>, model: Model, digest: String) -> Result<Loaded, LoadFailure> {
        let started = Instant::now();
        let failed = |why: String| LoadFailure {
            why: format!("the model `{}` cannot be loaded: {why}", model.name),
            pause: Duration::ZERO,
        };
        let (models, wanted, folder) = (self.clone(), model.clone(), digest.clone());
        let placed = blocking(move || models.place(&wanted, &folder)).await.map_err(failed)?;
        if let Some(trials) = &self.settings.trials {
            let tried = self.stop.run_until_cancelled(self.try_out(trials, &model, &digest, &placed)).await;
            let tried = tried.unwrap_or_else(|| Err(TrialError::Failed("the server is stopping".to_owned())));
            tried.map_err(|error| match error {
                TrialError::Refused(why) => LoadFailure { pause: REFUSAL_PAUSE, ..failed(why) },
                TrialError::Failed(why) => LoadFailure { pause: FAILURE_PAUSE, ..failed(why) },
            })?;
        }
        let (models, name) = (self.clone(), model.name.clone());
        let loaded = blocking(move || {
            let Placed { library, root, cache } = placed;
            let source = Source { name: &name, library, path: &root, cache: Some(&cache) };
            source.load(&models.settings, &models.tasks).map_err(|FolderError(why)| why)
        });
        let loaded = loaded.await.map_err(failed)?;
        tracing::info!(model = model.name, seconds = started.elapsed().as_secs_f64(), "loaded");
        Ok(loaded)
    }

    /// Puts the model's files where they are loaded from.
    fn place(&self, model: &Model, digest: &str) -> Result<Placed, String> {
        let library = self.library().map_err(|error| error.to_string())?;
        let cache = self.settings.cache.join(digest);
        fs::create_dir_all(&cache).map_err(|error| writing(&cache, &error).0)?;
        // When it was last used.
        fs::File::open(&cache).and_then(|folder| folder.set_modified(SystemTime::now())).ok();
        let root = place(model, &cache).map_err(|FolderError(why)| why)?;
        Ok(Placed { library, root, cache })
    }

    /// Tries the model in a helper process, unless these files were tried before or come with this installation.
    async fn try_out(&self, trials: &Trials, model: &Model, digest: &str, placed: &Placed) -> Result<(), TrialError> {
        let Placed { library, root, cache } = placed;
        let (verdict, kept) = (verdict(&self.settings, library), cache.join(VERDICT));
        if fs::read_to_string(&kept).is_ok_and(|kept| kept == verdict) {
            return Ok(());
        }
        let is_bundled = self.bundled(&model.name).await.is_some_and(|bundled| self::digest(&bundled) == digest);
        if !is_bundled {
            let size = model.files.iter().filter_map(|file| Some(fs::metadata(&file.file).ok()?.len())).sum();
            let started = Instant::now();
            // The library that runs here.
            let settings = Settings { library: Some(library.file.clone()), ..self.settings.clone() };
            let tried = trials.try_out(root, size, &settings).await;
            let (seconds, passed) = (started.elapsed().as_secs_f64(), tried.is_ok());
            tracing::info!(model = model.name, seconds, passed, "tried in a helper process");
            tried?;
        }
        if let Err(error) = fs::write(&kept, verdict) {
            tracing::warn!(file = %kept.display(), %error, "that a model was tried is not kept");
        }
        Ok(())
    }

    /// ONNX Runtime, or why there is none.
    pub(crate) fn library(&self) -> Result<Library, LibraryError> {
        Library::load(self.settings.library.as_deref())
    }

    fn sweep(&self) {
        let idle = self.settings.idle;
        self.slots().retain(|_, slot| {
            let Ok(mut slot) = slot.try_lock() else { return true };
            slot.held = slot.held.take().filter(|(_, since)| since.elapsed() < idle);
            slot.model.strong_count() > 0 || slot.refusal().is_some()
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

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err("loading it panicked".to_owned()))
}

/// Whatever decides how a trial ends, beside the model's files.
fn verdict(settings: &Settings, library: &Library) -> String {
    let size = library.file.metadata().map(|file| file.len()).unwrap_or_default();
    let (version, file, depth) = (env!("CARGO_PKG_VERSION"), library.file.display(), depth(settings));
    format!("nerve {version}, {file} of {size} bytes, {depth:?}\n")
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
        if !Path::new(&artifact.name).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(FolderError(format!("its file `{}` would lie outside of its folder", artifact.name)));
        }
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

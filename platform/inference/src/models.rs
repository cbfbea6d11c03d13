//! Loaded models of this process: loaded on first use, shared, and dropped when unused.

use crate::{
    files::ModelError,
    folder::ModelFolder,
    library::{Library, LibraryError},
    load::ModelSource,
    loaded::LoadedModel,
    probe::ProbeDepth,
    prober::{ModelProber, ProbeError, depth},
    settings::Settings,
};
use data_encoding::HEXLOWER;
use nerve_core::{
    function::Artifact,
    inference::{InferenceError, Model},
};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    fs,
    path::{Component, Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Interval before a refused model is probed again.
const REFUSED_RETRY_INTERVAL: Duration = Duration::from_secs(600);
/// Interval before a failed probe is retried.
const FAILED_RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// File in a model's cache folder that records a passed probe.
const PROBE_RECORD_FILE: &str = "tried";
/// Time after which the cache folder of an unused model is removed.
const CACHE_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// Loaded models of this process.
pub(crate) struct Models {
    settings: Settings,
    tasks: TaskTracker,
    stop: CancellationToken,
    slots: Mutex<HashMap<String, Arc<AsyncMutex<ModelSlot>>>>,
    bundled: AsyncMutex<HashMap<String, Model>>,
}

/// One model, loaded or not.
#[derive(Default)]
struct ModelSlot {
    model: Weak<LoadedModel>,
    /// A model kept in memory for further requests, and the time of the last one.
    kept: Option<(Arc<LoadedModel>, Instant)>,
    /// Why loading was refused, and when it may be retried.
    refused: Option<(String, Instant)>,
}

impl ModelSlot {
    fn refusal(&self) -> Option<InferenceError> {
        let (why, until) = self.refused.as_ref()?;
        (Instant::now() < *until).then(|| InferenceError::Unavailable(why.clone()))
    }
}

/// Why a model was not loaded.
struct LoadFailure {
    why: String,
    /// Interval before the next attempt.
    retry_after: Duration,
}

/// A model whose files are in their folder.
struct ModelFiles {
    library: Library,
    root: PathBuf,
    /// Cache folder of the model.
    cache: PathBuf,
}

impl Models {
    /// Starts without models; drops unused ones periodically until `stop`.
    pub(crate) fn start(settings: Settings, stop: CancellationToken, tasks: TaskTracker) -> Arc<Self> {
        let models = Arc::new(Self {
            settings,
            tasks: tasks.clone(),
            stop: stop.clone(),
            slots: Mutex::default(),
            bundled: AsyncMutex::default(),
        });
        let owner = models.clone();
        tasks.spawn(async move {
            let interval = (owner.settings.idle / 4).clamp(Duration::from_millis(50), Duration::from_secs(60));
            while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
                owner.drop_unused();
            }
            owner.slots().clear();
        });
        models
    }

    pub(crate) fn bundled_names(&self) -> Vec<String> {
        self.settings.bundled.keys().cloned().collect()
    }

    /// The bundled model of this name, with digests of its files.
    pub(crate) async fn bundled(&self, name: &str) -> Option<Model> {
        let mut bundled_models = self.bundled.lock().await;
        if let Some(model) = bundled_models.get(name) {
            return Some(model.clone());
        }
        let (folder, owned) = (self.settings.bundled.get(name)?.clone(), name.to_owned());
        let read = tokio::task::spawn_blocking(move || read_model(&owned, &folder)).await;
        match read.map_err(|error| ModelError(error.to_string())).flatten() {
            Ok(model) => {
                bundled_models.insert(name.to_owned(), model.clone());
                Some(model)
            }
            Err(error) => {
                tracing::error!(model = name, %error, "bundled model cannot be used");
                None
            }
        }
    }

    /// Loads the model, or returns the loaded one. It stays in memory while it is in use, and with `hold` for some
    /// time longer.
    pub(crate) async fn get(self: &Arc<Self>, model: &Model, keep: bool) -> Result<Arc<LoadedModel>, InferenceError> {
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
                // Runs in its own task, so that it continues for the next caller if this one is cancelled.
                let load = self.tasks.spawn(async move {
                    let loaded = models.load(model, digest).await.map_err(|LoadFailure { why, retry_after }| {
                        slot.refused = Some((why.clone(), Instant::now() + retry_after));
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
        if keep {
            slot.kept = Some((loaded.clone(), Instant::now()));
        }
        Ok(loaded)
    }

    async fn load(self: Arc<Self>, model: Model, digest: String) -> Result<LoadedModel, LoadFailure> {
        let started = Instant::now();
        let failed = |why: String| LoadFailure {
            why: format!("the model `{}` cannot be loaded: {why}", model.name),
            retry_after: Duration::ZERO,
        };
        let (models, requested, folder) = (self.clone(), model.clone(), digest.clone());
        let files_on_disk = blocking(move || models.provide_files(&requested, &folder)).await.map_err(failed)?;
        if let Some(prober) = &self.settings.prober {
            let result = self.stop.run_until_cancelled(self.probe(prober, &model, &digest, &files_on_disk)).await;
            let result = result.unwrap_or_else(|| Err(ProbeError::Failed("the server is stopping".to_owned())));
            result.map_err(|error| match error {
                ProbeError::Refused(why) => LoadFailure { retry_after: REFUSED_RETRY_INTERVAL, ..failed(why) },
                ProbeError::Failed(why) => LoadFailure { retry_after: FAILED_RETRY_INTERVAL, ..failed(why) },
            })?;
        }
        let (models, name) = (self.clone(), model.name.clone());
        let loaded = blocking(move || {
            let ModelFiles { library, root, cache } = files_on_disk;
            let source = ModelSource { name: &name, library, path: &root, cache: Some(&cache) };
            source.load(&models.settings, &models.tasks).map_err(|ModelError(why)| why)
        });
        let loaded = loaded.await.map_err(failed)?;
        tracing::info!(model = model.name, seconds = started.elapsed().as_secs_f64(), "loaded");
        Ok(loaded)
    }

    /// Provides the model's files in a folder and creates its cache folder.
    fn provide_files(&self, model: &Model, digest: &str) -> Result<ModelFiles, String> {
        let library = self.library().map_err(|error| error.to_string())?;
        let cache = self.settings.cache.join(digest);
        fs::create_dir_all(&cache).map_err(|error| cannot_write(&cache, &error).0)?;
        // The modification time records the last use.
        fs::File::open(&cache).and_then(|folder| folder.set_modified(SystemTime::now())).ok();
        let root = provide_files(model, &cache).map_err(|ModelError(why)| why)?;
        Ok(ModelFiles { library, root, cache })
    }

    /// Probes the model in a helper process, unless it is bundled or these files passed before.
    async fn probe(
        &self,
        prober: &ModelProber,
        model: &Model,
        digest: &str,
        files_on_disk: &ModelFiles,
    ) -> Result<(), ProbeError> {
        let ModelFiles { library, root, cache } = files_on_disk;
        let (key, record) = (probe_key(&self.settings, library), cache.join(PROBE_RECORD_FILE));
        if fs::read_to_string(&record).is_ok_and(|recorded| recorded == key) {
            return Ok(());
        }
        let is_bundled = self.bundled(&model.name).await.is_some_and(|bundled| self::digest(&bundled) == digest);
        if !is_bundled {
            let size = model.files.iter().filter_map(|file| Some(fs::metadata(&file.file).ok()?.len())).sum();
            let started = Instant::now();
            // The library that this process uses.
            let settings = Settings { library: Some(library.file.clone()), ..self.settings.clone() };
            let result = prober.probe(root, size, &settings).await;
            let (seconds, passed) = (started.elapsed().as_secs_f64(), result.is_ok());
            tracing::info!(model = model.name, seconds, passed, "probed in a helper process");
            result?;
        }
        if let Err(error) = fs::write(&record, key) {
            tracing::warn!(file = %record.display(), %error, "cannot record a passed probe; it will be repeated");
        }
        Ok(())
    }

    /// ONNX Runtime.
    ///
    /// # Errors
    /// If the library is missing, too old or unusable.
    pub(crate) fn library(&self) -> Result<Library, LibraryError> {
        Library::load(self.settings.library.as_deref())
    }

    fn drop_unused(&self) {
        let idle = self.settings.idle;
        self.slots().retain(|_, slot| {
            let Ok(mut slot) = slot.try_lock() else { return true };
            slot.kept = slot.kept.take().filter(|(_, since)| since.elapsed() < idle);
            slot.model.strong_count() > 0 || slot.refusal().is_some()
        });
        self.remove_unused_folders();
    }

    /// Removes cache folders of models that were not used for a long time.
    fn remove_unused_folders(&self) {
        let Ok(folders) = fs::read_dir(&self.settings.cache) else { return };
        for folder in folders.flatten() {
            let name = folder.file_name().to_string_lossy().into_owned();
            let used = folder.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::now());
            let unused = used.elapsed().is_ok_and(|age| age > CACHE_RETENTION);
            if unused && !self.slots().contains_key(&name) {
                tracing::debug!(folder = %folder.path().display(), "removing the cache of an unused model");
                fs::remove_dir_all(folder.path()).ok();
            }
        }
    }

    fn slots(&self) -> parking_lot::MutexGuard<'_, HashMap<String, Arc<AsyncMutex<ModelSlot>>>> {
        self.slots.lock()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err("loading it panicked".to_owned()))
}

/// Everything that affects a probe besides the model's files.
fn probe_key(settings: &Settings, library: &Library) -> String {
    let size = library.file.metadata().map(|file| file.len()).unwrap_or_default();
    let (version, file) = (env!("CARGO_PKG_VERSION"), library.file.display());
    // Stored: another spelling would probe every model again.
    let depth = match depth(settings) {
        ProbeDepth::Run { optimization, context } => {
            format!("Run {{ optimisation: {optimization:?}, context: {context} }}")
        }
        other => format!("{other:?}"),
    };
    format!("nerve {version}, {file} of {size} bytes, {depth}\n")
}

/// Digest of the names and digests of a model's files.
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

/// Reads a folder as a model with this name.
pub(crate) fn read_model(name: &str, folder: &Path) -> Result<Model, ModelError> {
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

/// The folder with the model's files under their own names; links them into the cache if necessary.
fn provide_files(model: &Model, cache: &Path) -> Result<PathBuf, ModelError> {
    let artifact_root =
        model.files.first().and_then(|first| first.file.to_str()?.strip_suffix(&first.name).map(PathBuf::from));
    if let Some(root) = artifact_root.filter(|root| model.files.iter().all(|file| root.join(&file.name) == file.file)) {
        return Ok(root);
    }
    let root = cache.join("files");
    for artifact in &model.files {
        if !Path::new(&artifact.name).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(ModelError(format!("its file `{}` would be outside of its folder", artifact.name)));
        }
        let file = root.join(&artifact.name);
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).map_err(|error| cannot_write(folder, &error))?;
        }
        if file.is_file() {
            continue;
        }
        // A hard link needs no space and outlives the artifact; copies if links are not supported.
        let linked = fs::hard_link(&artifact.file, &file).or_else(|_| fs::copy(&artifact.file, &file).map(drop));
        linked.map_err(|error| cannot_write(&file, &error))?;
    }
    Ok(root)
}

fn cannot_write(path: &Path, error: &std::io::Error) -> ModelError {
    ModelError(format!("{} cannot be written: {error}", path.display()))
}

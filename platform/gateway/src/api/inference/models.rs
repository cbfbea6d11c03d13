//! Finds a model by name and fetches its files.

use crate::{
    http::problem::{HttpResult, Problem, ProblemType},
    publish::broker_problem,
};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use nerve_broker::bus::BusError;
use nerve_config::OnnxConfig;
use nerve_core::{Inference, ModelName, function::Artifact, inference::Model};
use nerve_registry::{ArtifactRef, Catalogue, Entry, ModelRecord};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Fetches a file to this machine.
pub type Fetch = Arc<dyn Fn(ArtifactRef) -> BoxFuture<'static, Result<Artifact, BusError>> + Send + Sync>;

/// The parts of [`Models`].
pub struct ModelParts {
    /// The model runtime; `None` if this process runs no models.
    pub inference: Option<Arc<dyn Inference>>,
    /// Fetches the files of a deployed model.
    pub fetch: Fetch,
    /// The settings.
    pub config: OnnxConfig,
    /// Tracks fetches, which continue when the client that started one disconnects.
    pub tasks: TaskTracker,
    /// Ends fetching.
    pub stop: CancellationToken,
}

/// The models that requests can name, and their runtime.
pub struct Models {
    parts: ModelParts,
    fetched: Mutex<BTreeMap<ModelName, Fetched>>,
}

type Fetching = Shared<BoxFuture<'static, Result<Arc<Model>, Arc<BusError>>>>;

/// A revision of a model, fetched or being fetched; concurrent requests share a fetch.
struct Fetched {
    revision: u64,
    model: Fetching,
}

impl fmt::Debug for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Models").field("inference", &self.parts.inference.is_some()).finish_non_exhaustive()
    }
}

impl Models {
    /// Models of these parts; fetches nothing yet.
    pub fn new(parts: ModelParts) -> Self {
        Self { parts, fetched: Mutex::default() }
    }

    pub(crate) fn config(&self) -> &OnnxConfig {
        &self.parts.config
    }

    /// The model runtime.
    ///
    /// # Errors
    /// 503 if this process runs no models.
    pub(crate) fn inference(&self) -> HttpResult<&Arc<dyn Inference>> {
        self.parts.inference.as_ref().ok_or_else(|| {
            let detail = "this server runs no models: it needs ONNX Runtime's library, which `make setup` installs, \
                          or name one with onnx.library (NERVE_ONNX_LIBRARY), and start it again";
            Problem::new(ProblemType::ModelUnavailable, detail)
        })
    }

    /// The deployed or bundled model with this name, or with the last part of `org/name`, the form of Hugging Face.
    ///
    /// # Errors
    /// 404 for an unknown model, 503 if its files cannot be fetched.
    pub(crate) async fn find(&self, catalogue: &Catalogue, wanted: &str) -> HttpResult<Arc<Model>> {
        let last = wanted.rsplit('/').next().unwrap_or(wanted);
        let Ok(name) = ModelName::parse(last) else { return Err(self.unknown(catalogue, wanted)) };
        if let Some(entry) = catalogue.models.get(&name) {
            return self.fetched(catalogue, entry).await;
        }
        match self.inference()?.bundled(name.as_str()).await {
            Some(model) => Ok(Arc::new(model)),
            None => Err(self.unknown(catalogue, wanted)),
        }
    }

    /// The only deployed model for `task`.
    ///
    /// # Errors
    /// 400 if there are several or none.
    pub(crate) async fn only_for(&self, catalogue: &Catalogue, task: &str) -> HttpResult<Arc<Model>> {
        let mut able = catalogue.models.values().filter(|entry| entry.record.description.task == task);
        match (able.next(), able.next()) {
            (Some(only), None) => self.fetched(catalogue, only).await,
            (Some(_), Some(_)) => {
                Err(Problem::invalid_request(format!("`model` is missing, and several are there for {task}: name one")))
            }
            (None, _) => {
                let detail = format!(
                    "`model` is missing, and no model for {task} is added that could be meant: name one, or add one \
                     with `nerve models add DIR`"
                );
                Err(Problem::invalid_request(detail))
            }
        }
    }

    /// Makes the next request fetch the model again, whose files may have been deleted.
    pub(crate) fn forget(&self, model: &Model) {
        if let Ok(name) = ModelName::parse(model.name.as_str()) {
            self.fetched.lock().remove(&name);
        }
    }

    fn unknown(&self, catalogue: &Catalogue, wanted: &str) -> Problem {
        let bundled = self.parts.inference.iter().flat_map(|inference| inference.bundled_names());
        let names: BTreeSet<String> = catalogue.models.keys().map(ToString::to_string).chain(bundled).collect();
        let there = match names.len() {
            0 => "there is none yet".to_owned(),
            _ => format!("known are {}", names.into_iter().collect::<Vec<_>>().join(", ")),
        };
        Problem::not_found(format!("there is no model `{wanted}`: {there}; add one with `nerve models add DIR`"))
    }

    async fn fetched(&self, catalogue: &Catalogue, entry: &Entry<ModelRecord, ModelName>) -> HttpResult<Arc<Model>> {
        let fetching = {
            let mut fetched = self.fetched.lock();
            match fetched.get(&entry.name).filter(|there| there.revision == entry.revision) {
                Some(there) => there.model.clone(),
                None => {
                    let model = self.fetch(entry);
                    fetched.retain(|name, _| catalogue.models.contains_key(name));
                    fetched.insert(entry.name.clone(), Fetched { revision: entry.revision, model: model.clone() });
                    model
                }
            }
        };
        let done = fetching.clone().await;
        done.map_err(|error| {
            let mut fetched = self.fetched.lock();
            if fetched.get(&entry.name).is_some_and(|there| there.model.ptr_eq(&fetching)) {
                fetched.remove(&entry.name);
            }
            broker_problem(&error)
        })
    }

    fn fetch(&self, entry: &Entry<ModelRecord, ModelName>) -> Fetching {
        let (fetch, stop) = (Arc::clone(&self.parts.fetch), self.parts.stop.clone());
        let (name, references) = (entry.name.to_string(), entry.record.files.clone());
        let task = self.parts.tasks.spawn(async move {
            let work = async {
                let mut files = Vec::with_capacity(references.len());
                for reference in references {
                    files.push(fetch(reference).await?);
                }
                Ok(Arc::new(Model { name: name.clone(), files }))
            };
            let given_up = || Err(BusError::unavailable(format!("fetching the model {name}"), "the server stops"));
            stop.run_until_cancelled(work).await.unwrap_or_else(given_up)
        });
        let told = task.map(|done| match done {
            Ok(done) => done.map_err(Arc::new),
            Err(error) => Err(Arc::new(BusError::unavailable("fetching a model", error))),
        });
        told.boxed().shared()
    }
}

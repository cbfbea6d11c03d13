//! The inference service: models for built-in functions and HTTP requests.

use crate::{
    embed::EmbedStyle,
    library::LibraryError,
    loaded::{Admission, LoadedModel},
    models::Models,
    settings::Settings,
};
use async_trait::async_trait;
use futures::stream::BoxStream;
use nerve_core::{
    Inference,
    inference::{
        Classification, EmbedRequest, Embedding, GenerateRequest, InferenceError, Model, Piece, Relevance,
        RerankRequest, Sample,
    },
};
use std::sync::Arc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Inference with ONNX Runtime, with models shared by all callers.
pub struct OnnxInference {
    models: Arc<Models>,
}

impl OnnxInference {
    /// Starts without models. After `stop`, models are dropped as soon as they are unused; `tasks` tracks their
    /// threads and loading.
    pub fn start(settings: Settings, stop: CancellationToken, tasks: TaskTracker) -> Self {
        Self { models: Models::start(settings, stop, tasks) }
    }

    /// Loads ONNX Runtime and returns the path of its library.
    ///
    /// # Errors
    /// If the library is missing, too old or unusable.
    pub fn library(&self) -> Result<std::path::PathBuf, LibraryError> {
        self.models.library().map(|library| library.file)
    }

    /// Loads the model, or returns the loaded one. It stays in memory while it is in use.
    ///
    /// # Errors
    /// If its files are not a model that can be loaded on this machine.
    pub async fn load(&self, model: &Model) -> Result<Arc<LoadedModel>, InferenceError> {
        self.models.get(model, false).await
    }

    /// Loads the model for a request, and keeps it for some time after.
    async fn load_and_keep(&self, model: &Model) -> Result<Arc<LoadedModel>, InferenceError> {
        self.models.get(model, true).await
    }
}

#[async_trait]
impl Inference for OnnxInference {
    async fn bundled(&self, name: &str) -> Option<Model> {
        self.models.bundled(name).await
    }

    fn bundled_names(&self) -> Vec<String> {
        self.models.bundled_names()
    }

    async fn embed(&self, model: &Model, request: EmbedRequest) -> Result<Vec<Embedding>, InferenceError> {
        self.load_and_keep(model).await?.embed(request, &EmbedStyle::default(), Admission::Refuse).await
    }

    async fn rerank(&self, model: &Model, request: RerankRequest) -> Result<Vec<Relevance>, InferenceError> {
        self.load_and_keep(model).await?.rerank(request, Admission::Refuse).await
    }

    async fn classify(
        &self,
        model: &Model,
        samples: Vec<Sample>,
        raw: bool,
    ) -> Result<Vec<Classification>, InferenceError> {
        self.load_and_keep(model).await?.classify(samples, raw, Admission::Refuse).await
    }

    async fn generate(
        &self,
        model: &Model,
        request: GenerateRequest,
    ) -> Result<BoxStream<'static, Result<Piece, InferenceError>>, InferenceError> {
        self.load_and_keep(model).await?.generate(request).await
    }
}

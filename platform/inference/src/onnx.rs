//! What this crate is to the rest of Nerve: the models of built-in functions and of HTTP requests.

use crate::{
    embed::EmbedStyle,
    library::LibraryError,
    loaded::{Admission, Loaded},
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

/// Embeds and scores for whoever asks; models are shared by all of them.
pub struct Onnx {
    models: Arc<Models>,
}

impl Onnx {
    /// Starts with no model loaded. After `stop` models are dropped as soon as nobody uses them; their threads, and
    /// what is being loaded, are in `tasks`.
    pub fn start(settings: Settings, stop: CancellationToken, tasks: TaskTracker) -> Self {
        Self { models: Models::start(settings, stop, tasks) }
    }

    /// Loads ONNX Runtime, and says which file it came from.
    pub fn library(&self) -> Result<std::path::PathBuf, LibraryError> {
        self.models.library().map(|library| library.file)
    }

    /// The model in memory; it stays there as long as the result does.
    ///
    /// # Errors
    /// Where its files are no model that can be loaded here.
    pub async fn load(&self, model: &Model) -> Result<Arc<Loaded>, InferenceError> {
        self.models.get(model, false).await
    }

    /// The model in memory, for a request of which nobody knows whether another one comes.
    async fn hold(&self, model: &Model) -> Result<Arc<Loaded>, InferenceError> {
        self.models.get(model, true).await
    }
}

#[async_trait]
impl Inference for Onnx {
    async fn bundled(&self, name: &str) -> Option<Model> {
        self.models.bundled(name).await
    }

    fn bundled_names(&self) -> Vec<String> {
        self.models.bundled_names()
    }

    async fn embed(&self, model: &Model, request: EmbedRequest) -> Result<Vec<Embedding>, InferenceError> {
        self.hold(model).await?.embed(request, &EmbedStyle::default(), Admission::Refuse).await
    }

    async fn rerank(&self, model: &Model, request: RerankRequest) -> Result<Vec<Relevance>, InferenceError> {
        self.hold(model).await?.rerank(request, Admission::Refuse).await
    }

    async fn classify(
        &self,
        model: &Model,
        samples: Vec<Sample>,
        raw: bool,
    ) -> Result<Vec<Classification>, InferenceError> {
        self.hold(model).await?.classify(samples, raw, Admission::Refuse).await
    }

    async fn generate(
        &self,
        model: &Model,
        request: GenerateRequest,
    ) -> Result<BoxStream<'static, Result<Piece, InferenceError>>, InferenceError> {
        self.hold(model).await?.generate(request).await
    }
}

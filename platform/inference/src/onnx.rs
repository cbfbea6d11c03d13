//! What this crate is to the rest of Nerve: the models of built-in functions and of HTTP requests.

use crate::{
    embed::EmbedStyle,
    files::FolderError,
    library::LibraryError,
    loaded::{Admission, Loaded},
    models::{Models, read_model},
    settings::Settings,
    task::Task,
};
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use nerve_core::{
    Inference,
    inference::{
        Classification, EmbedRequest, Embedding, GenerateRequest, InferenceError, Message, Model, Piece, Relevance,
        RerankRequest, Role, Sample,
    },
};
use std::{path::Path, sync::Arc};
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

    /// Loads the model in a folder, or of one `.onnx` file, and runs it once where it reads text: finds out what only
    /// ONNX Runtime knows of a model.
    pub async fn try_out(&self, path: &Path) -> Result<(), FolderError> {
        let model = read_model("on trial", path)?;
        let loaded = self.models.get(&model, false).await;
        let loaded = loaded.map_err(|error| FolderError(error.to_string()))?;
        let tried = match loaded.description.task {
            Task::Embed | Task::Sparse => {
                let request = EmbedRequest { texts: vec!["a trial".to_owned()], ..EmbedRequest::default() };
                loaded.embed(request, &EmbedStyle::default(), Admission::Wait).await.map(drop)
            }
            Task::Rerank => {
                let request = RerankRequest { query: "a".to_owned(), documents: vec!["trial".to_owned()], raw: false };
                loaded.rerank(request, Admission::Wait).await.map(drop)
            }
            Task::Classify => {
                loaded.classify(vec![Sample::Text("a trial".to_owned())], false, Admission::Wait).await.map(drop)
            }
            Task::Generate => write_two(loaded).await,
            Task::Tensor => Ok(()),
        };
        tried.map_err(|error| FolderError(format!("{} does not run: {error}", path.display())))
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

/// Has a language model write two tokens.
async fn write_two(loaded: Arc<Loaded>) -> Result<(), InferenceError> {
    let messages = vec![Message { role: Role::User, content: "a trial".to_owned() }];
    let request = GenerateRequest { messages, max_tokens: Some(2), ..GenerateRequest::default() };
    let pieces: Vec<_> = loaded.generate(request).await?.collect().await;
    pieces.into_iter().collect::<Result<Vec<Piece>, InferenceError>>().map(drop)
}

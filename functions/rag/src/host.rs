//! The host of the built-in functions `rag/*`.

use crate::{
    agent::{self, Agent, AgentOptions},
    check::Chunking,
    chunk::{ChunkOptions, Chunker},
    embedder::Embedder,
    evaluate::{EvaluateOptions, Evaluator},
    function::FunctionContext,
    generate::{self, AnswerBackend, Endpoint, ExtractiveBackend, GenerateOptions, Generator},
    index::Indexer,
    learn::{self, LearnOptions, Learner},
    notify::{Notifier, NotifyOptions},
    reader::{DocumentReaders, ModelReader},
    remember::{RememberOptions, Rememberer},
    rerank::{RerankOptions, Reranker},
    retrieve::{RetrieveOptions, Retriever},
};
use async_trait::async_trait;
use futures::TryStreamExt;
use nerve_core::{
    Deployment, EventType, Function, FunctionSpec, Host, Inference, LoadError, Name, Secret,
    function::Artifact,
    inference::{EmbedRequest, GenerateRequest, InferenceError, Message, Model, RerankRequest, Role, Vector},
    manifest::RuntimeSpec,
};
use nerve_events::{EventData, answers::AnswerFlagged, documents::DocumentUploaded};
#[cfg(feature = "postgres")]
use nerve_index::Database;
use nerve_index::{Index, IndexError};
use nerve_text::chunk::ChunkSize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Weak},
};
use tokio::sync::Mutex;

/// Settings of the host.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of the index, if `postgres` is `None`.
    pub folder: PathBuf,
    /// URL of a PostgreSQL database with pgvector, shared by all workers.
    pub postgres: Option<Secret>,
    /// Helper processes that read documents.
    pub readers: DocumentReaders,
}

/// Host of the `rag/*` functions, which share one index.
pub struct RagHost {
    location: IndexLocation,
    inference: Arc<dyn Inference>,
    index: Mutex<Weak<Index>>,
    readers: DocumentReaders,
}

#[derive(Debug, Clone)]
enum IndexLocation {
    Folder(PathBuf),
    #[cfg(feature = "postgres")]
    Database(Box<Database>),
}

impl IndexLocation {
    #[cfg(feature = "postgres")]
    fn database(url: &Secret) -> Result<Self, IndexError> {
        Ok(Self::Database(Box::new(Database::parse(url)?)))
    }

    #[cfg(not(feature = "postgres"))]
    fn database(_: &Secret) -> Result<Self, IndexError> {
        Err(IndexError::Invalid("this nerve was built without the feature `postgres`".to_owned()))
    }

    fn open(&self, model: &str, dimensions: usize) -> Result<Index, IndexError> {
        match self {
            Self::Folder(folder) => Index::open(folder, model, dimensions),
            #[cfg(feature = "postgres")]
            Self::Database(database) => Index::connect(database, model, dimensions),
        }
    }
}

impl fmt::Display for IndexLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            #[cfg(feature = "postgres")]
            Self::Database(database) => database.fmt(f),
        }
    }
}

impl RagHost {
    /// A host with the index at the location that `settings` give; `inference` embeds questions. Does not connect yet.
    ///
    /// # Errors
    /// If the database URL is invalid.
    pub fn new(settings: Settings, inference: Arc<dyn Inference>) -> Result<Self, IndexError> {
        let location = match settings.postgres {
            Some(url) => IndexLocation::database(&url)?,
            None => IndexLocation::Folder(settings.folder),
        };
        Ok(Self { location, inference, index: Mutex::default(), readers: settings.readers })
    }

    /// The index for the vectors of `model`: opened by the first function that uses it, closed with the last.
    async fn index(&self, name: &Name, model: &Model) -> Result<Arc<Index>, LoadError> {
        let mut open_index = self.index.lock().await;
        if let Some(index) = open_index.upgrade() {
            return Ok(index);
        }
        let request = EmbedRequest { texts: vec![String::new()], ..EmbedRequest::default() };
        let probe = self.inference.embed(model, request).await;
        let probe = probe.map_err(|error| LoadError::failed(format!("embedding with `{}`", model.name), error))?;
        let Some(Vector::F32(vector)) = probe.into_iter().next().map(|one| one.vector) else {
            return Err(LoadError::Invalid(format!(
                "`model` of `{name}` has no dense vectors: use an embedding model"
            )));
        };
        let (location, of) = (self.location.clone(), model.name.clone());
        let opened = tokio::task::spawn_blocking(move || location.open(&of, vector.len())).await;
        let opened = opened.map_err(|error| LoadError::failed("opening the index", error))?;
        let index = Arc::new(opened.map_err(|error| match error {
            IndexError::Invalid(why) => LoadError::Invalid(why),
            failed => LoadError::failed(format!("opening the index in {}", self.location), failed),
        })?);
        *open_index = Arc::downgrade(&index);
        Ok(index)
    }
}

/// Whether a built-in function may emit this event type, or pattern, in addition to its results.
pub fn is_auxiliary_output(function: &str, ty: &str) -> bool {
    let calls = function == "rag/agent" && ty.starts_with(nerve_core::tool::CALL_TYPE_PREFIX);
    calls || auxiliary_outputs(function).contains(&ty)
}

fn auxiliary_outputs(function: &str) -> &'static [&'static str] {
    match function {
        "rag/agent" => agent::AUXILIARY_OUTPUTS,
        "rag/generate" => generate::AUXILIARY_OUTPUTS,
        "rag/evaluate" => &[AnswerFlagged::TYPE],
        "rag/remember" => &[DocumentUploaded::TYPE],
        "rag/learn" => learn::AUXILIARY_OUTPUTS,
        _ => &[],
    }
}

fn context(name: &Name, function: &str, spec: &FunctionSpec) -> Result<FunctionContext, LoadError> {
    let parse = |text: &str| EventType::parse(text).map_err(|error| LoadError::Invalid(format!("`emits`: {error}")));
    let (auxiliary, results): (Vec<_>, Vec<_>) =
        spec.emits.iter().partition(|one| is_auxiliary_output(function, one.as_str()));
    let results: Result<Vec<EventType>, LoadError> = results.into_iter().map(|one| parse(one.as_str())).collect();
    let mut results = results?;
    // A pattern is resolved by the function that emits it.
    let auxiliary_outputs = auxiliary.into_iter().filter_map(|one| EventType::parse(one.as_str()).ok()).collect();
    match (results.pop(), results.is_empty()) {
        (Some(emits), true) => Ok(FunctionContext { emits, auxiliary_outputs, timeout: spec.timeout }),
        _ => Err(LoadError::Invalid(format!("`{name}` must have exactly one result type in `emits`"))),
    }
}

#[async_trait]
impl Host for RagHost {
    async fn load(&self, deployment: Deployment) -> Result<Arc<dyn Function>, LoadError> {
        let Deployment { name, spec, artifacts, secrets, logs, .. } = deployment;
        let RuntimeSpec::Builtin { function, model, with } = &spec.run else {
            return Err(LoadError::Invalid(format!(
                "`{name}` is not a built-in function; this host supports builtin only"
            )));
        };
        let context = context(&name, function, &spec)?;
        let invalid_options = |why: String| LoadError::Invalid(format!("`with` of `{name}`: {why}"));
        let chunking = Chunking::new(model.as_deref(), with);
        let model = Model { name: model.clone().unwrap_or_else(|| function.clone()), files: artifacts };
        let embedder = || Embedder { inference: self.inference.clone(), model: model.clone() };
        match function.as_str() {
            "rag/chunk" => {
                let ChunkOptions { size, overlap } = parse_options(with).map_err(invalid_options)?;
                let reader = ModelReader::new(self.readers.clone(), tokenizer(&model.files)?)?;
                let chunking = chunking.map_err(invalid_options)?;
                Ok(Arc::new(Chunker { context, size: ChunkSize { max: size, overlap }, chunking, reader }))
            }
            "rag/index" => Ok(Arc::new(Indexer { context, index: self.index(&name, &model).await? })),
            "rag/retrieve" => {
                let options = parse_options(with).map_err(invalid_options)?;
                let index = self.index(&name, &model).await?;
                Ok(Arc::new(Retriever { context, index, embedder: embedder(), options }))
            }
            "rag/rerank" => {
                let options = parse_options(with).map_err(invalid_options)?;
                let cross_encoder = self.is_cross_encoder(&model).await?;
                Ok(Arc::new(Reranker { context, embedder: embedder(), cross_encoder, options }))
            }
            "rag/generate" => {
                let options: GenerateOptions = parse_options(with).map_err(invalid_options)?;
                let backend = self.backend(&model, &options, secrets.into_values().next()).await?;
                Ok(Arc::new(Generator { context, backend, options }))
            }
            "rag/evaluate" => {
                let options = parse_options(with).map_err(invalid_options)?;
                Ok(Arc::new(Evaluator { context, embedder: embedder(), options }))
            }
            "rag/remember" => {
                Ok(Arc::new(Rememberer { context, options: parse_options(with).map_err(invalid_options)? }))
            }
            "rag/notify" => {
                let options: NotifyOptions = parse_options(with).map_err(invalid_options)?;
                Ok(Arc::new(Notifier::new(context, options).map_err(invalid_options)?))
            }
            "rag/agent" => {
                let options: AgentOptions = parse_options(with).map_err(invalid_options)?;
                let key = secrets.into_values().next();
                let endpoint = Endpoint::new(&options.endpoint, options.chat_model.clone(), key);
                let endpoint = endpoint.map_err(LoadError::Invalid)?;
                Ok(Arc::new(Agent { name, context, emits: spec.emits.clone(), endpoint, options }))
            }
            "rag/learn" => {
                Ok(Arc::new(Learner { context, options: parse_options(with).map_err(invalid_options)?, logs }))
            }
            other => Err(LoadError::Invalid(format!("unknown built-in function {other}"))),
        }
    }
}

impl RagHost {
    /// Whether a model is a cross-encoder.
    async fn is_cross_encoder(&self, model: &Model) -> Result<bool, LoadError> {
        let request = RerankRequest { query: "a".to_owned(), documents: vec!["probe".to_owned()], raw: false };
        match self.inference.rerank(model, request).await {
            Ok(_) => Ok(true),
            Err(InferenceError::Invalid(_)) => Ok(false),
            Err(error) => Err(LoadError::failed(format!("probing `{}`", model.name), error)),
        }
    }

    /// The backend of `rag/generate`: the configured endpoint, else a local language model, else extractive answers.
    async fn backend(
        &self,
        model: &Model,
        options: &GenerateOptions,
        key: Option<Secret>,
    ) -> Result<AnswerBackend, LoadError> {
        if let (Some(endpoint), Some(chat_model)) = (&options.endpoint, &options.chat_model) {
            let endpoint = Endpoint::new(endpoint, chat_model.clone(), key);
            return Ok(AnswerBackend::Endpoint(endpoint.map_err(LoadError::Invalid)?));
        }
        let inference = self.inference.clone();
        let request = EmbedRequest { texts: vec!["a probe".to_owned()], ..EmbedRequest::default() };
        match inference.embed(model, request).await {
            Ok(_) => Ok(AnswerBackend::Extractive(ExtractiveBackend {
                embedder: Embedder { inference, model: model.clone() },
            })),
            Err(InferenceError::Invalid(_)) => {
                self.probe_generation(model).await?;
                Ok(AnswerBackend::Local { inference, model: model.clone() })
            }
            Err(error) => Err(LoadError::failed(format!("probing `{}`", model.name), error)),
        }
    }

    /// Generates one token with a language model.
    async fn probe_generation(&self, model: &Model) -> Result<(), LoadError> {
        let messages = vec![Message { role: Role::User, content: "a probe".to_owned() }];
        let request = GenerateRequest { messages, max_tokens: Some(1), ..GenerateRequest::default() };
        let probe = async { self.inference.generate(model, request).await?.try_for_each(|_| async { Ok(()) }).await };
        probe.await.map_err(|error| match error {
            InferenceError::Invalid(why) => LoadError::Invalid(why),
            error => LoadError::failed(format!("probing `{}`", model.name), error),
        })
    }
}

/// Reads the tokenizer that measures chunks.
fn tokenizer(files: &[Artifact]) -> Result<Vec<u8>, LoadError> {
    let file = files.iter().find(|file| file.name == "tokenizer.json");
    let file = file.ok_or_else(|| {
        LoadError::Invalid("the model has no tokenizer.json, which is required to measure chunks".to_owned())
    })?;
    std::fs::read(&file.file).map_err(|error| LoadError::failed("the model's tokenizer.json cannot be read", error))
}

fn parse_options<T: DeserializeOwned>(with: &Map<String, Value>) -> Result<T, String> {
    serde_json::from_value(Value::Object(with.clone())).map_err(|error| error.to_string())
}

/// Checks `with` of a built-in function, as a worker does when it loads the function.
///
/// # Errors
/// Names the option that is unknown or out of range.
pub fn check_options(function: &str, with: &Map<String, Value>) -> Result<(), String> {
    match function {
        "rag/chunk" => {
            let ChunkOptions { size, overlap } = parse_options(with)?;
            match (size, overlap) {
                (8..=4096, overlap) if overlap < size => Ok(()),
                (8..=4096, _) => {
                    Err(format!("`overlap` is {overlap}: it must be smaller than `size`, which is {size}"))
                }
                _ => Err(format!("`size` is {size}: it must be from 8 to 4096 tokens")),
            }
        }
        "rag/index" if with.is_empty() => Ok(()),
        "rag/index" => Err("rag/index has no options: omit `with`".to_owned()),
        "rag/retrieve" => {
            let RetrieveOptions { limit, lexical, dense } = parse_options(with)?;
            let weights = [lexical, dense].iter().flatten().all(|weight| (0.0..=100.0).contains(weight));
            match limit {
                1..=100 if weights => Ok(()),
                1..=100 => Err("`lexical` and `dense` must be from 0 to 100".to_owned()),
                _ => Err(format!("`limit` is {limit}: it must be from 1 to 100")),
            }
        }
        "rag/rerank" => {
            let RerankOptions { limit, relevance, retrieved } = parse_options(with)?;
            let weights = [relevance, retrieved].iter().flatten().all(|weight| (0.0..=100.0).contains(weight));
            match limit {
                1..=100 if weights => Ok(()),
                1..=100 => Err("`relevance` and `retrieved` must be from 0 to 100".to_owned()),
                _ => Err(format!("`limit` is {limit}: it must be from 1 to 100")),
            }
        }
        "rag/generate" => parse_options::<GenerateOptions>(with)?.check(),
        "rag/evaluate" => parse_options::<EvaluateOptions>(with)?.check(),
        "rag/remember" => parse_options::<RememberOptions>(with)?.check(),
        "rag/notify" => parse_options::<NotifyOptions>(with)?.check(),
        "rag/learn" => parse_options::<LearnOptions>(with)?.check(),
        "rag/agent" => parse_options::<AgentOptions>(with)?.check(),
        other => Err(format!("unknown built-in function {other}")),
    }
}

/// Checks the parameters of a tool.
///
/// # Errors
/// If they are not a valid JSON Schema.
pub fn check_tool(spec: &nerve_core::tool::ToolSpec) -> Result<(), String> {
    agent::check_parameters(&spec.parameters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn option_out_of_range_is_rejected_by_name() {
        let check = |function: &str, with: Value| check_options(function, with.as_object().unwrap());
        for function in nerve_core::manifest::BUILTINS.iter().filter(|name| name.starts_with("rag/")) {
            // An agent requires a language model and has no default.
            let with = match *function {
                "rag/agent" => json!({"endpoint": "http://h/v1", "chat_model": "m"}),
                _ => json!({}),
            };
            assert_eq!(check(function, with), Ok(()));
        }
        for (function, with, expected) in [
            ("rag/chunk", json!({"size": 4}), "from 8 to 4096"),
            ("rag/chunk", json!({"size": 20, "overlap": 20}), "smaller than `size`"),
            ("rag/chunk", json!({"sise": 20}), "sise"),
            ("rag/index", json!({"a": 1}), "no options"),
            ("rag/retrieve", json!({"limit": 0}), "from 1 to 100"),
            ("rag/retrieve", json!({"dense": -1}), "from 0 to 100"),
            ("rag/generate", json!({"sentences": 0}), "from 1 to 20"),
            ("rag/generate", json!({"threshold": 2}), "from 0 to 1"),
            ("rag/generate", json!({"endpoint": "http://h/v1"}), "must be set together"),
            ("rag/generate", json!({"endpoint": "h", "chat_model": "m"}), "not a URL"),
            ("rag/rerank", json!({"limit": 0}), "from 1 to 100"),
            ("rag/evaluate", json!({"relevance": 2}), "from 0 to 1"),
            ("rag/remember", json!({"window": 0}), "from 1 to 50"),
            ("rag/notify", json!({"url": "x"}), "not a URL"),
            ("rag/learn", json!({"enough": 400}), "`window`, which is 300"),
            ("rag/learn", json!({"margin": 1}), "from 0 to 0.5"),
            ("rag/agent", json!({}), "are required"),
            (
                "rag/agent",
                json!({"endpoint": "http://h/v1", "chat_model": "m", "budget": {"steps": 0}}),
                "from 1 to 100",
            ),
            ("rag/agent", json!({"budget": {"time": "soon"}}), "not a duration"),
            ("rag/other", json!({}), "unknown built-in"),
        ] {
            let why = check(function, with.clone()).unwrap_err();
            assert!(why.contains(expected), "{function} {with}: {why}");
        }
    }
}

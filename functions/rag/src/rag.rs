//! The host of the functions that answer questions about documents.

use crate::{
    agent::{self, Agent, AgentOptions},
    check::Chunking,
    chunk::{ChunkOptions, Chunker},
    embedder::Embedder,
    evaluate::{self, EvaluateOptions, Evaluator},
    function::Frame,
    generate::{self, Endpoint, Extractor, GenerateOptions, Generator, Writer},
    index::Indexer,
    learn::{self, LearnOptions, Learner},
    notify::{Notifier, NotifyOptions},
    reading::{DocumentReaders, ModelReader},
    remember::{self, RememberOptions, Rememberer},
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
use nerve_index::{Database, Index, IndexError};
use nerve_text::chunk::Size;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Weak},
};
use tokio::sync::Mutex;

/// Where the index is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its folder, where there is no database.
    pub folder: PathBuf,
    /// The URL of a PostgreSQL database with pgvector, which all workers share.
    pub postgres: Option<Secret>,
    /// What reads documents.
    pub readers: DocumentReaders,
}

/// Chunks, indexes and retrieves for whoever asks; one index is shared by all of them.
pub struct Rag {
    place: Place,
    inference: Arc<dyn Inference>,
    index: Mutex<Weak<Index>>,
    readers: DocumentReaders,
}

#[derive(Debug, Clone)]
enum Place {
    Folder(PathBuf),
    Database(Box<Database>),
}

impl Place {
    fn open(&self, model: &str, dimensions: usize) -> Result<Index, IndexError> {
        match self {
            Self::Folder(folder) => Index::open(folder, model, dimensions),
            Self::Database(database) => Index::connect(database, model, dimensions),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Database(database) => database.fmt(f),
        }
    }
}

impl Rag {
    /// Keeps the index where `settings` say; questions are embedded by `inference`.
    ///
    /// It connects to nothing yet: the only error is a URL that is none.
    pub fn new(settings: Settings, inference: Arc<dyn Inference>) -> Result<Self, IndexError> {
        let place = match settings.postgres {
            Some(url) => Place::Database(Box::new(Database::parse(&url)?)),
            None => Place::Folder(settings.folder),
        };
        Ok(Self { place, inference, index: Mutex::default(), readers: settings.readers })
    }

    /// The index, opened for the vectors of `model` by whoever asks first, closed by whoever leaves last.
    async fn index(&self, name: &Name, model: &Model) -> Result<Arc<Index>, LoadError> {
        let mut known = self.index.lock().await;
        if let Some(index) = known.upgrade() {
            return Ok(index);
        }
        let request = EmbedRequest { texts: vec![String::new()], ..EmbedRequest::default() };
        let probe = self.inference.embed(model, request).await;
        let probe = probe.map_err(|error| LoadError::failed(format!("embedding with `{}`", model.name), error))?;
        let Some(Vector::F32(vector)) = probe.into_iter().next().map(|one| one.vector) else {
            return Err(LoadError::Invalid(format!(
                "`model` of `{name}` gives no dense vectors: name one for embedding"
            )));
        };
        let (place, of) = (self.place.clone(), model.name.clone());
        let opened = tokio::task::spawn_blocking(move || place.open(&of, vector.len())).await;
        let opened = opened.map_err(|error| LoadError::failed("opening the index", error))?;
        let index = Arc::new(opened.map_err(|error| match error {
            IndexError::Invalid(why) => LoadError::Invalid(why),
            failed => LoadError::failed(format!("opening the index in {}", self.place), failed),
        })?);
        *known = Arc::downgrade(&index);
        Ok(index)
    }
}

/// Whether a built-in function may emit events of this type, or pattern, besides its results.
pub fn is_side_event(function: &str, ty: &str) -> bool {
    let calls = function == "rag/agent" && ty.starts_with(nerve_core::tool::CALL_TYPE_PREFIX);
    calls || side_events(function).contains(&ty)
}

fn side_events(function: &str) -> &'static [&'static str] {
    match function {
        "rag/agent" => agent::SIDE,
        "rag/generate" => generate::PARTS,
        "rag/evaluate" => &[evaluate::FLAGGED],
        "rag/remember" => &[remember::UPLOADED],
        "rag/learn" => &[learn::REJECTED, learn::ROLLED_BACK],
        _ => &[],
    }
}

fn frame(name: &Name, function: &str, spec: &FunctionSpec) -> Result<Frame, LoadError> {
    let parse = |text: &str| EventType::parse(text).map_err(|error| LoadError::Invalid(format!("`emits`: {error}")));
    let (side, results): (Vec<_>, Vec<_>) = spec.emits.iter().partition(|one| is_side_event(function, one.as_str()));
    let results: Result<Vec<EventType>, LoadError> = results.into_iter().map(|one| parse(one.as_str())).collect();
    let mut results = results?;
    // What is a pattern among them is asked for by whoever emits it.
    let side_events = side.into_iter().filter_map(|one| EventType::parse(one.as_str()).ok()).collect();
    match (results.pop(), results.is_empty()) {
        (Some(emits), true) => Ok(Frame { emits, side_events, timeout: spec.timeout }),
        _ => Err(LoadError::Invalid(format!("`{name}` must emit one type of results, which `emits` names"))),
    }
}

#[async_trait]
impl Host for Rag {
    async fn load(&self, deployment: Deployment) -> Result<Arc<dyn Function>, LoadError> {
        let Deployment { name, spec, artifacts, secrets, logs, .. } = deployment;
        let RuntimeSpec::Builtin { function, model, with } = &spec.run else {
            return Err(LoadError::Invalid(format!("`{name}` is no built-in function; this host runs builtin")));
        };
        let frame = frame(&name, function, &spec)?;
        let unfit = |why: String| LoadError::Invalid(format!("`with` of `{name}`: {why}"));
        let chunking = Chunking::new(model.as_deref(), with);
        let model = Model { name: model.clone().unwrap_or_else(|| function.clone()), files: artifacts };
        let embedder = || Embedder { inference: self.inference.clone(), model: model.clone() };
        match function.as_str() {
            "rag/chunk" => {
                let ChunkOptions { size, overlap } = read(with).map_err(unfit)?;
                let reader = ModelReader::new(self.readers.clone(), tokenizer(&model.files)?)?;
                let chunking = chunking.map_err(unfit)?;
                Ok(Arc::new(Chunker { frame, size: Size { most: size, overlap }, chunking, reader }))
            }
            "rag/index" => Ok(Arc::new(Indexer { frame, index: self.index(&name, &model).await? })),
            "rag/retrieve" => {
                let options = read(with).map_err(unfit)?;
                let index = self.index(&name, &model).await?;
                Ok(Arc::new(Retriever { frame, index, embedder: embedder(), options }))
            }
            "rag/rerank" => {
                let options = read(with).map_err(unfit)?;
                let cross_encoder = self.reads_pairs(&model).await?;
                Ok(Arc::new(Reranker { frame, embedder: embedder(), cross_encoder, options }))
            }
            "rag/generate" => {
                let options: GenerateOptions = read(with).map_err(unfit)?;
                let writer = self.writer(&model, &options, secrets.into_values().next()).await?;
                Ok(Arc::new(Generator { frame, writer, options }))
            }
            "rag/evaluate" => {
                let options = read(with).map_err(unfit)?;
                Ok(Arc::new(Evaluator { frame, embedder: embedder(), options }))
            }
            "rag/remember" => Ok(Arc::new(Rememberer { frame, options: read(with).map_err(unfit)? })),
            "rag/notify" => {
                let options: NotifyOptions = read(with).map_err(unfit)?;
                Ok(Arc::new(Notifier::new(frame, options).map_err(unfit)?))
            }
            "rag/agent" => {
                let options: AgentOptions = read(with).map_err(unfit)?;
                let key = secrets.into_values().next();
                let endpoint = Endpoint::new(&options.endpoint, options.chat_model.clone(), key);
                let endpoint = endpoint.map_err(LoadError::Invalid)?;
                Ok(Arc::new(Agent { name, frame, emits: spec.emits.clone(), endpoint, options }))
            }
            "rag/learn" => Ok(Arc::new(Learner { frame, options: read(with).map_err(unfit)?, logs })),
            other => Err(LoadError::Invalid(format!("there is no built-in function {other}"))),
        }
    }
}

impl Rag {
    /// Whether a model reads a question and a document together.
    async fn reads_pairs(&self, model: &Model) -> Result<bool, LoadError> {
        let request = RerankRequest { query: "a".to_owned(), documents: vec!["trial".to_owned()], raw: false };
        match self.inference.rerank(model, request).await {
            Ok(_) => Ok(true),
            Err(InferenceError::Invalid(_)) => Ok(false),
            Err(error) => Err(LoadError::failed(format!("trying out `{}`", model.name), error)),
        }
    }

    /// Who makes the answers: an endpoint where one is named, else a model that writes, else quotations.
    async fn writer(&self, model: &Model, options: &GenerateOptions, key: Option<Secret>) -> Result<Writer, LoadError> {
        if let (Some(endpoint), Some(chat_model)) = (&options.endpoint, &options.chat_model) {
            let endpoint = Endpoint::new(endpoint, chat_model.clone(), key);
            return Ok(Writer::Endpoint(endpoint.map_err(LoadError::Invalid)?));
        }
        let inference = self.inference.clone();
        let request = EmbedRequest { texts: vec!["a trial".to_owned()], ..EmbedRequest::default() };
        match inference.embed(model, request).await {
            Ok(_) => Ok(Writer::Extractive(Extractor { embedder: Embedder { inference, model: model.clone() } })),
            Err(InferenceError::Invalid(_)) => {
                self.try_writing(model).await?;
                Ok(Writer::Local { inference, model: model.clone() })
            }
            Err(error) => Err(LoadError::failed(format!("trying out `{}`", model.name), error)),
        }
    }

    /// Has a language model write one token.
    async fn try_writing(&self, model: &Model) -> Result<(), LoadError> {
        let messages = vec![Message { role: Role::User, content: "a trial".to_owned() }];
        let request = GenerateRequest { messages, max_tokens: Some(1), ..GenerateRequest::default() };
        let tried = async { self.inference.generate(model, request).await?.try_for_each(|_| async { Ok(()) }).await };
        tried.await.map_err(|error| match error {
            InferenceError::Invalid(why) => LoadError::Invalid(why),
            error => LoadError::failed(format!("trying out `{}`", model.name), error),
        })
    }
}

/// The file that chunks are measured by.
fn tokenizer(files: &[Artifact]) -> Result<Vec<u8>, LoadError> {
    let file = files.iter().find(|file| file.name == "tokenizer.json");
    let file =
        file.ok_or_else(|| LoadError::Invalid("the model has no tokenizer.json to measure chunks by".to_owned()))?;
    std::fs::read(&file.file).map_err(|error| LoadError::failed("the model's tokenizer.json cannot be read", error))
}

fn read<T: DeserializeOwned>(with: &Map<String, Value>) -> Result<T, String> {
    serde_json::from_value(Value::Object(with.clone())).map_err(|error| error.to_string())
}

/// Checks `with` of a built-in function, as a worker will when it loads the function.
pub fn check_options(function: &str, with: &Map<String, Value>) -> Result<(), String> {
    match function {
        "rag/chunk" => {
            let ChunkOptions { size, overlap } = read(with)?;
            match (size, overlap) {
                (8..=4096, overlap) if overlap < size => Ok(()),
                (8..=4096, _) => {
                    Err(format!("`overlap` is {overlap}: it must be smaller than `size`, which is {size}"))
                }
                _ => Err(format!("`size` is {size}: chunks have from 8 to 4096 tokens")),
            }
        }
        "rag/index" if with.is_empty() => Ok(()),
        "rag/index" => Err("rag/index takes no options: leave `with` out".to_owned()),
        "rag/retrieve" => {
            let RetrieveOptions { limit, lexical, dense } = read(with)?;
            let weights = [lexical, dense].iter().flatten().all(|weight| (0.0..=100.0).contains(weight));
            match limit {
                1..=100 if weights => Ok(()),
                1..=100 => Err("`lexical` and `dense` must be from 0 to 100".to_owned()),
                _ => Err(format!("`limit` is {limit}: it must be from 1 to 100")),
            }
        }
        "rag/rerank" => {
            let RerankOptions { limit, relevance, retrieved } = read(with)?;
            let weights = [relevance, retrieved].iter().flatten().all(|weight| (0.0..=100.0).contains(weight));
            match limit {
                1..=100 if weights => Ok(()),
                1..=100 => Err("`relevance` and `retrieved` must be from 0 to 100".to_owned()),
                _ => Err(format!("`limit` is {limit}: it must be from 1 to 100")),
            }
        }
        "rag/generate" => read::<GenerateOptions>(with)?.check(),
        "rag/evaluate" => read::<EvaluateOptions>(with)?.check(),
        "rag/remember" => read::<RememberOptions>(with)?.check(),
        "rag/notify" => read::<NotifyOptions>(with)?.check(),
        "rag/learn" => read::<LearnOptions>(with)?.check(),
        "rag/agent" => read::<AgentOptions>(with)?.check(),
        other => Err(format!("there is no built-in function {other}")),
    }
}

/// Checks what agents are told of a tool's parameters: that it is JSON Schema.
pub fn check_tool(spec: &nerve_core::tool::ToolSpec) -> Result<(), String> {
    agent::check_parameters(&spec.parameters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn options_out_of_bounds_are_refused_and_named() {
        let check = |function: &str, with: Value| check_options(function, with.as_object().unwrap());
        for function in nerve_core::manifest::BUILTINS.iter().filter(|name| name.starts_with("rag/")) {
            // An agent needs a language model, and there is none to begin with.
            let with = match *function {
                "rag/agent" => json!({"endpoint": "http://h/v1", "chat_model": "m"}),
                _ => json!({}),
            };
            assert_eq!(check(function, with), Ok(()));
        }
        for (function, with, said) in [
            ("rag/chunk", json!({"size": 4}), "from 8 to 4096"),
            ("rag/chunk", json!({"size": 20, "overlap": 20}), "smaller than `size`"),
            ("rag/chunk", json!({"sise": 20}), "sise"),
            ("rag/index", json!({"a": 1}), "no options"),
            ("rag/retrieve", json!({"limit": 0}), "from 1 to 100"),
            ("rag/retrieve", json!({"dense": -1}), "from 0 to 100"),
            ("rag/generate", json!({"sentences": 0}), "from 1 to 20"),
            ("rag/generate", json!({"threshold": 2}), "from 0 to 1"),
            ("rag/generate", json!({"endpoint": "http://h/v1"}), "go together"),
            ("rag/generate", json!({"endpoint": "h", "chat_model": "m"}), "no URL"),
            ("rag/rerank", json!({"limit": 0}), "from 1 to 100"),
            ("rag/evaluate", json!({"relevance": 2}), "from 0 to 1"),
            ("rag/remember", json!({"window": 0}), "from 1 to 50"),
            ("rag/notify", json!({"url": "x"}), "no URL"),
            ("rag/learn", json!({"enough": 400}), "`window`, which is 300"),
            ("rag/learn", json!({"margin": 1}), "from 0 to 0.5"),
            ("rag/agent", json!({}), "which"),
            (
                "rag/agent",
                json!({"endpoint": "http://h/v1", "chat_model": "m", "budget": {"steps": 0}}),
                "from 1 to 100",
            ),
            ("rag/agent", json!({"budget": {"time": "soon"}}), "not a duration"),
            ("rag/other", json!({}), "no built-in"),
        ] {
            let why = check(function, with.clone()).unwrap_err();
            assert!(why.contains(said), "{function} {with}: {why}");
        }
    }
}

//! What a helper process does that tries a model: everything that its files can do to the process that loads them.

use crate::{
    embed::EmbedStyle,
    folder::ModelFolder,
    library::Library,
    load::Source,
    loaded::{Admission, Loaded},
    settings::{Optimisation, Provider, Settings},
    task::Task,
};
use futures::StreamExt;
use nerve_core::inference::{
    EmbedRequest, GenerateRequest, InferenceError, Message, Piece, RerankRequest, Role, Sample,
};
use nerve_sandbox::{Job, Work};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokenizers::Tokenizer;
use tokio_util::task::TaskTracker;

/// What a helper process does that tries models. Its library is ONNX Runtime.
pub const TRIAL: Work = Work {
    name: "models",
    start: |_| Ok(Box::new(attempt) as Job),
    // Where it cannot be loaded, models are tried without it. It would start a thread for its telemetry.
    load: Some(|library| drop(Library::load(Some(library)))),
};

/// The length of a text that tokenizers are slow with, if they are slow with any, in bytes.
const HARD_TEXT_BYTES: usize = 32 << 10;
/// How long a tokenizer may take for a text of that length. Those that are in use take about 25 ms.
const MAX_HARD_TEXT_TIME: Duration = Duration::from_secs(5);
/// What is repeated to that length.
const HARD_TEXTS: [&str; 6] = ["a", " ", "1", "\n", "a b", "!é"];

/// What ONNX Runtime and its libraries say that get no memory.
const OUT_OF_MEMORY: [&str; 3] = ["bad_alloc", "Failed to allocate memory", "bad allocation"];

/// Whether there was no memory, by what a library says.
pub(crate) fn is_out_of_memory(why: &str) -> bool {
    OUT_OF_MEMORY.iter().any(|text| why.contains(text))
}

/// A model to try.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Its folder, or the graph in it.
    pub(crate) path: PathBuf,
    pub(crate) depth: Depth,
}

/// How much of a model is tried.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Depth {
    /// Its folder is read.
    Outline,
    /// Its tokenizer is used too.
    Tokenizer,
    /// It is loaded as it will be, and runs once.
    Run { optimisation: Optimisation, context: usize },
}

/// A model that stood its trial.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Tried {
    pub(crate) folder: ModelFolder,
    /// Whether it ran: not without ONNX Runtime.
    pub(crate) ran: bool,
}

fn attempt(request: &[u8]) -> Result<Vec<u8>, String> {
    let Order { path, depth } = serde_json::from_slice(request).map_err(|error| error.to_string())?;
    let folder = ModelFolder::read(&path).map_err(|error| error.to_string())?;
    // None names a file: it is what was loaded before this process was confined, or nothing.
    let ran = match (depth, Library::load(None)) {
        (Depth::Run { optimisation, context }, Ok(library)) => {
            load_and_run(&path, library, optimisation, context)?;
            true
        }
        (Depth::Run { .. } | Depth::Tokenizer, _) => {
            use_tokenizer(&folder.root)?;
            false
        }
        (Depth::Outline, _) => false,
    };
    serde_json::to_vec(&Tried { folder, ran }).map_err(|error| error.to_string())
}

fn load_and_run(path: &Path, library: Library, optimisation: Optimisation, context: usize) -> Result<(), String> {
    let settings = Settings {
        library: None,
        cache: PathBuf::new(),
        bundled: BTreeMap::new(),
        providers: vec![Provider::Cpu],
        threads: 1,
        optimisation,
        queue: 1,
        context,
        idle: Duration::ZERO,
        trials: None,
    };
    let source = Source { name: "on trial", library, path, cache: None };
    let loaded = source.load(&settings, &TaskTracker::new()).map_err(|error| error.to_string())?;
    read_hard_texts(|text| loaded.tokenise(text))?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|error| error.to_string())?;
    let ran = runtime.block_on(run_once(Arc::new(loaded)));
    ran.map_err(|error| format!("{} does not run: {error}", path.display()))
}

async fn run_once(loaded: Arc<Loaded>) -> Result<(), InferenceError> {
    let text = || "a trial".to_owned();
    match loaded.description.task {
        Task::Embed | Task::Sparse => {
            let request = EmbedRequest { texts: vec![text()], ..EmbedRequest::default() };
            loaded.embed(request, &EmbedStyle::default(), Admission::Wait).await.map(drop)
        }
        Task::Rerank => {
            let request = RerankRequest { query: text(), documents: vec![text()], raw: false };
            loaded.rerank(request, Admission::Wait).await.map(drop)
        }
        Task::Classify => loaded.classify(vec![Sample::Text(text())], false, Admission::Wait).await.map(drop),
        Task::Generate => {
            let messages = vec![Message { role: Role::User, content: text() }];
            let request = GenerateRequest { messages, max_tokens: Some(2), ..GenerateRequest::default() };
            let pieces: Vec<_> = loaded.generate(request).await?.collect().await;
            pieces.into_iter().collect::<Result<Vec<Piece>, InferenceError>>().map(drop)
        }
        Task::Tensor => {
            let Some(blank) = loaded.blank_features() else { return Ok(()) };
            let ran = loaded.run(&blank, Admission::Wait).await.map(drop);
            // A good model may refuse features that nobody chose. What matters is what it takes.
            ran.or_else(|error| if is_out_of_memory(&error.to_string()) { Err(error) } else { Ok(()) })
        }
    }
}

/// Uses the tokenizer of a model that is not loaded, if it has one.
fn use_tokenizer(root: &Path) -> Result<(), String> {
    let file = root.join("tokenizer.json");
    if !file.is_file() {
        return Ok(());
    }
    let wrong = |error: tokenizers::Error| format!("{} cannot be used: {error}", file.display());
    let tokenizer = Tokenizer::from_file(&file).map_err(wrong)?;
    read_hard_texts(|text| tokenizer.encode(text, false).map(drop).map_err(wrong))
}

fn read_hard_texts(tokenise: impl Fn(&str) -> Result<(), String>) -> Result<(), String> {
    for part in HARD_TEXTS {
        let (text, started) = (part.repeat(HARD_TEXT_BYTES / part.len()), Instant::now());
        tokenise(&text)?;
        let taken = started.elapsed();
        if taken > MAX_HARD_TEXT_TIME {
            return Err(format!("its tokenizer took {taken:.0?} for {} KiB of {part:?}", HARD_TEXT_BYTES >> 10));
        }
    }
    Ok(())
}

//! Probe of a model in a helper process: everything its files can do to a process that loads them.

use crate::{
    embed::EmbedStyle,
    folder::ModelFolder,
    library::Library,
    load::ModelSource,
    loaded::{Admission, LoadedModel},
    settings::{GraphOptimization, Provider, Settings},
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

/// Work of a helper process that probes models. Its library is ONNX Runtime.
pub const MODEL_PROBE: Work = Work {
    name: "models",
    start: |_| Ok(Box::new(run_probe) as Job),
    // Without the library, models are probed as far as possible. Loading it would start a telemetry thread.
    load: Some(|library| drop(Library::load(Some(library)))),
};

/// Size of the texts that reveal slow tokenizers, in bytes.
const SLOW_TEXT_BYTES: usize = 32 << 10;
/// Timeout of tokenizing a text of that size. Common tokenizers take about 25 ms.
const SLOW_TEXT_TIMEOUT: Duration = Duration::from_secs(5);
/// Patterns repeated to that size.
const SLOW_TEXT_PATTERNS: [&str; 6] = ["a", " ", "1", "\n", "a b", "!é"];

/// Messages of ONNX Runtime and its libraries about failed allocations.
const OUT_OF_MEMORY_MESSAGES: [&str; 3] = ["bad_alloc", "Failed to allocate memory", "bad allocation"];

/// Whether an error message reports a failed allocation.
pub(crate) fn is_out_of_memory(why: &str) -> bool {
    OUT_OF_MEMORY_MESSAGES.iter().any(|text| why.contains(text))
}

/// Request to probe a model.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProbeRequest {
    /// Folder of the model, or its graph.
    pub(crate) path: PathBuf,
    pub(crate) depth: ProbeDepth,
}

/// Depth of a probe.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProbeDepth {
    /// Reads the folder.
    Folder,
    /// Also uses the tokenizer.
    Tokenizer,
    /// Also loads the model as the server will, and runs it once.
    Run { optimization: GraphOptimization, context: usize },
}

/// Result of a probe.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProbeResult {
    pub(crate) folder: ModelFolder,
    /// Whether the model ran; `false` without ONNX Runtime.
    pub(crate) ran: bool,
}

fn run_probe(request: &[u8]) -> Result<Vec<u8>, String> {
    let ProbeRequest { path, depth } = serde_json::from_slice(request).map_err(|error| error.to_string())?;
    let folder = ModelFolder::read(&path).map_err(|error| error.to_string())?;
    // Without a path, this returns the library loaded before this process was sandboxed, if any.
    let ran = match (depth, Library::load(None)) {
        (ProbeDepth::Run { optimization, context }, Ok(library)) => {
            load_and_run(&path, library, optimization, context)?;
            true
        }
        (ProbeDepth::Run { .. } | ProbeDepth::Tokenizer, _) => {
            use_tokenizer(&folder.root)?;
            false
        }
        (ProbeDepth::Folder, _) => false,
    };
    serde_json::to_vec(&ProbeResult { folder, ran }).map_err(|error| error.to_string())
}

fn load_and_run(path: &Path, library: Library, optimization: GraphOptimization, context: usize) -> Result<(), String> {
    let settings = Settings {
        library: None,
        cache: PathBuf::new(),
        bundled: BTreeMap::new(),
        providers: vec![Provider::Cpu],
        threads: 1,
        optimization,
        queue: 1,
        context,
        idle: Duration::ZERO,
        prober: None,
    };
    let source = ModelSource { name: "probe", library, path, cache: None };
    let loaded = source.load(&settings, &TaskTracker::new()).map_err(|error| error.to_string())?;
    check_tokenizer_speed(|text| loaded.tokenize(text))?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|error| error.to_string())?;
    let ran = runtime.block_on(run_once(Arc::new(loaded)));
    ran.map_err(|error| format!("{} cannot be run: {error}", path.display()))
}

async fn run_once(loaded: Arc<LoadedModel>) -> Result<(), InferenceError> {
    let text = || "a probe".to_owned();
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
            // A valid model may reject blank features. Only resource usage matters here.
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
    let unusable = |error: tokenizers::Error| format!("{} cannot be used: {error}", file.display());
    let tokenizer = Tokenizer::from_file(&file).map_err(unusable)?;
    check_tokenizer_speed(|text| tokenizer.encode(text, false).map(drop).map_err(unusable))
}

fn check_tokenizer_speed(tokenize: impl Fn(&str) -> Result<(), String>) -> Result<(), String> {
    for part in SLOW_TEXT_PATTERNS {
        let (text, started) = (part.repeat(SLOW_TEXT_BYTES / part.len()), Instant::now());
        tokenize(&text)?;
        let duration = started.elapsed();
        if duration > SLOW_TEXT_TIMEOUT {
            return Err(format!("its tokenizer took {duration:.0?} for {} KiB of {part:?}", SLOW_TEXT_BYTES >> 10));
        }
    }
    Ok(())
}

//! Session configuration of a model.

use crate::{
    library::Library,
    settings::{GraphOptimization, Provider, Settings},
};
use ort::{
    ep::ExecutionProviderDispatch,
    logging::LogLevel,
    session::{Session, builder::GraphOptimizationLevel},
};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

/// Maximum size, in bytes, of a graph whose optimized form is cached; protobuf limits a file to 2 GiB.
const MAX_CACHED_GRAPH_BYTES: u64 = 1 << 30;

/// Session configuration of one model.
#[derive(Debug, Clone)]
pub(crate) struct SessionConfig {
    library: Library,
    graph: PathBuf,
    providers: Vec<Provider>,
    /// `None` if the graph is already optimized.
    optimization: Option<GraphOptimization>,
    threads: usize,
}

impl SessionConfig {
    /// Prepares sessions of `graph`; creates its optimized form in `cache` if one is given.
    pub(crate) fn prepare(
        library: Library,
        graph: PathBuf,
        settings: &Settings,
        cache: Option<&Path>,
    ) -> Result<Self, String> {
        let uncached = Self {
            library,
            graph,
            providers: settings.providers.clone(),
            optimization: Some(settings.optimization),
            threads: 1,
        };
        let size = uncached.graph.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        let on_cpu = uncached.providers.iter().all(|provider| *provider == Provider::Cpu);
        // Graphs compiled by other providers cannot be saved.
        let is_cacheable = on_cpu && settings.optimization != GraphOptimization::Off && size <= MAX_CACHED_GRAPH_BYTES;
        let Some(cache) = cache.filter(|_| is_cacheable) else { return Ok(uncached) };
        let cached_graph = cache.join(format!("optimised-{:016x}.onnx", uncached.fingerprint()));
        if !cached_graph.is_file() && !uncached.save_optimized(&cached_graph)? {
            return Ok(uncached);
        }
        Ok(Self { graph: cached_graph, optimization: None, ..uncached })
    }

    /// The configuration with this many threads per session.
    pub(crate) fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Saves the optimized graph. Returns `false` if it cannot be saved in one file.
    fn save_optimized(&self, cached_graph: &Path) -> Result<bool, String> {
        let temporary =
            cached_graph.with_extension(format!("{}.{:?}", std::process::id(), std::thread::current().id()));
        let builder = self.builder()?.with_optimized_model_path(&temporary);
        let opened = builder.map_err(|error| error.to_string())?.commit_from_file(&self.graph);
        let written = match opened {
            Ok(_) => std::fs::rename(&temporary, cached_graph).is_ok(),
            Err(error) => {
                // The session created without the cache tells whether the graph itself is invalid.
                tracing::debug!(%error, graph = %self.graph.display(), "the optimized graph cannot be cached");
                false
            }
        };
        std::fs::remove_file(&temporary).ok();
        Ok(written)
    }

    /// Hash of everything that affects an optimized graph.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.library.file, self.library.file.metadata().map(|file| file.len()).ok()).hash(&mut hasher);
        (format!("{:?}", self.optimization), std::env::consts::ARCH).hash(&mut hasher);
        #[cfg(target_arch = "x86_64")]
        (std::is_x86_feature_detected!("avx2"), std::is_x86_feature_detected!("avx512f")).hash(&mut hasher);
        hasher.finish()
    }

    fn builder(&self) -> Result<ort::session::builder::SessionBuilder, String> {
        let level = match self.optimization {
            None | Some(GraphOptimization::Off) => GraphOptimizationLevel::Disable,
            Some(GraphOptimization::Basic) => GraphOptimizationLevel::Level1,
            Some(GraphOptimization::Extended) => GraphOptimizationLevel::Level2,
            Some(GraphOptimization::All) => GraphOptimizationLevel::All,
        };
        let providers: Result<Vec<_>, _> = self.providers.iter().filter_map(|provider| dispatch(*provider)).collect();
        let text = |error: ort::Error<_>| error.to_string();
        Session::builder(&self.library.environment)
            .map_err(|error| error.to_string())?
            .with_log_level(LogLevel::Error)
            .map_err(text)?
            .with_optimization_level(level)
            .map_err(text)?
            .with_intra_threads(self.threads)
            .map_err(text)?
            // A spinning thread would take a core from the rest of the process.
            .with_intra_op_spinning(false)
            .map_err(text)?
            .with_execution_providers(providers?)
            .map_err(text)
    }

    /// Creates a session.
    ///
    /// # Errors
    /// If ONNX Runtime rejects the graph or an option.
    pub(crate) fn open(&self) -> Result<Session, String> {
        let session = self.builder()?.commit_from_file(&self.graph);
        session.map_err(|error| format!("ONNX Runtime cannot load the model: {error}"))
    }
}

/// Execution provider of ONNX Runtime; `None` for the CPU, which needs no registration.
fn dispatch(provider: Provider) -> Option<Result<ExecutionProviderDispatch, String>> {
    #[allow(unused_variables)]
    let built = |provider: ExecutionProviderDispatch| Some(Ok::<_, String>(provider.error_on_failure()));
    match provider {
        Provider::Cpu => None,
        #[cfg(feature = "cuda")]
        Provider::Cuda => built(ort::ep::CUDA::default().build()),
        #[cfg(feature = "tensorrt")]
        Provider::TensorRt => built(ort::ep::TensorRT::default().build()),
        #[cfg(feature = "coreml")]
        Provider::CoreMl => built(ort::ep::CoreML::default().build()),
        #[cfg(feature = "directml")]
        Provider::DirectMl => built(ort::ep::DirectML::default().build()),
        #[cfg(feature = "openvino")]
        Provider::OpenVino => built(ort::ep::OpenVINO::default().build()),
        #[allow(unreachable_patterns)]
        other => Some(Err(format!(
            "this nerve was built without {other}: build it with `cargo build --features {other}`, or set onnx.providers \
             to [\"cpu\"]"
        ))),
    }
}

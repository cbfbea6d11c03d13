//! Sessions of ONNX Runtime: made for the settings, and fed by whoever holds one.

use crate::{
    library::Library,
    settings::{Optimisation, Provider, Settings},
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

/// Graphs larger than this, in bytes, are not kept in their optimised form: a graph in one file has a limit of 2 GiB.
const LARGEST_KEPT: u64 = 1 << 30;

/// How the sessions of one model are made.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    library: Library,
    graph: PathBuf,
    providers: Vec<Provider>,
    /// None when the graph is optimised already.
    optimisation: Option<Optimisation>,
    threads: usize,
}

impl Recipe {
    /// Prepares to make sessions of `graph`: its optimised form is made once and kept in `cache`, if one is given.
    pub(crate) fn prepare(
        library: Library,
        graph: PathBuf,
        settings: &Settings,
        cache: Option<&Path>,
    ) -> Result<Self, String> {
        let plain = Self {
            library,
            graph,
            providers: settings.providers.clone(),
            optimisation: Some(settings.optimisation),
            threads: 1,
        };
        let size = plain.graph.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        let on_cpu = plain.providers.iter().all(|provider| *provider == Provider::Cpu);
        // Graphs that other providers compiled cannot be written down.
        let keepable = on_cpu && settings.optimisation != Optimisation::Off && size <= LARGEST_KEPT;
        let Some(cache) = cache.filter(|_| keepable) else { return Ok(plain) };
        let kept = cache.join(format!("optimised-{:016x}.onnx", plain.fingerprint()));
        if !kept.is_file() && !plain.optimise(&kept)? {
            return Ok(plain);
        }
        Ok(Self { graph: kept, optimisation: None, ..plain })
    }

    /// The same with this many threads a session.
    pub(crate) fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Writes the optimised graph; `false` when this one cannot be written in one file.
    fn optimise(&self, kept: &Path) -> Result<bool, String> {
        let temporary = kept.with_extension(format!("{}.{:?}", std::process::id(), std::thread::current().id()));
        let builder = self.builder()?.with_optimized_model_path(&temporary);
        let opened = builder.map_err(|error| error.to_string())?.commit_from_file(&self.graph);
        let written = match opened {
            Ok(_) => std::fs::rename(&temporary, kept).is_ok(),
            Err(error) => {
                // Told apart from a graph that cannot be run by the session that is made without it.
                tracing::debug!(%error, graph = %self.graph.display(), "its optimised form is not kept");
                false
            }
        };
        std::fs::remove_file(&temporary).ok();
        Ok(written)
    }

    /// Whatever decides how an optimised graph comes out.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.library.file, self.library.file.metadata().map(|file| file.len()).ok()).hash(&mut hasher);
        (format!("{:?}", self.optimisation), std::env::consts::ARCH).hash(&mut hasher);
        #[cfg(target_arch = "x86_64")]
        (std::is_x86_feature_detected!("avx2"), std::is_x86_feature_detected!("avx512f")).hash(&mut hasher);
        hasher.finish()
    }

    fn builder(&self) -> Result<ort::session::builder::SessionBuilder, String> {
        let level = match self.optimisation {
            None | Some(Optimisation::Off) => GraphOptimizationLevel::Disable,
            Some(Optimisation::Basic) => GraphOptimizationLevel::Level1,
            Some(Optimisation::Extended) => GraphOptimizationLevel::Level2,
            Some(Optimisation::All) => GraphOptimizationLevel::All,
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
            // A thread that spins takes a core from the rest of the process, which waits for events on it.
            .with_intra_op_spinning(false)
            .map_err(text)?
            .with_execution_providers(providers?)
            .map_err(text)
    }

    /// Makes a session.
    pub(crate) fn open(&self) -> Result<Session, String> {
        let session = self.builder()?.commit_from_file(&self.graph);
        session.map_err(|error| format!("ONNX Runtime cannot load the model: {error}"))
    }
}

/// How ONNX Runtime is asked for a provider; none for the CPU, which is always there.
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

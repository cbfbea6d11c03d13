//! Probes of models in helper processes, before this process loads them.

use crate::{
    files::{ModelError, unreadable},
    folder::{ModelFolder, locate},
    probe::{MODEL_PROBE, ProbeDepth, ProbeRequest, ProbeResult, is_out_of_memory},
    settings::{Provider, Settings},
};
use bytes::Bytes;
use nerve_sandbox::{Access, Death, Limits, Pool, Request, SandboxError, Setup};
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Base memory limit of a probe in bytes.
const BASE_MEMORY: u64 = 256 << 20;
/// Additional memory limit of a probe, as a multiple of the size of the model's files.
const MEMORY_FACTOR: u64 = 3;
/// Stack of the parsers in bytes: half of a server thread's, which parses the same files later.
const STACK_BYTES: u64 = 1 << 20;
/// Maximum size of a request and of a result in bytes.
const MAX_FRAME_BYTES: u64 = 4 << 20;
/// Maximum number of followed symbolic links in a model's folder.
const MAX_LINKS: usize = 256;
/// Maximum depth of folders in a model's folder.
const MAX_DEPTH: usize = 4;

/// Helper processes that probe models.
#[derive(Clone)]
pub struct ModelProber {
    /// Pool of helper processes.
    pub pool: Pool,
    /// Maximum memory of a probe in bytes.
    pub memory: u64,
    /// Timeout of a probe.
    pub timeout: Duration,
}

impl fmt::Debug for ModelProber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory, timeout, .. } = self;
        f.debug_struct("ModelProber").field("memory", memory).field("timeout", timeout).finish_non_exhaustive()
    }
}

/// Why a model did not pass its probe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The model is invalid or exceeds a limit.
    #[error("{0}")]
    Refused(String),
    /// The probe failed and may be retried.
    #[error("{0}")]
    Failed(String),
}

impl From<ModelError> for ProbeError {
    fn from(ModelError(why): ModelError) -> Self {
        Self::Refused(why)
    }
}

impl ModelProber {
    /// Reads a model's folder, or an `.onnx` file with the files beside it.
    ///
    /// # Errors
    /// Tells why it is not a usable model.
    pub async fn read_folder(&self, path: &Path) -> Result<ModelFolder, ProbeError> {
        let (root, graph) = locate(path)?;
        let graph = root.join(graph);
        let found = nerve_files::open(&graph).and_then(|graph| graph.metadata());
        let size = found.map_err(|error| unreadable(&graph, &error))?.len();
        Ok(self.run(path, size, ProbeDepth::Folder, None).await?.folder)
    }

    /// Loads a model of `size` bytes with its tokenizer and runs it once, to detect problems that only ONNX Runtime
    /// can detect. Returns whether it ran: `false` without ONNX Runtime, and for providers other than the CPU.
    ///
    /// # Errors
    /// Tells why the model was refused, or why the probe failed.
    pub async fn probe(&self, path: &Path, size: u64, settings: &Settings) -> Result<bool, ProbeError> {
        Ok(self.run(path, size, depth(settings), settings.library.as_deref()).await?.ran)
    }

    async fn run(
        &self,
        path: &Path,
        size: u64,
        depth: ProbeDepth,
        library: Option<&Path>,
    ) -> Result<ProbeResult, ProbeError> {
        let memory = size.saturating_mul(MEMORY_FACTOR).saturating_add(BASE_MEMORY);
        if memory > self.memory {
            let (required, allowed) = (memory >> 20, self.memory >> 20);
            return Err(ProbeError::Refused(format!(
                "its probe may need {required} MiB of memory, more than the limit of {allowed} MiB (`sandbox.model_memory` in the settings)"
            )));
        }
        let unreadable_path =
            |error: io::Error| ProbeError::Refused(format!("{} cannot be read: {error}", path.display()));
        let path = absolute(path).map_err(unreadable_path)?;
        let access = access(&path, library)?;
        let request_body = serde_json::to_vec(&ProbeRequest { path: path.clone(), depth });
        let request_body = request_body.map_err(|error| ProbeError::Failed(error.to_string()))?;
        let request = Request {
            work: MODEL_PROBE.name,
            tenant: path.display().to_string(),
            setup: Setup::with_access(Bytes::new(), access),
            parts: vec![request_body.into()],
            limits: Limits { memory, stack: STACK_BYTES, input: MAX_FRAME_BYTES, output: MAX_FRAME_BYTES },
            timeout: self.timeout,
        };
        let result = self.pool.run(&request).await.map_err(|error| self.probe_error(error, memory))?;
        serde_json::from_slice(&result)
            .map_err(|error| ProbeError::Failed(format!("its probe returned no result: {error}")))
    }

    fn probe_error(&self, error: SandboxError, memory: u64) -> ProbeError {
        let mib = memory >> 20;
        match error {
            SandboxError::Refused(why) if is_out_of_memory(&why) => {
                ProbeError::Refused(format!("its probe needed more than {mib} MiB of memory: {why}"))
            }
            SandboxError::Refused(why) => ProbeError::Refused(why),
            SandboxError::Died(Death::Memory(_)) => {
                ProbeError::Refused(format!("its probe needed more than {mib} MiB of memory"))
            }
            SandboxError::Timeout(limit) => ProbeError::Refused(format!(
                "its probe took longer than {limit:?} (`sandbox.model_timeout` in the settings)"
            )),
            error if error.is_permanent() => ProbeError::Refused(format!("its probe failed: {error}")),
            error => ProbeError::Failed(format!("it cannot be probed now: {error}")),
        }
    }
}

/// Depth of a probe with these settings. Helper processes have no access to devices.
pub(crate) fn depth(settings: &Settings) -> ProbeDepth {
    match settings.providers.iter().all(|provider| *provider == Provider::Cpu) {
        true => ProbeDepth::Run { optimization: settings.optimization, context: settings.context },
        false => ProbeDepth::Tokenizer,
    }
}

/// The absolute path. A link to the graph itself is not resolved, because the files beside it belong to the model.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    match (path.is_dir(), path.parent(), path.file_name()) {
        (false, Some(folder), Some(name)) => {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            Ok(folder.canonicalize()?.join(name))
        }
        _ => path.canonicalize(),
    }
}

/// A model's folder, and the targets of links in it.
fn access(path: &Path, library: Option<&Path>) -> Result<Access, ProbeError> {
    let (root, _) = locate(path)?;
    let mut readable = vec![root.clone()];
    follow_links(&root, MAX_DEPTH, &mut readable);
    Ok(Access { library: library.and_then(|library| library.canonicalize().ok()), readable })
}

fn follow_links(folder: &Path, depth: usize, readable: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth > 0 {
            follow_links(&entry.path(), depth - 1, readable);
        }
        if kind.is_symlink()
            && readable.len() <= MAX_LINKS
            && let Ok(target) = entry.path().canonicalize()
        {
            readable.push(target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn link_targets_of_a_model_folder_are_readable() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        let (folder, blob) = (place.join("model"), place.join("blob"));
        fs::create_dir_all(folder.join("onnx")).unwrap();
        fs::write(&blob, "").unwrap();
        fs::write(folder.join("config.json"), "{}").unwrap();
        symlink("../../blob", folder.join("onnx/model.onnx")).unwrap();
        for path in [folder.clone(), folder.join("onnx/model.onnx")] {
            let path = absolute(&path).unwrap();
            assert_eq!(access(&path, None).unwrap().readable, [folder.clone(), blob.clone()], "{}", path.display());
        }
        assert!(access(&place, None).unwrap_err().to_string().contains("no .onnx file"));
    }

    #[test]
    fn only_a_cpu_model_is_run_by_its_probe() {
        let mut settings = Settings {
            library: None,
            cache: PathBuf::new(),
            bundled: Default::default(),
            providers: vec![Provider::Cpu],
            threads: 1,
            optimization: crate::settings::GraphOptimization::All,
            queue: 1,
            context: 1,
            idle: Duration::ZERO,
            prober: None,
        };
        assert!(matches!(depth(&settings), ProbeDepth::Run { context: 1, .. }));
        settings.providers.insert(0, Provider::Cuda);
        assert!(matches!(depth(&settings), ProbeDepth::Tokenizer));
    }
}

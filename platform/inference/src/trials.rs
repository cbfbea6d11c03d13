//! Trials of models in helper processes, before this process loads them.

use crate::{
    files::{FolderError, unreadable},
    folder::{ModelFolder, locate},
    settings::{Provider, Settings},
    trial::{Depth, Order, TRIAL, Tried, is_out_of_memory},
};
use bytes::Bytes;
use nerve_sandbox::{Access, Death, Limits, Pool, Request, SandboxError, Setup};
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// The memory that a trial may take of whatever model, in bytes.
const BASE_MEMORY: u64 = 256 << 20;
/// The memory that a trial may take beside that, in sizes of the model's files.
const MEMORY_FACTOR: u64 = 3;
/// The stack of what reads a model's files, in bytes: half of what a thread of the server has, where the same is done again.
const STACK_BYTES: u64 = 1 << 20;
/// The largest order and the largest result, in bytes.
const MAX_FRAME_BYTES: u64 = 4 << 20;
/// Symbolic links in a model's folder that are followed out of it.
const MAX_LINKS: usize = 256;
/// How deep folders of a model lie in each other.
const MAX_DEPTH: usize = 4;

/// Helper processes that try models.
#[derive(Clone)]
pub struct Trials {
    /// Where they come from.
    pub pool: Pool,
    /// The most memory that one may take, in bytes.
    pub memory: u64,
    /// How long one may take.
    pub timeout: Duration,
}

impl fmt::Debug for Trials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory, timeout, .. } = self;
        f.debug_struct("Trials").field("memory", memory).field("timeout", timeout).finish_non_exhaustive()
    }
}

/// Why a model did not stand its trial.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrialError {
    /// The model is at fault, or larger than the settings allow.
    #[error("{0}")]
    Refused(String),
    /// It was not tried; it may be later.
    #[error("{0}")]
    Failed(String),
}

impl From<FolderError> for TrialError {
    fn from(FolderError(why): FolderError) -> Self {
        Self::Refused(why)
    }
}

impl Trials {
    /// Reads the folder of a model, or one `.onnx` file with what lies beside it.
    ///
    /// # Errors
    /// Says why it is no model.
    pub async fn outline(&self, path: &Path) -> Result<ModelFolder, TrialError> {
        let (root, graph) = locate(path)?;
        let graph = root.join(graph);
        let found = nerve_files::open(&graph).and_then(|graph| graph.metadata());
        let size = found.map_err(|error| unreadable(&graph, &error))?.len();
        Ok(self.run(path, size, Depth::Outline, None).await?.folder)
    }

    /// Loads a model whose files hold `size` bytes with its tokenizer, and runs it once: finds out what only ONNX Runtime knows
    /// of it. Whether it ran: not without ONNX Runtime, and not on other providers than the CPU.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub async fn try_out(&self, path: &Path, size: u64, settings: &Settings) -> Result<bool, TrialError> {
        Ok(self.run(path, size, depth(settings), settings.library.as_deref()).await?.ran)
    }

    async fn run(&self, path: &Path, size: u64, depth: Depth, library: Option<&Path>) -> Result<Tried, TrialError> {
        let memory = size.saturating_mul(MEMORY_FACTOR).saturating_add(BASE_MEMORY);
        if memory > self.memory {
            let (wanted, most) = (memory >> 20, self.memory >> 20);
            return Err(TrialError::Refused(format!(
                "trying it may take {wanted} MiB of memory, and {most} MiB are allowed (`sandbox.model_memory` in the settings)"
            )));
        }
        let unread = |error: io::Error| TrialError::Refused(format!("{} cannot be read: {error}", path.display()));
        let path = absolute(path).map_err(unread)?;
        let access = access(&path, library)?;
        let order = serde_json::to_vec(&Order { path: path.clone(), depth });
        let order = order.map_err(|error| TrialError::Failed(error.to_string()))?;
        let request = Request {
            work: TRIAL.name,
            tenant: path.display().to_string(),
            setup: Setup::with_access(Bytes::new(), access),
            parts: vec![order.into()],
            limits: Limits { memory, stack: STACK_BYTES, input: MAX_FRAME_BYTES, output: MAX_FRAME_BYTES },
            timeout: self.timeout,
        };
        let tried = self.pool.run(&request).await.map_err(|error| self.told(error, memory))?;
        serde_json::from_slice(&tried).map_err(|error| TrialError::Failed(format!("its trial has no result: {error}")))
    }

    fn told(&self, error: SandboxError, memory: u64) -> TrialError {
        let mib = memory >> 20;
        match error {
            SandboxError::Refused(why) if is_out_of_memory(&why) => {
                TrialError::Refused(format!("trying it, it needed more than {mib} MiB of memory: {why}"))
            }
            SandboxError::Refused(why) => TrialError::Refused(why),
            SandboxError::Died(Death::Memory(_)) => {
                TrialError::Refused(format!("trying it, it needed more than {mib} MiB of memory"))
            }
            SandboxError::Timeout(limit) => TrialError::Refused(format!(
                "trying it took longer than {limit:?} (`sandbox.model_timeout` in the settings)"
            )),
            error if error.is_permanent() => TrialError::Refused(format!("trying it: {error}")),
            error => TrialError::Failed(format!("it cannot be tried now: {error}")),
        }
    }
}

/// How much of a model is tried for these settings. Devices are out of a helper's reach.
pub(crate) fn depth(settings: &Settings) -> Depth {
    match settings.providers.iter().all(|provider| *provider == Provider::Cpu) {
        true => Depth::Run { optimisation: settings.optimisation, context: settings.context },
        false => Depth::Tokenizer,
    }
}

/// The same path from the root. The graph itself may be a link: what lies beside that is the model's.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    match (path.is_dir(), path.parent(), path.file_name()) {
        (false, Some(folder), Some(name)) => {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            Ok(folder.canonicalize()?.join(name))
        }
        _ => path.canonicalize(),
    }
}

/// A model's folder, and what links in it lead to.
fn access(path: &Path, library: Option<&Path>) -> Result<Access, TrialError> {
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
    fn links_in_a_models_folder_can_be_read() {
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
    fn only_a_model_on_the_cpu_is_run() {
        let mut settings = Settings {
            library: None,
            cache: PathBuf::new(),
            bundled: Default::default(),
            providers: vec![Provider::Cpu],
            threads: 1,
            optimisation: crate::settings::Optimisation::All,
            queue: 1,
            context: 1,
            idle: Duration::ZERO,
            trials: None,
        };
        assert!(matches!(depth(&settings), Depth::Run { context: 1, .. }));
        settings.providers.insert(0, Provider::Cuda);
        assert!(matches!(depth(&settings), Depth::Tokenizer));
    }
}

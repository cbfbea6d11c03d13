//! A model on this machine, read to be sent.

use crate::{artifacts::File, failure::Failure, onnx, output};
use nerve_inference::{Description, ModelFolder, Onnx, Optimisation, Provider, Settings};
use nerve_server::{
    bus::BusError,
    config::OnnxConfig,
    registry::{ArtifactRef, ModelInfo, Registry},
};
use std::path::Path;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The most that one model's files may hold, in bytes.
const MAX_BYTES: u64 = 16 << 30;

/// A model's files and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalModel {
    /// Its files, named relative to the model's folder.
    pub(crate) files: Vec<File>,
    /// What it is.
    pub(crate) info: ModelInfo,
}

impl LocalModel {
    /// Reads a model's folder, or one `.onnx` file with what lies beside it.
    pub(crate) async fn read(path: &Path) -> Result<Self, Failure> {
        let refused = || Failure::new(format!("cannot use {} as a model", path.display()));
        let folder = ModelFolder::read(path).map_err(|error| refused().because(error))?;
        let mut files = Vec::with_capacity(folder.files.len());
        let mut left = MAX_BYTES;
        for name in &folder.files {
            let file = folder.root.join(name);
            let unread = |error| refused().because(anyhow::Error::from(error).context(file.display().to_string()));
            let length = std::fs::metadata(&file).map_err(unread)?.len();
            left = left.checked_sub(length).ok_or_else(|| {
                refused().cause("its files hold more than 16 GiB").next("use a smaller or quantised export of it")
            })?;
            files.push(File::at(name, file.clone()).await.map_err(unread)?);
        }
        Ok(Self { files, info: info(folder.description) })
    }

    /// Runs the model in `path` once, where ONNX Runtime is on this machine: finds out here what a worker would find
    /// out later.
    pub(crate) async fn try_out(path: &Path, config: &OnnxConfig) -> anyhow::Result<()> {
        let cache = tempfile::tempdir()?;
        let settings = onnx::engine_settings(config, cache.path().to_owned())?;
        // Once is not worth an optimised graph.
        let settings =
            Settings { optimisation: Optimisation::Off, providers: vec![Provider::Cpu], threads: 1, ..settings };
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let onnx = Onnx::start(settings, stop.clone(), tasks.clone());
        let tried = match onnx.library() {
            Ok(_) => onnx.try_out(path).await,
            Err(error) => {
                tracing::debug!(%error, "the model is not tried out");
                Ok(())
            }
        };
        drop(onnx);
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        tried.map_err(|error| {
            let next = "export it again, for the version of ONNX Runtime that is here";
            Failure::new(format!("cannot use {} as a model", path.display())).because(error).next(next).into()
        })
    }

    /// Whether all of its files are in the registry.
    pub(crate) async fn is_uploaded(&self, registry: &Registry) -> Result<bool, BusError> {
        for file in &self.files {
            if !registry.is_uploaded(&file.reference()).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the registry knows its files by.
    pub(crate) fn references(&self) -> Vec<ArtifactRef> {
        self.files.iter().map(File::reference).collect()
    }
}

fn info(description: Description) -> ModelInfo {
    let Description { task, dimensions, max_tokens, inputs, outputs } = description;
    ModelInfo { task: task.as_str().to_owned(), dimensions, max_tokens, inputs, outputs }
}

/// What nerve-inference knows a model by.
pub(crate) fn description(info: &ModelInfo) -> Result<Description, Failure> {
    let ModelInfo { task, dimensions, max_tokens, inputs, outputs } = info.clone();
    let task = task.parse().map_err(|why: String| {
        Failure::new("cannot use the model").cause(why).next("a newer nerve added it: use that, or add the model again")
    })?;
    Ok(Description { task, dimensions, max_tokens, inputs, outputs })
}

/// What a model is, in one line: `embed, 384 dimensions, 256 tokens, 86.6 MiB`.
pub(crate) fn summary(info: &ModelInfo, files: &[ArtifactRef]) -> String {
    let outputs = if info.task == "classify" { "labels" } else { "dimensions" };
    let mut parts = vec![info.task.clone()];
    parts.extend(info.dimensions.map(|count| format!("{count} {outputs}")));
    parts.extend(info.max_tokens.map(|count| format!("{count} tokens")));
    parts.push(output::size(total(files)));
    parts.join(", ")
}

/// The bytes of all files.
pub(crate) fn total(files: &[ArtifactRef]) -> u64 {
    files.iter().map(|file| file.size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_inference::Task;

    #[test]
    fn a_model_is_told_in_one_line() {
        let files = [ArtifactRef { name: "model.onnx".into(), sha256: "abc".into(), size: 3 << 20 }];
        let info = |task: &str| ModelInfo { task: task.into(), dimensions: Some(3), ..ModelInfo::default() };
        assert_eq!(summary(&info("embed"), &files), "embed, 3 dimensions, 3.0 MiB");
        assert_eq!(summary(&info("classify"), &[]), "classify, 3 labels, 0 B");
    }

    #[test]
    fn what_is_stored_is_what_was_read() {
        for task in [Task::Embed, Task::Sparse, Task::Rerank, Task::Classify, Task::Generate, Task::Tensor] {
            let read = Description {
                task,
                dimensions: Some(3),
                max_tokens: None,
                inputs: vec!["a".into()],
                outputs: vec!["b".into()],
            };
            assert_eq!(description(&info(read.clone())).unwrap(), read);
        }
    }

    #[tokio::test]
    async fn what_is_no_model_is_named() {
        let error = LocalModel::read(Path::new("/no/such/folder")).await.unwrap_err();
        assert!(error.to_string().contains("/no/such/folder"));
    }
}

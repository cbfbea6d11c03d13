//! A model on this machine, read to be sent.

use crate::{artifacts::File, failure::Failure, onnx, output};
use nerve_broker::bus::BusError;
use nerve_config::OnnxConfig;
use nerve_inference::{Description, ModelFolder, Provider, Settings, Trials};
use nerve_registry::{ArtifactRef, ModelInfo, Registry};
use std::path::{Path, PathBuf};

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
    /// Finds out whether there is anything to read at `path`.
    pub(crate) fn check_exists(path: &Path) -> Result<(), Failure> {
        if path.exists() {
            return Ok(());
        }
        Err(unusable(path).cause("it does not exist").next("name a model's folder or an .onnx file"))
    }

    /// Reads a model's folder, or one `.onnx` file with what lies beside it, in a helper process.
    pub(crate) async fn read(path: &Path, trials: &Trials) -> Result<Self, Failure> {
        let outlined = trials.outline(path).await;
        let next = "correct what is in its folder, or name another model's folder or .onnx file";
        Self::of(path, outlined.map_err(|error| unusable(path).because(error).next(next))?).await
    }

    /// Reads a model that comes with this installation.
    pub(crate) async fn bundled(folder: &Path) -> Result<Self, Failure> {
        let read = ModelFolder::read(folder);
        Self::of(folder, read.map_err(|error| unusable(folder).because(error))?).await
    }

    async fn of(path: &Path, folder: ModelFolder) -> Result<Self, Failure> {
        let mut files = Vec::with_capacity(folder.files.len());
        let mut left = MAX_BYTES;
        for name in &folder.files {
            let file = folder.root.join(name);
            let unread = |error| unusable(path).because(anyhow::Error::from(error).context(file.display().to_string()));
            let length = nerve_files::open(&file).and_then(|file| file.metadata()).map_err(unread)?.len();
            left = left.checked_sub(length).ok_or_else(|| {
                unusable(path).cause("its files hold more than 16 GiB").next("use a smaller or quantised export of it")
            })?;
            files.push(File::at(name, file.clone()).await.map_err(unread)?);
        }
        Ok(Self { files, info: info(folder.description) })
    }

    /// Runs the model once, which was read from `path`, in a helper process, where ONNX Runtime is on this machine: finds out
    /// here what a worker would find out later.
    pub(crate) async fn try_out(&self, path: &Path, trials: &Trials, config: &OnnxConfig) -> anyhow::Result<()> {
        let settings = onnx::engine_settings(config, PathBuf::new(), trials.clone())?;
        // The workers have the same model on their devices.
        let settings = Settings { providers: vec![Provider::Cpu], ..settings };
        let size = self.files.iter().map(|file| file.size).sum();
        let ran = trials.try_out(path, size, &settings).await.map_err(|error| {
            let next = "export it again, for the version of ONNX Runtime that is here";
            unusable(path).because(error).next(next)
        })?;
        if !ran {
            tracing::debug!("the model is not run: ONNX Runtime is not here");
        }
        Ok(())
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

fn unusable(path: &Path) -> Failure {
    Failure::new(format!("cannot use {} as a model", path.display()))
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
    use crate::sandbox;
    use nerve_config::Config;
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
        let config = Config::load(None, []).unwrap().sandbox;
        let trials = sandbox::trials(&config, &sandbox::pool(&config));
        let error = LocalModel::read(Path::new("/no/such/folder"), &trials).await.unwrap_err();
        assert!(error.to_string().contains("/no/such/folder"));
    }
}

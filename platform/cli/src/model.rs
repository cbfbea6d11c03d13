//! A local model to upload.

use crate::{artifacts::File, failure::Failure, onnx, output};
use nerve_broker::bus::BusError;
use nerve_config::OnnxConfig;
use nerve_inference::{Description, ModelFolder, ModelProber, Provider, Settings};
use nerve_registry::{ArtifactRef, ModelInfo, Registry};
use std::path::{Path, PathBuf};

/// Maximum total size of a model's files.
const MAX_BYTES: u64 = 16 << 30;

/// A model's files and description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalModel {
    /// Its files, with paths relative to the model directory.
    pub(crate) files: Vec<File>,
    /// Its description.
    pub(crate) info: ModelInfo,
}

impl LocalModel {
    /// Returns an error if `path` does not exist.
    pub(crate) fn check_exists(path: &Path) -> Result<(), Failure> {
        if path.exists() {
            return Ok(());
        }
        Err(unusable(path).cause("it does not exist").next("pass a model directory or an .onnx file"))
    }

    /// Reads a model directory, or one `.onnx` file with the files next to it, in a helper process.
    pub(crate) async fn read(path: &Path, trials: &ModelProber) -> Result<Self, Failure> {
        let outlined = trials.read_folder(path).await;
        let next = "correct its directory, or pass another model directory or .onnx file";
        Self::of(path, outlined.map_err(|error| unusable(path).because(error).next(next))?).await
    }

    /// Reads a bundled model.
    pub(crate) async fn bundled(folder: &Path) -> Result<Self, Failure> {
        let read = ModelFolder::read(folder);
        Self::of(folder, read.map_err(|error| unusable(folder).because(error))?).await
    }

    async fn of(path: &Path, folder: ModelFolder) -> Result<Self, Failure> {
        let mut files = Vec::with_capacity(folder.files.len());
        let mut left = MAX_BYTES;
        for name in &folder.files {
            let file = folder.root.join(name);
            let unreadable =
                |error| unusable(path).because(anyhow::Error::from(error).context(file.display().to_string()));
            let length = nerve_files::open(&file).and_then(|file| file.metadata()).map_err(unreadable)?.len();
            left = left.checked_sub(length).ok_or_else(|| {
                unusable(path).cause("its files are larger than 16 GiB").next("use a smaller or quantized export of it")
            })?;
            files.push(File::local(name, file.clone()).await.map_err(unreadable)?);
        }
        Ok(Self { files, info: info(folder.description) })
    }

    /// Runs the model once in a helper process, to report errors before the upload. Skipped if ONNX Runtime is not
    /// installed on this machine.
    pub(crate) async fn test_run(&self, path: &Path, trials: &ModelProber, config: &OnnxConfig) -> anyhow::Result<()> {
        let settings = onnx::engine_settings(config, PathBuf::new(), trials.clone())?;
        // Workers may use other devices.
        let settings = Settings { providers: vec![Provider::Cpu], ..settings };
        let size = self.files.iter().map(|file| file.size).sum();
        let ran = trials.probe(path, size, &settings).await.map_err(|error| {
            let next = "export it again for the installed version of ONNX Runtime";
            unusable(path).because(error).next(next)
        })?;
        if !ran {
            tracing::debug!("skipped the test run of the model: ONNX Runtime is not installed");
        }
        Ok(())
    }

    /// Whether the registry has all of its files.
    pub(crate) async fn is_uploaded(&self, registry: &Registry) -> Result<bool, BusError> {
        for file in &self.files {
            if !registry.is_uploaded(&file.reference()).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the references of its files in the registry.
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

/// Converts a registry description to that of nerve-inference.
pub(crate) fn description(info: &ModelInfo) -> Result<Description, Failure> {
    let ModelInfo { task, dimensions, max_tokens, inputs, outputs } = info.clone();
    let task = task.parse().map_err(|why: String| {
        Failure::new("cannot use the model")
            .cause(why)
            .next("it was added by a newer version of nerve: use that version, or add the model again")
    })?;
    Ok(Description { task, dimensions, max_tokens, inputs, outputs })
}

/// Formats a model in one line: `embed, 384 dimensions, 256 tokens, 86.6 MiB`.
pub(crate) fn summary(info: &ModelInfo, files: &[ArtifactRef]) -> String {
    let outputs = if info.task == "classify" { "labels" } else { "dimensions" };
    let mut parts = vec![info.task.clone()];
    parts.extend(info.dimensions.map(|count| format!("{count} {outputs}")));
    parts.extend(info.max_tokens.map(|count| format!("{count} tokens")));
    parts.push(output::size(total(files)));
    parts.join(", ")
}

/// Returns the total size of the files in bytes.
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
    fn model_summary_is_one_line() {
        let files = [ArtifactRef { name: "model.onnx".into(), sha256: "abc".into(), size: 3 << 20 }];
        let info = |task: &str| ModelInfo { task: task.into(), dimensions: Some(3), ..ModelInfo::default() };
        assert_eq!(summary(&info("embed"), &files), "embed, 3 dimensions, 3.0 MiB");
        assert_eq!(summary(&info("classify"), &[]), "classify, 3 labels, 0 B");
    }

    #[test]
    fn description_round_trips() {
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
    async fn error_names_the_model_path() {
        let config = Config::load(None, []).unwrap().sandbox;
        let trials = sandbox::trials(&config, &sandbox::pool(&config));
        let error = LocalModel::read(Path::new("/no/such/folder"), &trials).await.unwrap_err();
        assert!(error.to_string().contains("/no/such/folder"));
    }
}

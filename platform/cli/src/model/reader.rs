//! Reads and tests local models in helper processes.

use super::{LocalModel, unusable};
use crate::{failure::Failure, onnx, sandbox};
use nerve_config::Config;
use nerve_inference::{Description, ModelFolder, ModelProber, Provider, Settings};
use nerve_registry::ModelInfo;
use nerve_sandbox::Pool;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Reads and tests local models.
pub(crate) struct ModelReader {
    config: Config,
    pool: Pool,
    prober: ModelProber,
}

impl ModelReader {
    /// Creates the pool of helper processes. Requires a Tokio runtime.
    pub(crate) fn new(config: &Config) -> Self {
        let pool = sandbox::pool(&config.sandbox);
        let prober = sandbox::prober(&config.sandbox, &pool);
        Self { config: config.clone(), pool, prober }
    }

    /// Reads a model directory, or one `.onnx` file with the files next to it, in a helper process.
    pub(crate) async fn read(&self, path: &Path) -> Result<LocalModel, Failure> {
        let outlined = self.prober.read_folder(path).await;
        let next = "correct its directory, or pass another model directory or .onnx file";
        local(path, outlined.map_err(|error| unusable(path).because(error).next(next))?).await
    }

    /// Runs the model once in a helper process, to report errors before the upload. Skipped if ONNX Runtime is not
    /// installed on this machine.
    pub(crate) async fn test_run(&self, path: &Path, model: &LocalModel) -> anyhow::Result<()> {
        let settings = onnx::engine_settings(&self.config.onnx, PathBuf::new(), self.prober.clone())?;
        // Workers may use other devices.
        let settings = Settings { providers: vec![Provider::Cpu], ..settings };
        let size = model.files.iter().map(|file| file.size).sum();
        let ran = self.prober.probe(path, size, &settings).await.map_err(|error| {
            let next = "export it again for the installed version of ONNX Runtime";
            unusable(path).because(error).next(next)
        })?;
        if !ran {
            tracing::debug!("skipped the test run of the model: ONNX Runtime is not installed");
        }
        Ok(())
    }

    /// Ends the helper processes.
    pub(crate) async fn close(self) {
        self.pool.close().await;
    }
}

/// Reads a bundled model.
pub(crate) async fn read_bundled(folder: &Path) -> Result<LocalModel, Failure> {
    let read = ModelFolder::read(folder);
    local(folder, read.map_err(|error| unusable(folder).because(error))?).await
}

async fn local(path: &Path, folder: ModelFolder) -> Result<LocalModel, Failure> {
    let ModelFolder { root, files, description, .. } = folder;
    LocalModel::of(path, &root, &files, info(description)).await
}

/// Checks the options of `onnx/*` with a model of this description.
pub(crate) fn check_options(function: &str, info: &ModelInfo, with: &Map<String, Value>) -> Result<(), String> {
    nerve_onnx::check_options(function, &description(info)?, with)
}

fn info(description: Description) -> ModelInfo {
    let Description { task, dimensions, max_tokens, inputs, outputs } = description;
    ModelInfo { task: task.as_str().to_owned(), dimensions, max_tokens, inputs, outputs }
}

/// Converts a registry description to that of nerve-inference.
fn description(info: &ModelInfo) -> Result<Description, String> {
    let ModelInfo { task, dimensions, max_tokens, inputs, outputs } = info.clone();
    let task = task.parse().map_err(|why: String| {
        format!("{why}: a newer version of nerve added the model; use that version, or add the model again")
    })?;
    Ok(Description { task, dimensions, max_tokens, inputs, outputs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_inference::Task;

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
        let reader = ModelReader::new(&Config::load(None, []).unwrap());
        let error = reader.read(Path::new("/no/such/folder")).await.unwrap_err();
        assert!(error.to_string().contains("/no/such/folder"));
    }
}

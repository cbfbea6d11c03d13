//! A model on this machine, read to be sent.

use crate::{artifacts::File, failure::Failure, output};
use nerve_onnx::{Description, ModelFolder, Task};
use nerve_server::registry::{ArtifactRef, ModelInfo};
use std::path::Path;

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

    /// What the registry knows its files by.
    pub(crate) fn references(&self) -> Vec<ArtifactRef> {
        self.files.iter().map(File::reference).collect()
    }
}

fn info(Description { task, dimensions, max_tokens }: Description) -> ModelInfo {
    let task = match task {
        Task::Embed => "embed",
        Task::Sparse => "sparse",
        Task::Rerank => "rerank",
        Task::Classify => "classify",
        Task::Tensor => "tensor",
    };
    ModelInfo { task: task.to_owned(), dimensions, max_tokens }
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

    #[test]
    fn a_model_is_told_in_one_line() {
        let files = [ArtifactRef { name: "model.onnx".into(), sha256: "abc".into(), size: 3 << 20 }];
        let info = |task: &str| ModelInfo { task: task.into(), dimensions: Some(3), max_tokens: None };
        assert_eq!(summary(&info("embed"), &files), "embed, 3 dimensions, 3.0 MiB");
        assert_eq!(summary(&info("classify"), &[]), "classify, 3 labels, 0 B");
    }

    #[test]
    fn tasks_have_the_names_that_they_are_stored_by() {
        for task in [Task::Embed, Task::Sparse, Task::Rerank, Task::Classify, Task::Tensor] {
            let told = info(Description { task, dimensions: None, max_tokens: None }).task;
            assert_eq!(serde_json::to_value(task).unwrap(), told);
        }
    }

    #[tokio::test]
    async fn what_is_no_model_is_named() {
        let error = LocalModel::read(Path::new("/no/such/folder")).await.unwrap_err();
        assert!(error.to_string().contains("/no/such/folder"));
    }
}

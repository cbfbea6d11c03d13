//! A local model to upload.

#[cfg_attr(not(feature = "onnx"), path = "model/absent.rs")]
mod reader;

pub(crate) use reader::{ModelReader, check_options, read_bundled};

use crate::{artifacts::File, failure::Failure, output};
use nerve_broker::bus::BusError;
use nerve_registry::{ArtifactRef, ModelInfo, Registry};
use std::path::Path;

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

    /// Reads the files `names` in `root`, of the model at `path`.
    pub(crate) async fn of(path: &Path, root: &Path, names: &[String], info: ModelInfo) -> Result<Self, Failure> {
        let mut files = Vec::with_capacity(names.len());
        let mut left = MAX_BYTES;
        for name in names {
            let file = root.join(name);
            let unreadable =
                |error| unusable(path).because(anyhow::Error::from(error).context(file.display().to_string()));
            let length = nerve_files::open(&file).and_then(|file| file.metadata()).map_err(unreadable)?.len();
            left = left.checked_sub(length).ok_or_else(|| {
                unusable(path).cause("its files are larger than 16 GiB").next("use a smaller or quantized export of it")
            })?;
            files.push(File::local(name, file.clone()).await.map_err(unreadable)?);
        }
        Ok(Self { files, info })
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

    #[test]
    fn model_summary_is_one_line() {
        let files = [ArtifactRef { name: "model.onnx".into(), sha256: "abc".into(), size: 3 << 20 }];
        let info = |task: &str| ModelInfo { task: task.into(), dimensions: Some(3), ..ModelInfo::default() };
        assert_eq!(summary(&info("embed"), &files), "embed, 3 dimensions, 3.0 MiB");
        assert_eq!(summary(&info("classify"), &[]), "classify, 3 labels, 0 B");
    }
}

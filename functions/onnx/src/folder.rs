//! A model's folder in Hugging Face's layout: which files matter, and what the model does.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Texts to dense vectors.
    Embed,
    /// Texts to sparse vectors (SPLADE).
    Sparse,
    /// A query and a document to one relevance.
    Rerank,
    /// Texts to labels.
    Classify,
    /// Numbers and strings to whatever the graph declares.
    Tensor,
}

/// What a folder says of its model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// What it is for.
    pub task: Task,
    /// Length of its vectors, or count of its labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<usize>,
    /// The most tokens it reads of one text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
}

/// A model's folder, read and checked without running it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    /// The folder.
    pub root: PathBuf,
    /// The files the model needs, relative to the folder with `/`, sorted.
    pub files: Vec<String>,
    /// What the model is.
    pub description: Description,
}

/// Why a folder or file is no model that can be run.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FolderError(String);

impl ModelFolder {
    /// Reads a model's folder, or one `.onnx` file with what lies beside it.
    pub fn read(path: &Path) -> Result<Self, FolderError> {
        Err(FolderError(format!("{} cannot be read yet", path.display())))
    }
}

//! Tasks and descriptions of models.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Task of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Text to dense vectors.
    Embed,
    /// Text to sparse vectors, one weight per token of the vocabulary (SPLADE).
    Sparse,
    /// Query and document to relevance.
    Rerank,
    /// Text to labels.
    Classify,
    /// Conversation to answer.
    Generate,
    /// Numbers and strings to the graph's outputs.
    Tensor,
}

impl FromStr for Task {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Embed, Self::Sparse, Self::Rerank, Self::Classify, Self::Generate, Self::Tensor];
        all.into_iter().find(|task| task.as_str() == text).ok_or_else(|| format!("`{text}` is not a task of models"))
    }
}

impl Task {
    /// Name of the task, as shown by `nerve models list`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Sparse => "sparse",
            Self::Rerank => "rerank",
            Self::Classify => "classify",
            Self::Generate => "generate",
            Self::Tensor => "tensor",
        }
    }
}

/// Description of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Task.
    pub task: Task,
    /// Dimensions of its vectors, or number of its labels, if the graph declares it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<usize>,
    /// Maximum number of tokens of a text, or of a conversation with its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Names of the graph's inputs, if a manifest may map them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
    /// Names of the graph's outputs, if a manifest may map them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
}

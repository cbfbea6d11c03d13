//! What a model is for.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Texts to dense vectors.
    Embed,
    /// Texts to sparse vectors, one weight a token of the vocabulary (SPLADE).
    Sparse,
    /// A query and a document to one relevance.
    Rerank,
    /// Texts to labels.
    Classify,
    /// A conversation to what is said next.
    Generate,
    /// Numbers and strings to whatever the graph declares.
    Tensor,
}

impl FromStr for Task {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Embed, Self::Sparse, Self::Rerank, Self::Classify, Self::Generate, Self::Tensor];
        all.into_iter()
            .find(|task| task.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not what a model can be for"))
    }
}

impl Task {
    /// The word for it, as `nerve models list` shows it.
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

/// What a folder says of its model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// What it is for.
    pub task: Task,
    /// Length of its vectors, or count of its labels, where the graph declares it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<usize>,
    /// The most tokens it reads of one text, or of a conversation with its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// What its graph takes, by name, where a manifest maps it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
    /// What its graph gives, by name, where a manifest maps it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
}

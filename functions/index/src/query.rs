//! What is searched for, and what is found.

use nerve_text::chunk::Chunk;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Candidates that each way of searching gives, for each result that is asked for.
const CANDIDATES: usize = 5;
/// The fewest candidates that each way of searching gives.
const FEWEST: usize = 50;

/// What is searched for.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// In which collection.
    pub collection: String,
    /// Its words.
    pub text: String,
    /// Its vector, of length one.
    pub vector: Vec<f32>,
    /// Metadata that a document must have; an array stands for any of its values.
    pub filter: Map<String, Value>,
    /// The most results.
    pub limit: usize,
    /// How much ranks by words and by meaning weigh.
    pub weights: Weights,
}

impl Query {
    /// Candidates that each way of searching gives.
    pub(crate) fn candidates(&self) -> usize {
        (self.limit * CANDIDATES).max(FEWEST)
    }
}

/// How much each way of searching weighs in the fusion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// BM25.
    pub lexical: f32,
    /// Cosine.
    pub dense: f32,
}

impl Default for Weights {
    fn default() -> Self {
        Self { lexical: 1.0, dense: 1.0 }
    }
}

/// A chunk that was found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// The chunk's own id, as long as its document is not uploaded again.
    pub id: String,
    /// The document.
    pub document: String,
    /// The document's name.
    pub name: String,
    /// The chunk.
    #[serde(flatten)]
    pub chunk: Chunk,
    /// The document's metadata.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    /// The fused score; only its order means something.
    #[serde(default)]
    pub score: f32,
    /// What its words are worth, where it was among the candidates by words: BM25, or PostgreSQL's rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bm25: Option<f32>,
    /// The cosine of its vector and the question's, however it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f32>,
    /// Its place among the candidates by words, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lexical_rank: Option<usize>,
    /// Its place among the candidates by meaning, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense_rank: Option<usize>,
}

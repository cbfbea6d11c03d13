//! Queries and hits.

use nerve_text::chunk::Chunk;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Number of candidates per ranking for each requested result.
const CANDIDATES_PER_RESULT: usize = 5;
/// Minimum number of candidates per ranking.
const MIN_CANDIDATES: usize = 50;

/// A search.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// The collection to search.
    pub collection: String,
    /// Text for the lexical ranking.
    pub text: String,
    /// Unit vector for the dense ranking.
    pub vector: Vec<f32>,
    /// Required metadata; an array matches any of its values.
    pub filter: Map<String, Value>,
    /// Maximum number of results.
    pub limit: usize,
    /// Weights of the rankings.
    pub weights: FusionWeights,
}

impl Query {
    /// Number of candidates per ranking.
    pub(crate) fn candidates(&self) -> usize {
        (self.limit * CANDIDATES_PER_RESULT).max(MIN_CANDIDATES)
    }
}

/// Weight of each ranking in the fusion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FusionWeights {
    /// BM25.
    pub lexical: f32,
    /// Cosine similarity.
    pub dense: f32,
}

impl Default for FusionWeights {
    fn default() -> Self {
        Self { lexical: 1.0, dense: 1.0 }
    }
}

/// A chunk that matches a query.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// Id of the chunk, valid until the document is uploaded again.
    pub id: String,
    /// Id of the document.
    pub document: String,
    /// Name of the document.
    pub name: String,
    /// The chunk.
    #[serde(flatten)]
    pub chunk: Chunk,
    /// Metadata of the document.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    /// Fused score, meaningful only for the order.
    #[serde(default)]
    pub score: f32,
    /// Lexical score, if the chunk is a lexical candidate: BM25, or the rank of PostgreSQL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bm25: Option<f32>,
    /// Cosine similarity of the chunk and the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f32>,
    /// Rank among the lexical candidates, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lexical_rank: Option<usize>,
    /// Rank among the dense candidates, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense_rank: Option<usize>,
}

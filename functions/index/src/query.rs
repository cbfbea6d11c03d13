//! Queries and hits.

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

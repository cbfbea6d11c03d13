//! Reciprocal rank fusion of the lexical and the dense ranking.

use crate::query::FusionWeights;
use std::collections::HashMap;

/// Constant k of reciprocal rank fusion (Cormack et al., 2009).
const RANK_OFFSET: f32 = 60.0;

/// A fused candidate: a chunk with its scores and ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) chunk: u64,
    pub(crate) score: f32,
    pub(crate) bm25: Option<f32>,
    pub(crate) similarity: Option<f32>,
    pub(crate) lexical_rank: Option<usize>,
    pub(crate) dense_rank: Option<usize>,
}

/// Score contribution of one ranking: its weight divided by the rank (from 1) plus a constant.
pub fn rank_score(weight: f32, rank: usize) -> f32 {
    // Ranks are far below the integer precision of an f32.
    #[expect(clippy::cast_precision_loss)]
    let rank = rank as f32;
    weight / (RANK_OFFSET + rank)
}

/// Fuses two rankings. Returns candidates by descending score.
pub(crate) fn fuse(
    lexical_candidates: &[(u64, f32)],
    dense_candidates: &[(u64, f32)],
    weights: FusionWeights,
) -> Vec<Candidate> {
    let mut found: HashMap<u64, Candidate> = HashMap::new();
    let rankings = [(lexical_candidates, weights.lexical, true), (dense_candidates, weights.dense, false)];
    for (ranking, weight, words) in rankings {
        for (position, (chunk, value)) in ranking.iter().enumerate() {
            let rank = position + 1;
            let one = found.entry(*chunk).or_insert(Candidate { chunk: *chunk, ..Candidate::default() });
            one.score += rank_score(weight, rank);
            match words {
                true => (one.bm25, one.lexical_rank) = (Some(*value), Some(rank)),
                false => (one.similarity, one.dense_rank) = (Some(*value), Some(rank)),
            }
        }
    }
    let mut fused: Vec<Candidate> = found.into_values().collect();
    fused.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.chunk.cmp(&b.chunk)));
    fused
}

//! One ranking of two: reciprocal rank fusion.

use crate::query::Weights;
use std::collections::HashMap;

/// What the rank of a hit is added to before it is turned over (Cormack et al., 2009: reciprocal rank fusion).
const RANK_OFFSET: f32 = 60.0;

/// A chunk and how it was found.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Found {
    pub(crate) chunk: u64,
    pub(crate) score: f32,
    pub(crate) bm25: Option<f32>,
    pub(crate) similarity: Option<f32>,
    pub(crate) lexical_rank: Option<usize>,
    pub(crate) dense_rank: Option<usize>,
}

/// What one ranking adds to a chunk's score: its weight over the rank, from 1, and a constant.
pub fn share(weight: f32, rank: usize) -> f32 {
    // Ranks are far below where an f32 loses whole numbers.
    #[expect(clippy::cast_precision_loss)]
    let rank = rank as f32;
    weight / (RANK_OFFSET + rank)
}

/// Adds up what each ranking says of a chunk.
pub(crate) fn fuse(by_words: &[(u64, f32)], by_meaning: &[(u64, f32)], weights: Weights) -> Vec<Found> {
    let mut found: HashMap<u64, Found> = HashMap::new();
    let rankings = [(by_words, weights.lexical, true), (by_meaning, weights.dense, false)];
    for (ranking, weight, words) in rankings {
        for (place, (chunk, value)) in ranking.iter().enumerate() {
            let rank = place + 1;
            let one = found.entry(*chunk).or_insert(Found { chunk: *chunk, ..Found::default() });
            one.score += share(weight, rank);
            match words {
                true => (one.bm25, one.lexical_rank) = (Some(*value), Some(rank)),
                false => (one.similarity, one.dense_rank) = (Some(*value), Some(rank)),
            }
        }
    }
    let mut fused: Vec<Found> = found.into_values().collect();
    fused.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.chunk.cmp(&b.chunk)));
    fused
}

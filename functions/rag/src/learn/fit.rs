//! Fits weights to feedback and compares them on held-out feedback.
//!
//! Only the shares of the rankings in a weighted sum matter, so there are two parameters. nDCG is a step function
//! without a gradient, so a grid search over both finds the best values without a learning rate.

use super::ranking::{JudgedCandidate, quality};
use nerve_events::feedback::{Ndcg, RankingWeights};

/// Grid of a share, in steps of [`SHARE_STEP`]; neither ranking is ever ignored.
const SHARE_STEPS: std::ops::RangeInclusive<u8> = 1..=19;
/// Step of the grid.
const SHARE_STEP: f32 = 0.05;
/// nDCG penalty per unit of distance from the live shares, so that the nearest of equal candidates wins.
const DISTANCE_PENALTY: f32 = 0.002;
/// z-value of a one-sided 95 % confidence interval.
const CONFIDENCE_Z: f32 = 1.645;

/// Returns the weights with the best mean quality on these rankings.
pub(super) fn fit(rankings: &[&[JudgedCandidate]], live: &RankingWeights) -> RankingWeights {
    let live_shares = Shares::of(live);
    let mut best = (mean(rankings, live), *live);
    // Without reranking, its shares make no difference.
    let reranked = rankings.iter().any(|ranking| ranking.iter().all(|one| one.relevance.is_some()));
    for dense in SHARE_STEPS.map(|step| f32::from(step) * SHARE_STEP) {
        let relevances = SHARE_STEPS.map(|step| f32::from(step) * SHARE_STEP).filter(|_| reranked);
        for relevance in relevances.chain((!reranked).then_some(live_shares.relevance)) {
            let shares = Shares { dense, relevance };
            let weights = shares.weights(live);
            let value = mean(rankings, &weights) - DISTANCE_PENALTY * shares.distance(live_shares);
            if value > best.0 {
                best = (value, weights);
            }
        }
    }
    best.1
}

#[derive(Debug, Clone, Copy)]
struct Shares {
    /// Share of the dense ranking in the fusion.
    dense: f32,
    /// Share of the model's relevance in the reranking.
    relevance: f32,
}

impl Shares {
    fn of(weights: &RankingWeights) -> Self {
        let share = |one: f32, other: f32| if one + other > 0.0 { one / (one + other) } else { 0.5 };
        Self { dense: share(weights.dense, weights.lexical), relevance: share(weights.relevance, weights.retrieved) }
    }

    /// Weights with these shares and unchanged sums.
    fn weights(self, live: &RankingWeights) -> RankingWeights {
        let rounded = |value: f32| (value * 1e4).round() / 1e4;
        let (fused, reranked) = (live.lexical + live.dense, live.relevance + live.retrieved);
        RankingWeights {
            lexical: rounded(fused * (1.0 - self.dense)),
            dense: rounded(fused * self.dense),
            relevance: rounded(reranked * self.relevance),
            retrieved: rounded(reranked * (1.0 - self.relevance)),
        }
    }

    fn distance(self, other: Self) -> f32 {
        (self.dense - other.dense).abs() + (self.relevance - other.relevance).abs()
    }
}

// Counts are far below the integer precision of an f32.
#[expect(clippy::cast_precision_loss)]
fn mean(rankings: &[&[JudgedCandidate]], weights: &RankingWeights) -> f32 {
    rankings.iter().map(|ranking| quality(ranking, weights)).sum::<f32>() / rankings.len().max(1) as f32
}

/// Comparison of two weights on the same rankings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Comparison {
    pub(super) ndcg: Ndcg,
    /// Mean gain of the second over the first.
    gain: f32,
    error: f32,
}

impl Comparison {
    // Counts are far below the integer precision of an f32.
    #[expect(clippy::cast_precision_loss)]
    pub(super) fn of(rankings: &[&[JudgedCandidate]], before: &RankingWeights, after: &RankingWeights) -> Self {
        let ndcg = Ndcg { before: mean(rankings, before), after: mean(rankings, after) };
        let gains = rankings.iter().map(|ranking| quality(ranking, after) - quality(ranking, before));
        let gains: Vec<f32> = gains.collect();
        let count = gains.len().max(1) as f32;
        let gain = gains.iter().sum::<f32>() / count;
        let spread = gains.iter().map(|one| (one - gain).powi(2)).sum::<f32>() / (count - 1.0).max(1.0);
        Self { ndcg, gain, error: (spread / count).sqrt() }
    }

    /// Whether the second is better by this margin, with statistical significance.
    pub(super) fn is_better(&self, margin: f32) -> bool {
        self.gain >= margin && self.gain > CONFIDENCE_Z * self.error
    }
}

//! Weights that suit what readers said, and whether they suit what other readers said too.
//!
//! Only the share of each ranking in a sum counts, so there are two numbers to find, and nDCG, which has steps and no
//! gradient, is looked at over a grid of both: what is best there is best, and no rate of learning has to be right.

use super::{
    ranking::{Judged, quality},
    weights::{Ndcg, Weights},
};

/// A share of one of two rankings goes from this many twentieths to the rest, so that both always count.
const STEPS: std::ops::RangeInclusive<u8> = 1..=19;
const STEP: f32 = 0.05;
/// What a change of the whole share must gain in nDCG, so that of equals the nearest to the live weights is taken.
const INERTIA: f32 = 0.002;
/// One-sided 95 % of the normal distribution: better by less than so many standard errors may be chance.
const CONFIDENCE: f32 = 1.645;

/// The weights that order these rankings best.
pub(super) fn fit(rankings: &[&[Judged]], live: &Weights) -> Weights {
    let of = Shares::of(live);
    let mut best = (mean(rankings, live), *live);
    // Without reranking nothing tells its shares apart.
    let reranked = rankings.iter().any(|ranking| ranking.iter().all(|one| one.relevance.is_some()));
    for dense in STEPS.map(|step| f32::from(step) * STEP) {
        let relevances = STEPS.map(|step| f32::from(step) * STEP).filter(|_| reranked);
        for relevance in relevances.chain((!reranked).then_some(of.relevance)) {
            let shares = Shares { dense, relevance };
            let weights = shares.weights(live);
            let value = mean(rankings, &weights) - INERTIA * shares.distance(of);
            if value > best.0 {
                best = (value, weights);
            }
        }
    }
    best.1
}

#[derive(Debug, Clone, Copy)]
struct Shares {
    /// Of the ranking by meaning in the fusion.
    dense: f32,
    /// Of the model's word in the reranking.
    relevance: f32,
}

impl Shares {
    fn of(weights: &Weights) -> Self {
        let share = |one: f32, other: f32| if one + other > 0.0 { one / (one + other) } else { 0.5 };
        Self { dense: share(weights.dense, weights.lexical), relevance: share(weights.relevance, weights.retrieved) }
    }

    /// Weights with these shares, whose sums are what they were.
    fn weights(self, live: &Weights) -> Weights {
        let rounded = |value: f32| (value * 1e4).round() / 1e4;
        let (fused, reranked) = (live.lexical + live.dense, live.relevance + live.retrieved);
        Weights {
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

// Rankings are far below where an f32 loses whole numbers.
#[expect(clippy::cast_precision_loss)]
fn mean(rankings: &[&[Judged]], weights: &Weights) -> f32 {
    rankings.iter().map(|ranking| quality(ranking, weights)).sum::<f32>() / rankings.len().max(1) as f32
}

/// How two weights compare on the same rankings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Comparison {
    pub(super) ndcg: Ndcg,
    /// What the second gains over the first, on average, and its standard error.
    gain: f32,
    error: f32,
}

impl Comparison {
    // Rankings are far below where an f32 loses whole numbers.
    #[expect(clippy::cast_precision_loss)]
    pub(super) fn of(rankings: &[&[Judged]], before: &Weights, after: &Weights) -> Self {
        let ndcg = Ndcg { before: mean(rankings, before), after: mean(rankings, after) };
        let gains = rankings.iter().map(|ranking| quality(ranking, after) - quality(ranking, before));
        let gains: Vec<f32> = gains.collect();
        let count = gains.len().max(1) as f32;
        let gain = gains.iter().sum::<f32>() / count;
        let spread = gains.iter().map(|one| (one - gain).powi(2)).sum::<f32>() / (count - 1.0).max(1.0);
        Self { ndcg, gain, error: (spread / count).sqrt() }
    }

    /// Whether the second is better by this margin, and by more than chance.
    pub(super) fn is_better(&self, margin: f32) -> bool {
        self.gain >= margin && self.gain > CONFIDENCE * self.error
    }
}

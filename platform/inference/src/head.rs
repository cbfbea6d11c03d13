//! Output heads of text models: pooled vectors, sparse weights, relevance, labels.
//!
//! The definitions follow sentence-transformers (`models.Pooling`, `SpladePooling`, `CrossEncoder`); the tests compare
//! each with it.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Output head of a text model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Head {
    /// One vector per text. Without pooling, the graph has pooled already.
    Vector { pooling: Vec<Pooling>, normalize: bool },
    /// One weight per token of the vocabulary.
    Sparse {
        pooling: SparsePooling,
        /// Whether to apply the logarithm twice, for `log1p_relu` models.
        double_log: bool,
    },
    /// One relevance score per pair of texts.
    Relevance { activation: Activation },
    /// One score per label.
    Labels { names: Vec<String>, activation: Activation },
}

/// Pooling of token vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// Mean.
    Mean,
    /// First token.
    Cls,
    /// Last token.
    LastToken,
    /// Maximum per dimension.
    Max,
    /// Sum divided by the square root of the token count.
    MeanSqrtLength,
    /// Mean weighted by position, from 1.
    WeightedMean,
}

/// Pooling of token logits into one weight per token of the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SparsePooling {
    Max,
    Sum,
}

/// Activation of logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    Identity,
    Sigmoid,
    Softmax,
}

impl FromStr for Pooling {
    type Err = String;

    /// Parses sentence-transformers' names.
    ///
    /// # Errors
    /// If the name is unknown.
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "mean" => Self::Mean,
            "cls" => Self::Cls,
            "max" => Self::Max,
            "lasttoken" => Self::LastToken,
            "mean_sqrt_len_tokens" => Self::MeanSqrtLength,
            "weightedmean" => Self::WeightedMean,
            other => return Err(format!("`{other}` is not a supported pooling mode")),
        })
    }
}

impl Pooling {
    /// Pools the vectors of `width` numbers each in `tokens`.
    pub(crate) fn pool(self, tokens: &[f32], width: usize, into: &mut Vec<f32>) {
        let count = tokens.len() / width.max(1);
        let rows = || tokens.chunks_exact(width.max(1));
        match self {
            Self::Cls => into.extend(rows().next().unwrap_or_default()),
            Self::LastToken => into.extend(rows().next_back().unwrap_or_default()),
            Self::Max => into.extend(folded(rows(), width, f32::NEG_INFINITY, |kept, value, _| kept.max(value))),
            Self::Mean => into.extend(summed(rows(), width, as_f32(count.max(1)))),
            Self::MeanSqrtLength => into.extend(summed(rows(), width, as_f32(count.max(1)).sqrt())),
            Self::WeightedMean => {
                let weights = as_f32(count * (count + 1) / 2).max(1.0);
                let sum = folded(rows(), width, 0.0, |sum, value, index| sum + value * as_f32(index + 1));
                into.extend(sum.into_iter().map(|value| value / weights));
            }
        }
    }
}

fn folded<'t>(
    rows: impl Iterator<Item = &'t [f32]>,
    width: usize,
    start: f32,
    fold: impl Fn(f32, f32, usize) -> f32,
) -> Vec<f32> {
    let mut kept = vec![start; width];
    for (index, row) in rows.enumerate() {
        for (kept, value) in kept.iter_mut().zip(row) {
            *kept = fold(*kept, *value, index);
        }
    }
    kept
}

fn summed<'t>(rows: impl Iterator<Item = &'t [f32]>, width: usize, divisor: f32) -> Vec<f32> {
    let mut sum = folded(rows, width, 0.0, |sum, value, _| sum + value);
    sum.iter_mut().for_each(|value| *value /= divisor);
    sum
}

/// Token counts are far below the integer precision of an `f32`.
#[expect(clippy::cast_precision_loss)]
fn as_f32(count: usize) -> f32 {
    count as f32
}

impl SparsePooling {
    /// Pools rows of `width` logits into one weight per token of the vocabulary.
    pub(crate) fn pool(self, logits: &[f32], width: usize, double_log: bool) -> Vec<f32> {
        let rows = logits.chunks_exact(width.max(1));
        let weight = |logit: f32| {
            let once = logit.max(0.0).ln_1p();
            if double_log { once.ln_1p() } else { once }
        };
        match self {
            // The logarithm is monotonic, so it is applied once per token of the vocabulary.
            Self::Max => {
                let mut largest = folded(rows, width, 0.0, |kept, value, _| kept.max(value));
                largest.iter_mut().for_each(|logit| *logit = weight(*logit));
                largest
            }
            Self::Sum => folded(rows, width, 0.0, |sum, value, _| sum + weight(value)),
        }
    }
}

impl Activation {
    /// Applies the activation to one text's logits.
    pub(crate) fn apply(self, logits: &mut [f32]) {
        match self {
            Self::Identity => {}
            Self::Sigmoid => logits.iter_mut().for_each(|logit| *logit = 1.0 / (1.0 + (-*logit).exp())),
            Self::Softmax => {
                let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                logits.iter_mut().for_each(|logit| *logit = (*logit - largest).exp());
                let sum: f32 = logits.iter().sum();
                logits.iter_mut().for_each(|logit| *logit /= sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooled(pooling: Pooling) -> Vec<f32> {
        let mut into = Vec::new();
        pooling.pool(&[1.0, 8.0, 3.0, 4.0, 5.0, 0.0], 2, &mut into);
        into
    }

    #[test]
    fn pooling_matches_its_definition() {
        assert_eq!(pooled(Pooling::Mean), [3.0, 4.0]);
        assert_eq!(pooled(Pooling::Cls), [1.0, 8.0]);
        assert_eq!(pooled(Pooling::LastToken), [5.0, 0.0]);
        assert_eq!(pooled(Pooling::Max), [5.0, 8.0]);
        assert_eq!(pooled(Pooling::MeanSqrtLength), [9.0 / 3_f32.sqrt(), 12.0 / 3_f32.sqrt()]);
        assert_eq!(pooled(Pooling::WeightedMean), [22.0 / 6.0, 16.0 / 6.0]);
    }

    #[test]
    fn sparse_pooling_matches_its_definition() {
        let logits = [-1.0, 1.0, 3.0, 0.5];
        assert_eq!(SparsePooling::Max.pool(&logits, 2, false), [4_f32.ln(), 2_f32.ln()]);
        assert_eq!(SparsePooling::Sum.pool(&logits, 2, false), [4_f32.ln(), 2_f32.ln() + 1.5_f32.ln()]);
        assert_eq!(SparsePooling::Max.pool(&logits, 2, true), [4_f32.ln().ln_1p(), 2_f32.ln().ln_1p()]);
    }

    #[test]
    fn activations_produce_scores() {
        let mut softmax = [1000.0, 1000.0];
        Activation::Softmax.apply(&mut softmax);
        assert_eq!(softmax, [0.5, 0.5]);
        let mut sigmoid = [0.0, -200.0];
        Activation::Sigmoid.apply(&mut sigmoid);
        assert_eq!(sigmoid, [0.5, 0.0]);
    }
}

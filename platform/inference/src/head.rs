//! What is made of a text model's output: pooled vectors, sparse weights, relevance, labels.
//!
//! The definitions are sentence-transformers' (`models.Pooling`, `SpladePooling`, `CrossEncoder`), with which the
//! tests compare every one of them.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// What a text model's output becomes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Head {
    /// One vector a text. No pooling: the graph has done it.
    Vector { pooling: Vec<Pooling>, normalise: bool },
    /// One weight a token of the vocabulary.
    Sparse {
        pooling: SparsePooling,
        /// Whether the logarithm is taken twice, as `log1p_relu` models were trained.
        twice: bool,
    },
    /// One number a pair of texts.
    Relevance { activation: Activation },
    /// One number a label.
    Labels { names: Vec<String>, activation: Activation },
}

/// How the vectors of a text's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first token's.
    Cls,
    /// The last token's.
    LastToken,
    /// The largest of each dimension.
    Max,
    /// Their sum over the square root of their count.
    MeanSqrtLength,
    /// Their mean, each weighted by its position, from one.
    WeightedMean,
}

/// How the logits of a text's tokens become one weight a token of the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SparsePooling {
    Max,
    Sum,
}

/// What turns a logit into a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    Identity,
    Sigmoid,
    Softmax,
}

impl FromStr for Pooling {
    type Err = String;

    /// Reads sentence-transformers' names.
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "mean" => Self::Mean,
            "cls" => Self::Cls,
            "max" => Self::Max,
            "lasttoken" => Self::LastToken,
            "mean_sqrt_len_tokens" => Self::MeanSqrtLength,
            "weightedmean" => Self::WeightedMean,
            other => return Err(format!("`{other}` is not a way of pooling that Nerve knows")),
        })
    }
}

impl Pooling {
    /// Pools `count` vectors of `width` numbers each, which lie one after the other in `tokens`.
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

/// Counts of tokens are far below where an `f32` loses whole numbers.
#[expect(clippy::cast_precision_loss)]
fn as_f32(count: usize) -> f32 {
    count as f32
}

impl SparsePooling {
    /// One weight a token of the vocabulary, out of one row of `width` logits a token of the text.
    pub(crate) fn pool(self, logits: &[f32], width: usize, twice: bool) -> Vec<f32> {
        let rows = logits.chunks_exact(width.max(1));
        let weight = |logit: f32| {
            let once = logit.max(0.0).ln_1p();
            if twice { once.ln_1p() } else { once }
        };
        match self {
            // The logarithm only grows, so that it is taken once a token of the vocabulary.
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
    /// Turns one text's logits into scores.
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
    fn every_way_of_pooling() {
        assert_eq!(pooled(Pooling::Mean), [3.0, 4.0]);
        assert_eq!(pooled(Pooling::Cls), [1.0, 8.0]);
        assert_eq!(pooled(Pooling::LastToken), [5.0, 0.0]);
        assert_eq!(pooled(Pooling::Max), [5.0, 8.0]);
        assert_eq!(pooled(Pooling::MeanSqrtLength), [9.0 / 3_f32.sqrt(), 12.0 / 3_f32.sqrt()]);
        assert_eq!(pooled(Pooling::WeightedMean), [22.0 / 6.0, 16.0 / 6.0]);
    }

    #[test]
    fn sparse_weights() {
        let logits = [-1.0, 1.0, 3.0, 0.5];
        assert_eq!(SparsePooling::Max.pool(&logits, 2, false), [4_f32.ln(), 2_f32.ln()]);
        assert_eq!(SparsePooling::Sum.pool(&logits, 2, false), [4_f32.ln(), 2_f32.ln() + 1.5_f32.ln()]);
        assert_eq!(SparsePooling::Max.pool(&logits, 2, true), [4_f32.ln().ln_1p(), 2_f32.ln().ln_1p()]);
    }

    #[test]
    fn scores() {
        let mut softmax = [1000.0, 1000.0];
        Activation::Softmax.apply(&mut softmax);
        assert_eq!(softmax, [0.5, 0.5]);
        let mut sigmoid = [0.0, -200.0];
        Activation::Sigmoid.apply(&mut sigmoid);
        assert_eq!(sigmoid, [0.5, 0.0]);
    }
}

//! Sampling of the next token from logits.

use nerve_core::inference::Sampling;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use std::collections::HashSet;

/// 32-bit random words consumed per token.
const WORDS_PER_TOKEN: u128 = 2;

/// Checks the range of the sampling options.
///
/// # Errors
/// Names the option that is out of range.
pub(super) fn check(sampling: &Sampling) -> Result<(), String> {
    match sampling {
        Sampling { temperature, .. } if !(0.0..=100.0).contains(temperature) => {
            Err(format!("temperature is {temperature}: it must be from 0 to 100"))
        }
        Sampling { top_p, .. } if !(0.0..=1.0).contains(top_p) => {
            Err(format!("top_p is {top_p}: it must be from 0 to 1"))
        }
        _ => Ok(()),
    }
}

/// Samples the tokens of one answer.
pub(super) struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    penalty: f32,
    /// Tokens that occurred, if there is a repetition penalty.
    seen: HashSet<u32>,
}

impl Sampler {
    /// A sampler after these tokens.
    pub(super) fn new(sampling: Sampling, penalty: f32, tokens: &[u32]) -> Self {
        let mut sampler =
            Self { sampling, random: ChaCha8Rng::seed_from_u64(sampling.seed), penalty, seen: HashSet::new() };
        tokens.iter().for_each(|token| sampler.record(*token));
        sampler
    }

    // A penalty of 1 disables it.
    #[expect(clippy::float_cmp)]
    fn record(&mut self, token: u32) {
        if self.penalty != 1.0 {
            self.seen.insert(token);
        }
    }

    /// Samples the token at `position`, counted from the start of the conversation. Randomness depends only on seed
    /// and position, so that a resumed answer continues identically.
    pub(super) fn sample_token(&mut self, mut logits: Vec<f32>, position: usize) -> Result<u32, String> {
        for token in &self.seen {
            if let Some(logit) = usize::try_from(*token).ok().and_then(|index| logits.get_mut(index)) {
                *logit = if *logit < 0.0 { *logit * self.penalty } else { *logit / self.penalty };
            }
        }
        let best = argmax(&logits).ok_or("the model returned no numeric logit")?;
        let greedy = self.sampling.temperature <= 0.0 || self.sampling.top_k == 1;
        let index = if greedy { best } else { self.sample(&logits, best, position) };
        let token = u32::try_from(index).map_err(|error| error.to_string())?;
        self.record(token);
        Ok(token)
    }

    fn sample(&mut self, logits: &[f32], best: usize, position: usize) -> usize {
        let largest = f64::from(logits.get(best).copied().unwrap_or_default());
        let temperature = f64::from(self.sampling.temperature);
        let weight = |(index, logit): (usize, &f32)| (index, ((f64::from(*logit) - largest) / temperature).exp());
        let mut weights: Vec<(usize, f64)> =
            logits.iter().enumerate().filter(|(_, logit)| !logit.is_nan()).map(weight).collect();
        let heavier = |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let top_k = self.sampling.top_k;
        if top_k > 0 && top_k < weights.len() {
            weights.select_nth_unstable_by(top_k - 1, heavier);
            weights.truncate(top_k);
        }
        if top_k > 0 || self.sampling.top_p < 1.0 {
            weights.sort_unstable_by(heavier);
        }
        let total = |weights: &[(usize, f64)]| weights.iter().map(|(_, weight)| weight).sum::<f64>();
        if self.sampling.top_p < 1.0 {
            let enough = total(&weights) * f64::from(self.sampling.top_p);
            let mut sum = 0.0;
            let reached = weights.iter().position(|(_, weight)| {
                sum += weight;
                sum >= enough
            });
            weights.truncate(reached.map_or(weights.len(), |at| at + 1));
        }
        let mut remaining = self.random(position) * total(&weights);
        for (index, weight) in &weights {
            remaining -= weight;
            if remaining < 0.0 {
                return *index;
            }
        }
        best
    }

    /// A random number in [0, 1) for this position.
    fn random(&mut self, position: usize) -> f64 {
        self.random.set_word_pos(u128::try_from(position).unwrap_or_default() * WORDS_PER_TOKEN);
        // An f64 has 53 bits of precision.
        #[expect(clippy::cast_precision_loss)]
        let high = (self.random.next_u64() >> 11) as f64;
        high / (1_u64 << 53) as f64
    }
}

/// Index of the first maximum.
fn argmax(logits: &[f32]) -> Option<usize> {
    let numbers = logits.iter().enumerate().filter(|(_, logit)| !logit.is_nan());
    numbers
        .fold(None, |best: Option<(usize, f32)>, (index, &logit)| match best {
            Some((_, kept)) if kept >= logit => best,
            _ => Some((index, logit)),
        })
        .map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_p: f32, top_k: usize, seed: u64) -> Sampler {
        Sampler::new(Sampling { temperature, top_p, top_k, seed }, 1.0, &[])
    }

    /// Frequencies of three tokens in 20,000 samples.
    fn frequencies(mut sampler: Sampler) -> Vec<f64> {
        let mut counts = vec![0.0; 3];
        for position in 0..20_000 {
            let token = sampler.sample_token(vec![1.0, 3.0, 2.0], position).unwrap();
            counts[usize::try_from(token).unwrap()] += 1.0 / 20_000.0;
        }
        counts
    }

    fn assert_near(got: &[f64], expected: [f64; 3]) {
        assert!(
            got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 0.015),
            "{got:?}, not {expected:?}"
        );
    }

    #[test]
    fn token_frequency_matches_its_probability() {
        // Softmax of 1, 3 and 2, and of their halves.
        assert_near(&frequencies(sampler(1.0, 1.0, 0, 1)), [0.0900, 0.6652, 0.2447]);
        assert_near(&frequencies(sampler(2.0, 1.0, 0, 1)), [0.1863, 0.5065, 0.3072]);
        assert_near(&frequencies(sampler(1.0, 1.0, 2, 1)), [0.0, 0.7311, 0.2689]);
        assert_near(&frequencies(sampler(1.0, 0.8, 0, 1)), [0.0, 0.7311, 0.2689]);
        assert_near(&frequencies(sampler(1.0, 0.5, 0, 1)), [0.0, 1.0, 0.0]);
        assert_near(&frequencies(sampler(1.0, 0.0, 0, 1)), [0.0, 1.0, 0.0]);
    }

    #[test]
    fn randomness_depends_on_seed_and_position() {
        let run = |seed, from| {
            let mut sampler = sampler(1.5, 0.95, 0, seed);
            (from..50)
                .map(|position| sampler.sample_token(vec![1.0, 1.1, 1.2, 0.9], position).unwrap())
                .collect::<Vec<u32>>()
        };
        assert_eq!(run(7, 0), run(7, 0));
        assert_eq!(run(7, 0)[20..], run(7, 20));
        assert_ne!(run(7, 0), run(8, 0));
    }

    #[test]
    fn greedy_sampling_takes_the_first_maximum() {
        let mut greedy = sampler(0.0, 1.0, 0, 0);
        assert_eq!(greedy.sample_token(vec![0.0, 2.0, 2.0, f32::NAN], 0), Ok(1));
        assert!(greedy.sample_token(vec![f32::NAN], 0).is_err() && greedy.sample_token(Vec::new(), 0).is_err());
        assert_eq!(sampler(5.0, 1.0, 1, 3).sample_token(vec![0.0, 2.0, 1.9], 0), Ok(1));
    }

    #[test]
    fn repeated_token_is_penalized() {
        let mut sampler = Sampler::new(Sampling::default(), 2.0, &[0]);
        assert_eq!(sampler.sample_token(vec![3.0, 2.0, 1.6], 0), Ok(1));
        assert_eq!(sampler.sample_token(vec![3.0, 2.0, 1.6], 1), Ok(2));
        assert_eq!(Sampler::new(Sampling::default(), 2.0, &[0]).sample_token(vec![-1.0, -1.5], 0), Ok(1));
    }
}

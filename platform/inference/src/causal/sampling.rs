//! The next token, out of how likely each is.

use nerve_core::inference::Sampling;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use std::collections::HashSet;

/// Words of chance that one token takes.
const WORDS: u128 = 2;

/// Says what no model can be asked for.
pub(super) fn check(sampling: &Sampling) -> Result<(), String> {
    match sampling {
        Sampling { temperature, .. } if !(0.0..=100.0).contains(temperature) => {
            Err(format!("a temperature of {temperature} is not from 0 to 100"))
        }
        Sampling { top_p, .. } if !(0.0..=1.0).contains(top_p) => Err(format!("a top_p of {top_p} is not from 0 to 1")),
        _ => Ok(()),
    }
}

/// Chooses the tokens of one answer.
pub(super) struct Sampler {
    sampling: Sampling,
    chance: ChaCha8Rng,
    penalty: f32,
    /// The tokens that were said, where a penalty is on them.
    said: HashSet<u32>,
}

impl Sampler {
    /// For an answer after these tokens.
    pub(super) fn new(sampling: Sampling, penalty: f32, before: &[u32]) -> Self {
        let mut made =
            Self { sampling, chance: ChaCha8Rng::seed_from_u64(sampling.seed), penalty, said: HashSet::new() };
        before.iter().for_each(|token| made.say(*token));
        made
    }

    // 1 is what files say for none.
    #[expect(clippy::float_cmp)]
    fn say(&mut self, token: u32) {
        if self.penalty != 1.0 {
            self.said.insert(token);
        }
    }

    /// The token at `place`, counted from the beginning of the conversation: chance depends on the seed and on it
    /// alone, so that an answer which was cut off goes on as it would have.
    pub(super) fn choose(&mut self, mut logits: Vec<f32>, place: usize) -> Result<u32, String> {
        for token in &self.said {
            if let Some(logit) = usize::try_from(*token).ok().and_then(|index| logits.get_mut(index)) {
                *logit = if *logit < 0.0 { *logit * self.penalty } else { *logit / self.penalty };
            }
        }
        let best = likeliest(&logits).ok_or("the model gave no number for any token")?;
        let greedy = self.sampling.temperature <= 0.0 || self.sampling.top_k == 1;
        let index = if greedy { best } else { self.sample(&logits, best, place) };
        let token = u32::try_from(index).map_err(|error| error.to_string())?;
        self.say(token);
        Ok(token)
    }

    fn sample(&mut self, logits: &[f32], best: usize, place: usize) -> usize {
        let largest = f64::from(logits.get(best).copied().unwrap_or_default());
        let temperature = f64::from(self.sampling.temperature);
        let weight = |(index, logit): (usize, &f32)| (index, ((f64::from(*logit) - largest) / temperature).exp());
        let mut weights: Vec<(usize, f64)> =
            logits.iter().enumerate().filter(|(_, logit)| !logit.is_nan()).map(weight).collect();
        let heavier = |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let most = self.sampling.top_k;
        if most > 0 && most < weights.len() {
            weights.select_nth_unstable_by(most - 1, heavier);
            weights.truncate(most);
        }
        if most > 0 || self.sampling.top_p < 1.0 {
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
        let mut left = self.chance(place) * total(&weights);
        for (index, weight) in &weights {
            left -= weight;
            if left < 0.0 {
                return *index;
            }
        }
        best
    }

    /// A number from 0 up to 1, that belongs to this place.
    fn chance(&mut self, place: usize) -> f64 {
        self.chance.set_word_pos(u128::try_from(place).unwrap_or_default() * WORDS);
        // 53 bits are what an f64 holds.
        #[expect(clippy::cast_precision_loss)]
        let high = (self.chance.next_u64() >> 11) as f64;
        high / (1_u64 << 53) as f64
    }
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> Option<usize> {
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

    /// How often each of three tokens comes, of 20,000.
    fn shares(mut sampler: Sampler) -> Vec<f64> {
        let mut counts = vec![0.0; 3];
        for place in 0..20_000 {
            let token = sampler.choose(vec![1.0, 3.0, 2.0], place).unwrap();
            counts[usize::try_from(token).unwrap()] += 1.0 / 20_000.0;
        }
        counts
    }

    fn assert_near(got: &[f64], wanted: [f64; 3]) {
        assert!(got.iter().zip(wanted).all(|(got, wanted)| (got - wanted).abs() < 0.015), "{got:?}, not {wanted:?}");
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        // Softmax of 1, 3 and 2, and of them halved.
        assert_near(&shares(sampler(1.0, 1.0, 0, 1)), [0.0900, 0.6652, 0.2447]);
        assert_near(&shares(sampler(2.0, 1.0, 0, 1)), [0.1863, 0.5065, 0.3072]);
        assert_near(&shares(sampler(1.0, 1.0, 2, 1)), [0.0, 0.7311, 0.2689]);
        assert_near(&shares(sampler(1.0, 0.8, 0, 1)), [0.0, 0.7311, 0.2689]);
        assert_near(&shares(sampler(1.0, 0.5, 0, 1)), [0.0, 1.0, 0.0]);
        assert_near(&shares(sampler(1.0, 0.0, 0, 1)), [0.0, 1.0, 0.0]);
    }

    #[test]
    fn chance_is_the_seeds_and_the_places() {
        let run = |seed, from| {
            let mut sampler = sampler(1.5, 0.95, 0, seed);
            (from..50).map(|place| sampler.choose(vec![1.0, 1.1, 1.2, 0.9], place).unwrap()).collect::<Vec<u32>>()
        };
        assert_eq!(run(7, 0), run(7, 0));
        assert_eq!(run(7, 0)[20..], run(7, 20));
        assert_ne!(run(7, 0), run(8, 0));
    }

    #[test]
    fn the_likeliest_is_the_first_of_equals_and_a_number() {
        let mut greedy = sampler(0.0, 1.0, 0, 0);
        assert_eq!(greedy.choose(vec![0.0, 2.0, 2.0, f32::NAN], 0), Ok(1));
        assert!(greedy.choose(vec![f32::NAN], 0).is_err() && greedy.choose(Vec::new(), 0).is_err());
        assert_eq!(sampler(5.0, 1.0, 1, 3).choose(vec![0.0, 2.0, 1.9], 0), Ok(1));
    }

    #[test]
    fn what_was_said_is_less_likely_again() {
        let mut sampler = Sampler::new(Sampling::default(), 2.0, &[0]);
        assert_eq!(sampler.choose(vec![3.0, 2.0, 1.6], 0), Ok(1));
        assert_eq!(sampler.choose(vec![3.0, 2.0, 1.6], 1), Ok(2));
        assert_eq!(Sampler::new(Sampling::default(), 2.0, &[0]).choose(vec![-1.0, -1.5], 0), Ok(1));
    }
}

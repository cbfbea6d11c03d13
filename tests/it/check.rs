//! The checker (`nerve_tests::check`): random steps, and whether anything is lost, doubled, mixed, foreign or out of sight.

mod verdict;

use nerve_tests::{check, seconds};
use std::time::Instant;

/// Seeds that `make test` runs, and no new one after this time.
const SEEDS: u64 = 12;
const TIME: std::time::Duration = seconds(100);

/// A variable as a number.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// Runs that look for fewer steps, once a seed has failed.
const SHRINK_RUNS: u64 = 24;

/// `CHECK_SEEDS` is how many seeds (`make check SEEDS=200`), `CHECK_FROM` the first of them, `CHECK_SHRINK` how many runs look for
/// fewer steps.
#[test]
fn random_steps_lose_double_mix_and_hide_nothing() {
    let (asked, first) = (number("CHECK_SEEDS"), number("CHECK_FROM").unwrap_or(1));
    let shrink_runs = number("CHECK_SHRINK").unwrap_or(SHRINK_RUNS).try_into().expect("a number of runs");
    let started = Instant::now();
    let mut failed = Vec::new();
    for seed in first..first + asked.unwrap_or(SEEDS) {
        if asked.is_none() && started.elapsed() > TIME {
            break;
        }
        let result = check::run(seed, shrink_runs);
        eprintln!("{:>4} s: seed {seed}: {}", started.elapsed().as_secs(), result.as_ref().err().map_or("ok", |it| it));
        failed.extend(result.err());
        // One is enough to mend; only the long run goes on.
        if asked.is_none() && !failed.is_empty() {
            break;
        }
    }
    assert!(failed.is_empty(), "{} seeds fail:\n\n{}", failed.len(), failed.join("\n\n"));
}

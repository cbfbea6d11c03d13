//! The checker: random steps against a real Nerve, and one function that reads what came of them.
//!
//! # Layout
//! - [`model`]: what was sent, as far as the next step depends on it; and which steps there are (`proptest-state-machine`).
//! - [`system`]: a nats-server, a gateway and a worker of one run, and how each step is taken there.
//! - [`history`]: what was sent, answered, ordered and broken, with times; and the streams at the end.
//! - [`verdict`]: the history and the streams in; what was lost, doubled, mixed, foreign or out of sight out.
//!
//! # Flow
//! seed → steps → a run of each step, written into the history → the end: everything at rest, the streams read → the verdict.
//! A verdict with findings is a failure, and `proptest` looks for fewer steps that fail, too.
//!
//! The verdict knows the contract (design.md, Identity) and nothing of Nerve's ids: each event's data says what its function does
//! with it, each run of a function says in each result which run it was, and each result says of how many it is.

pub mod history;
pub mod model;
pub mod system;
pub mod verdict;

use model::{Model, Steps};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use proptest_state_machine::ReferenceStateMachine;
use std::{path::PathBuf, sync::atomic::Ordering};

/// Steps of one run.
const STEPS: std::ops::Range<usize> = 3..10;
/// How long the runs that look for fewer steps after a failure may take together, in milliseconds.
const SHRINK_TIME_MS: u32 = 240_000;

/// Findings that are shown; one fault may have hundreds.
const SHOWN: usize = 8;

/// Runs the steps of one seed; an error says what was found, with the seed and the fewest steps that show it, as far as so many
/// more runs find fewer.
///
/// # Errors
/// Findings of the verdict, or that the run could not be carried out.
pub fn run(seed: u64, shrink_runs: u32) -> Result<(), String> {
    let config = Config {
        cases: 1,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: shrink_runs,
        max_shrink_time: SHRINK_TIME_MS,
        ..Config::default()
    };
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let result = TestRunner::new(config).run(&Steps::sequential_strategy(STEPS), |(model, steps, seen)| {
        // The verdict is on all steps together, so all are seen; nobody asks where nothing is shrunk.
        if let Some(seen) = seen.filter(|_| shrink_runs > 0) {
            seen.fetch_add(steps.len(), Ordering::SeqCst);
        }
        runtime.block_on(one(seed, model, &steps)).map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => Ok(()),
        Err(TestError::Fail(found, (model, steps, _))) => {
            let steps = steps.iter().map(|step| format!("  {step:?}")).collect::<Vec<_>>().join("\n");
            let Model { workers, short_windows, .. } = model;
            let of = format!("workers: {workers}, short windows: {short_windows}");
            Err(format!("seed {seed}: {found}\nthe fewest steps that were found to show it, {of}\n{steps}"))
        }
        Err(error) => Err(format!("seed {seed}: {error}")),
    }
}

/// One run: the steps, and the verdict on what came of them.
async fn one(seed: u64, mut model: Model, steps: &[model::Step]) -> Result<(), String> {
    let mut system = system::System::start(&model).await;
    for step in steps {
        model = Steps::apply(model, step);
        system.take(&model, step).await;
    }
    let (history, end) = system.end().await;
    let findings = verdict::check(&history, &end);
    if findings.is_empty() {
        return Ok(());
    }
    let path = written(seed, &history, steps);
    let shown: Vec<String> = findings.iter().take(SHOWN).map(ToString::to_string).collect();
    let (count, shown) = (findings.len(), shown.join("\n"));
    Err(format!("{count} findings\n{shown}\n(history: {})", path.display()))
}

/// Writes a history down, a fact a line, and says where; that of fewer steps replaces the one before it.
fn written(seed: u64, history: &[history::Entry], steps: &[model::Step]) -> PathBuf {
    let folder = std::env::temp_dir().join("nerve-check");
    let path = folder.join(format!("seed-{seed}.jsonl"));
    let lines = history.iter().map(|entry| serde_json::to_string(entry).expect("a fact as JSON") + "\n");
    let text: String = std::iter::once(format!("{:?}\n", format!("{steps:?}"))).chain(lines).collect();
    std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, text)).expect("a history can be written");
    path
}

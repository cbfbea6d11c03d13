//! One event at one function: how often it was given, and what came of it each time.

use super::{Finding, Kind, Part, number};
use crate::{
    check::{
        history::{End, Entry, Fact, Run},
        model::Fault,
        system::ATTEMPTS,
    },
    streams::Stored,
};
use serde_json::Value;
use std::collections::BTreeMap;
use time::OffsetDateTime;

/// How often things broke.
pub(super) struct Faults {
    /// Whatever it was: a message may have come twice then, and have failed each time.
    all: usize,
    /// Workers that were killed with what they had in hand.
    crashes: usize,
}

impl Faults {
    pub(super) fn of(history: &[Entry]) -> Self {
        let broken = history.iter().filter_map(|entry| match entry.fact {
            Fact::Broke(fault, _) => Some(fault),
            _ => None,
        });
        let broken: Vec<_> = broken.collect();
        let crashes = broken.iter().filter(|fault| **fault == Fault::KillWorker).count();
        Self { all: broken.len(), crashes }
    }
}

/// One event at one function.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) function: &'static str,
    event: String,
    /// When it was stored where the function takes it from: once, and again for each copy after the windows.
    pub(super) given: Vec<OffsetDateTime>,
    /// When it was redriven or replayed, and so has an outcome since.
    again: Vec<OffsetDateTime>,
    /// How often it may have been redriven or replayed.
    again_at_most: usize,
    /// Whether it was redriven.
    redriven: bool,
    /// The results of each run.
    sets: BTreeMap<String, Set>,
    /// The dead letters that there are or were.
    pub(super) letters: BTreeMap<u64, OffsetDateTime>,
    /// Copies on their way back to the function.
    returning: Vec<(OffsetDateTime, Value)>,
    /// How many results one run has.
    pub(super) wanted: usize,
    /// How often runs of it fail, as far as it is their fault.
    pub(super) failures: usize,
    /// Whether each run emits before its end; and how many such events there are, by the version that emitted them.
    pub(super) always_early: bool,
    pub(super) emitted: BTreeMap<Option<u64>, usize>,
    /// Its runs.
    pub(super) runs: Vec<Run>,
}

/// What is stored of one run.
#[derive(Debug)]
struct Set {
    /// How often each result is there.
    indexes: BTreeMap<usize, usize>,
    total: usize,
    last: OffsetDateTime,
}

impl Account {
    pub(super) fn new(function: &'static str, event: String) -> Self {
        Self {
            function,
            event,
            given: Vec::new(),
            again: Vec::new(),
            again_at_most: 0,
            redriven: false,
            sets: BTreeMap::new(),
            letters: BTreeMap::new(),
            returning: Vec::new(),
            wanted: 0,
            failures: 0,
            always_early: false,
            emitted: BTreeMap::new(),
            runs: Vec::new(),
        }
    }

    /// Enters a result.
    pub(super) fn put(&mut self, stored: &Stored, part: &Part) {
        let new = || Set { indexes: BTreeMap::new(), total: part.total, last: stored.time };
        let set = self.sets.entry(part.run.clone()).or_insert_with(new);
        *set.indexes.entry(part.index).or_default() += 1;
        set.last = set.last.max(stored.time);
    }

    /// Enters a dead letter, or one on its way back.
    pub(super) fn put_dead(&mut self, stored: &Stored) {
        if stored.subject.starts_with("dead.") {
            self.letters.insert(stored.sequence, stored.time);
        } else {
            self.returning.push((stored.time, serde_json::from_slice(&stored.data).unwrap_or_default()));
        }
    }

    /// Enters a redrive.
    pub(super) fn redriven(&mut self, at: OffsetDateTime) {
        self.again.push(at);
        self.again_at_most += 1;
        self.redriven = true;
    }

    /// Enters a replay of all that there was since a moment.
    pub(super) fn replayed(&mut self, since: OffsetDateTime, at: OffsetDateTime, until: OffsetDateTime) {
        let before = |time| self.given.iter().filter(|given| (since..time).contains(*given)).count();
        self.again_at_most += before(until);
        self.again.extend(std::iter::repeat_n(at, before(at)));
    }

    /// What is wrong with it.
    pub(super) fn findings(&self, faults: &Faults, end: &End) -> Vec<Finding> {
        let mut found = self.wrong_sets();
        found.extend(self.too_much(faults));
        found.extend(self.too_little(faults, end));
        found
    }

    fn finding(&self, kind: Kind, what: &str) -> Finding {
        Finding { kind, what: format!("{} at {}: {what}", self.event, self.function) }
    }

    fn generations(&self) -> usize {
        self.given.len() + self.again_at_most
    }

    /// Sets stand or fall together.
    fn wrong_sets(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        for (run, set) in &self.sets {
            let (there, total) = (set.indexes.len(), set.total);
            if there < total {
                let runs = self.sets.len();
                let what = format!("there are {there} of {total} results of run {run}, of {runs} runs with results");
                found.push(self.finding(Kind::Mixed, &what));
            }
            if set.indexes.values().any(|count| *count > 1) {
                found.push(self.finding(Kind::Doubled, &format!("results of run {run} are there more than once")));
            }
        }
        found
    }

    /// One outcome a generation.
    fn too_much(&self, faults: &Faults) -> Vec<Finding> {
        let (sets, letters, generations) = (self.sets.len(), self.letters.len(), self.generations());
        let mut found = Vec::new();
        if sets > generations {
            let what = format!("there are {sets} sets of results, and it was given {generations} times");
            found.push(self.finding(Kind::Doubled, &what));
        } else if sets + letters > generations + faults.all {
            let what = format!(
                "there are {sets} sets of results and {letters} dead letters, and it was given {generations} times"
            );
            found.push(self.finding(Kind::Doubled, &what));
        }
        if let Some(count) = self.emitted.values().find(|count| **count > generations) {
            let what = format!("one version has emitted {count} events, and it was given {generations} times");
            found.push(self.finding(Kind::Doubled, &what));
        }
        found
    }

    /// An outcome since it was given last, and a reason for each dead letter.
    fn too_little(&self, faults: &Faults, end: &End) -> Vec<Finding> {
        let Some(last) = self.given.iter().chain(&self.again).max() else { return Vec::new() };
        let mut found = Vec::new();
        let ran = self.runs.iter().any(|run| run.at >= seconds(*last));
        let has_ended = self.sets.values().any(|set| set.last >= *last)
            || self.letters.values().any(|time| time >= last)
            || (self.wanted == 0 && ran);
        if !has_ended {
            let since = if self.again.contains(last) { "it was given again" } else { "it was given" };
            let ran = if ran { ", though the function ran" } else { "" };
            let what = format!("since {since} there is neither a result nor a dead letter{ran}");
            let returning = self.returning.iter().find(|(time, _)| time >= last);
            let hidden = returning.is_some_and(|(_, data)| !is_listed(&end.listed, data));
            found.push(self.finding(if self.redriven && hidden { Kind::OutOfSight } else { Kind::Lost }, &what));
        }
        if !self.letters.is_empty() && self.failures + faults.crashes < ATTEMPTS {
            found.push(self.finding(Kind::Lost, "it is a dead letter, and did not fail as often as that takes"));
        }
        found.extend(self.lost_emissions());
        found
    }

    /// What each run with results has emitted before its end is there, too.
    fn lost_emissions(&self) -> Option<Finding> {
        let mut runs: BTreeMap<_, usize> = BTreeMap::new();
        for run in self.runs.iter().filter(|run| self.always_early && self.sets.contains_key(&run.run)) {
            *runs.entry(Some(u64::from(run.version))).or_default() += 1;
        }
        let emitted = |version| self.emitted.get(version).copied().unwrap_or_default();
        let (version, runs) = runs.iter().find(|(version, runs)| emitted(version) < **runs)?;
        let emitted = emitted(version);
        let what =
            format!("{runs} runs of one version have results, and {emitted} of what they emitted before is there");
        Some(self.finding(Kind::Lost, &what))
    }
}

/// Whether any listing shows this event.
fn is_listed(listed: &[Value], data: &Value) -> bool {
    fn shows(value: &Value, n: usize) -> bool {
        match value {
            Value::Object(fields) => number(value) == Some(n) || fields.values().any(|value| shows(value, n)),
            Value::Array(values) => values.iter().any(|value| shows(value, n)),
            _ => false,
        }
    }
    number(data).is_some_and(|n| listed.iter().any(|value| shows(value, n)))
}

/// A time in seconds since 1970.
fn seconds(time: OffsetDateTime) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "microseconds of this century fit")]
    let micros = (time.unix_timestamp_nanos() / 1000) as f64;
    micros / 1e6
}

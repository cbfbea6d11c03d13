//! The history and the streams in; what was lost, doubled, mixed, foreign or out of sight out.
//!
//! # Layout
//! - [`account`]: one event at one function: how often it was given, and what came of it each time.
//! - [`intake`]: what was sent and what tenants called, against what is in the log.
//!
//! # Rules
//! An event that was accepted is in the log, and once within the windows. Each time that a function is given an event (first, by
//! each redrive, by each replay) is a generation. A generation ends with one whole set of results of one run, or with a dead
//! letter that is listed until it is dropped or redriven. A dead letter has as many failures behind it as there are attempts.
//! Nobody has another's answer, and nothing is dropped as a duplicate of what is somebody else's. What is answered as a duplicate
//! is counted.

mod account;
mod intake;

use super::{
    history::{End, Entry, Fact},
    model::{Early, Fails, Function, Post},
    system::ATTEMPTS,
};
use crate::streams::Stored;
use account::Account;
pub(super) use intake::uncounted;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{collections::BTreeMap, fmt};
use time::OffsetDateTime;

/// What kind of fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It was accepted, or begun, and nothing came of it.
    Lost,
    /// There is more of it than there may be.
    Doubled,
    /// Part of one run stands with part of another, or by itself.
    Mixed,
    /// It was taken for somebody else's, or shown to somebody else.
    Foreign,
    /// It is there, and nobody is shown it.
    OutOfSight,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind.
    pub kind: Kind,
    /// Of what, and why.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Lost => "lost",
            Kind::Doubled => "doubled",
            Kind::Mixed => "mixed",
            Kind::Foreign => "foreign",
            Kind::OutOfSight => "out of sight",
        };
        write!(f, "{kind}: {}", self.what)
    }
}

/// What is wrong.
pub fn check(history: &[Entry], end: &End) -> Vec<Finding> {
    let mut findings = intake::events(history, end);
    findings.extend(intake::calls(history, end));
    findings.extend(intake::uncounted(history, &end.dropped));
    let faults = account::Faults::of(history);
    for account in works(history, end).into_values().chain(nexts(history, end).into_values()) {
        // What is still on its way is not lost.
        let is_known = |finding: &Finding| end.restless.is_none() || finding.kind != Kind::Lost;
        findings.extend(account.findings(&faults, end).into_iter().filter(is_known));
    }
    for stored in end.dead.iter().filter(|stored| stored.subject.starts_with("dead.")) {
        if !end.letters.iter().any(|letter| letter.id == stored.sequence) {
            let what = format!("the dead letter {} of {} is in no list", stored.sequence, stored.subject);
            findings.push(Finding { kind: Kind::OutOfSight, what });
        }
    }
    if let Some(restless) = &end.restless {
        findings.push(Finding { kind: Kind::Lost, what: format!("it does not come to rest: {restless}") });
    }
    findings
}

/// One result of [`Function::Work`], and what [`Function::Next`] passes on.
#[derive(Debug, Clone, serde::Deserialize)]
struct Part {
    n: usize,
    run: String,
    index: usize,
    total: usize,
}

/// The messages on these subjects whose body can be read so.
fn read<'s, T: DeserializeOwned>(stored: &'s [Stored], on: &[&str]) -> Vec<(&'s Stored, T)> {
    let is_on = |stored: &&Stored| on.iter().any(|subject| stored.subject.starts_with(subject));
    let parsed = |stored: &'s Stored| Some((stored, serde_json::from_slice(&stored.data).ok()?));
    stored.iter().filter(is_on).filter_map(parsed).collect()
}

/// The number that an event says.
fn number(data: &Value) -> Option<usize> {
    usize::try_from(data["n"].as_u64()?).ok()
}

/// The accounts of the function that does what events say, by their numbers.
fn works(history: &[Entry], end: &End) -> BTreeMap<usize, Account> {
    let mut accounts = BTreeMap::new();
    for (n, post) in posts(history) {
        let mut account =
            Account::new(post.origin.function().name(), format!("event {n} (id-{} of {:?})", post.id, post.origin));
        account.wanted = usize::from(post.plan.results);
        account.failures = usize::from(post.plan.fails == Fails::Once);
        let failed = end.runs.iter().any(|run| run.n == n && run.version == 1);
        if post.plan.fails == Fails::UntilDeployed && failed {
            account.failures = ATTEMPTS;
        }
        account.given = intake::copies(end, n);
        account.runs = end.runs.iter().filter(|run| run.n == n).cloned().collect();
        account.always_early = post.plan.early == Early::Always;
        accounts.insert(n, account);
    }
    for (stored, part) in read::<Part>(&end.events, &["events.work.done"]) {
        accounts.entry(part.n).or_insert_with(|| Account::new("work", format!("event {}", part.n))).put(stored, &part);
    }
    for (_, early) in read::<Value>(&end.events, &["events.work.early"]) {
        if let Some(account) = number(&early).and_then(|n| accounts.get_mut(&n)) {
            *account.emitted.entry(early["version"].as_u64()).or_default() += 1;
        }
    }
    for (stored, data) in read::<Value>(&end.dead, &["dead.work", "redrive.work", "dead.own", "redrive.own"]) {
        if let Some(account) = number(&data).and_then(|n| accounts.get_mut(&n)) {
            account.put_dead(stored);
        }
    }
    let mut remade = OffsetDateTime::UNIX_EPOCH;
    for entry in history {
        match &entry.fact {
            Fact::Letter(letter) | Fact::Redriven(letter) => {
                let Some(account) = letter.n.and_then(|n| accounts.get_mut(&n)) else { continue };
                account.letters.insert(letter.id, letter.time);
                if matches!(entry.fact, Fact::Redriven(_)) {
                    account.redriven(entry.at);
                }
            }
            Fact::Remade => remade = entry.at,
            Fact::Replayed { function, until } => {
                // What was in a stream that is gone does not come again.
                let since = if *function == Function::Own { remade } else { OffsetDateTime::UNIX_EPOCH };
                let of = accounts.values_mut().filter(|account| account.function == function.name());
                of.for_each(|account| account.replayed(since, entry.at, *until));
            }
            _ => {}
        }
    }
    accounts
}

/// The accounts of the function that passes results on, by number, run and index.
fn nexts(history: &[Entry], end: &End) -> BTreeMap<(usize, String, usize), Account> {
    let mut accounts = BTreeMap::new();
    let of = |part: &Part| (part.n, part.run.clone(), part.index);
    let named =
        |part: &Part| Account::new("next", format!("result {} of run {} on event {}", part.index, part.run, part.n));
    for (stored, part) in read::<Part>(&end.events, &["events.work.done"]) {
        let account = accounts.entry(of(&part)).or_insert_with(|| named(&part));
        account.given.push(stored.time);
        account.wanted = 1;
    }
    for (stored, part) in read::<Part>(&end.events, &["events.next.done"]) {
        let account = accounts.entry(of(&part)).or_insert_with(|| named(&part));
        // Each is the whole result of one run, which has no name.
        account.put(stored, &Part { run: stored.sequence.to_string(), index: 0, total: 1, ..part });
    }
    for (stored, part) in read::<Part>(&end.dead, &["dead.next", "redrive.next"]) {
        accounts.entry(of(&part)).or_insert_with(|| named(&part)).put_dead(stored);
    }
    for entry in history {
        if let Fact::Replayed { function: Function::Next, until } = entry.fact {
            accounts.values_mut().for_each(|account| account.replayed(OffsetDateTime::UNIX_EPOCH, entry.at, until));
        }
    }
    accounts
}

/// What was sent, by number.
fn posts(history: &[Entry]) -> BTreeMap<usize, Post> {
    let sent = history.iter().filter_map(|entry| match &entry.fact {
        Fact::Sent { n, post, .. } => Some((*n, *post)),
        _ => None,
    });
    sent.collect()
}

//! What one more opinion leads to, as a pure function of what was said and of the versions so far.

use super::{
    LearnOptions,
    fit::{self, Comparison},
    memory::Feedback,
    weights::{Ndcg, Version, Versions, Weights},
};
use crate::views::Change;
use serde::Serialize;

/// Opinions after a version went live that it is judged by, at the least.
const PROOF: usize = 6;
/// Opinions that weights are tried on, at the least.
const LEAST_HELD_OUT: usize = 2;

/// What becomes of the weights.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// They stay, and nobody need hear of it.
    Nothing,
    /// Others are live.
    Updated(Told),
    /// Others were fitted and are no better.
    Rejected(Told),
    /// Those before are live again.
    RolledBack(Told),
    /// What was asked for is not there.
    Impossible(String),
}

/// What is told of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Told {
    /// The version that is live from now on; none where none became so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<u64>,
    /// The version that was live until now.
    pub(super) from: u64,
    /// The version whose weights are live again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) to: Option<u64>,
    pub(super) weights: Weights,
    pub(super) previous: Weights,
    /// Opinions that weights were made from, and that they were tried on.
    pub(super) training: usize,
    pub(super) held_out: usize,
    /// nDCG of those that they were tried on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ndcg: Option<Ndcg>,
    pub(super) reason: String,
}

/// Goes back where the live version is worse than the one before it; else fits weights, if it is time, and makes them
/// live where they are better on what was held out.
pub(super) fn next(versions: &mut Versions, feedback: &Feedback, options: LearnOptions) -> Change<Step> {
    if let Some(step) = worse(versions, feedback, options) {
        return Change::Write(step);
    }
    let due = feedback.newest >= versions.fitted + u64::try_from(options.every).unwrap_or(u64::MAX);
    if feedback.said.len() < options.enough || !(due || versions.fitted == 0) {
        return Change::Keep(Step::Nothing);
    }
    versions.fitted = feedback.newest;
    let (training, held_out) = feedback.split();
    let live = versions.live;
    let weights = fit::fit(&training, &live.weights);
    if weights == live.weights {
        return Change::Write(Step::Nothing);
    }
    let compared = Comparison::of(&held_out, &live.weights, &weights);
    let mut told = Told {
        version: None,
        from: live.version,
        to: None,
        weights,
        previous: live.weights,
        training: training.len(),
        held_out: held_out.len(),
        ndcg: Some(compared.ndcg),
        reason: "better on the feedback held out".to_owned(),
    };
    if held_out.len() < LEAST_HELD_OUT || !compared.is_better(options.margin) {
        told.reason = "not better on the feedback held out, or by chance only".to_owned();
        return Change::Write(Step::Rejected(told));
    }
    let adopted = versions.adopt(Version {
        weights,
        parent: Some(live.version),
        training: training.len(),
        held_out: held_out.len(),
        ndcg: told.ndcg,
        since: feedback.newest,
        ..Version::default()
    });
    told.version = Some(adopted.version);
    Change::Write(Step::Updated(told))
}

/// Holds the live version against the one before it, on what was said since it is live.
fn worse(versions: &mut Versions, feedback: &Feedback, options: LearnOptions) -> Option<Step> {
    let live = versions.live;
    let parent = versions.find(live.parent?)?;
    let since = feedback.since(live.since);
    if since.len() < PROOF {
        return None;
    }
    let compared = Comparison::of(&since, &live.weights, &parent.weights);
    if !compared.is_better(options.margin) {
        return None;
    }
    let reason = "worse on the feedback since it is live".to_owned();
    let mut told = restore(versions, parent, feedback.newest, reason);
    (told.held_out, told.ndcg) = (since.len(), Some(compared.ndcg));
    Some(Step::RolledBack(told))
}

/// Goes back to a version, or to the one before the live one.
pub(super) fn back(versions: &mut Versions, to: Option<u64>, newest: u64) -> Change<Step> {
    let before = versions.history.last().map(|version| version.version);
    let Some(to) = to.or(versions.live.parent).or(before) else {
        return Change::Keep(Step::Impossible("there is only one version".to_owned()));
    };
    let Some(version) = versions.find(to) else {
        return Change::Keep(Step::Impossible(format!("version {to} is not known, or not any more")));
    };
    if version.weights == versions.live.weights {
        return Change::Keep(Step::Nothing);
    }
    let told = restore(versions, version, newest, "requested".to_owned());
    Change::Write(Step::RolledBack(told))
}

/// Makes a version's weights live again: as the next version, with nothing before it to go back to.
fn restore(versions: &mut Versions, to: Version, newest: u64, reason: String) -> Told {
    let from = versions.live;
    let live = versions.adopt(Version { weights: to.weights, since: newest, ..Version::default() });
    // What led to the weights is still there: more must be said before they are fitted again.
    versions.fitted = newest;
    Told {
        version: Some(live.version),
        from: from.version,
        to: Some(to.version),
        weights: to.weights,
        previous: from.weights,
        training: 0,
        held_out: 0,
        ndcg: None,
        reason,
    }
}

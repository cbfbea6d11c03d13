//! The change of the weights after new feedback, as a pure function of the feedback and the versions.

use super::{
    LearnOptions,
    fit::{self, Comparison},
    memory::CollectionFeedback,
    weights::{VersionedWeights, WeightsVersion},
};
use crate::views::ViewChange;
use nerve_events::feedback::WeightsChange;

/// Minimum number of ratings since a version went live before it is judged.
const MIN_RATINGS_SINCE_LIVE: usize = 6;
/// Minimum number of held-out ratings.
const MIN_HELD_OUT_RATINGS: usize = 2;

/// Change of the weights.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum LearnOutcome {
    /// No change, and no event.
    Unchanged,
    /// New weights are live. As in the others, the caller names the collection.
    Updated(WeightsChange),
    /// Fitted weights are not better.
    Rejected(WeightsChange),
    /// Earlier weights are live again.
    RolledBack(WeightsChange),
    /// The requested version does not exist.
    Impossible(String),
}

/// Rolls back if the live version is worse than its parent. Otherwise fits weights if enough feedback is available,
/// and makes them live if they are better on held-out feedback.
pub(super) fn advance(
    versions: &mut VersionedWeights,
    feedback: &CollectionFeedback,
    options: LearnOptions,
) -> ViewChange<LearnOutcome> {
    if let Some(step) = roll_back_if_worse(versions, feedback, options) {
        return ViewChange::Write(step);
    }
    let due = feedback.newest >= versions.fitted + u64::try_from(options.every).unwrap_or(u64::MAX);
    if feedback.judged.len() < options.enough || !(due || versions.fitted == 0) {
        return ViewChange::Keep(LearnOutcome::Unchanged);
    }
    versions.fitted = feedback.newest;
    let (training, held_out) = feedback.split();
    let live = versions.live;
    let weights = fit::fit(&training, &live.weights);
    if weights == live.weights {
        return ViewChange::Write(LearnOutcome::Unchanged);
    }
    let comparison = Comparison::of(&held_out, &live.weights, &weights);
    let mut change = WeightsChange {
        version: None,
        from: live.version,
        to: None,
        weights,
        previous: live.weights,
        training: training.len(),
        held_out: held_out.len(),
        ndcg: Some(comparison.ndcg),
        reason: "better on the feedback held out".to_owned(),
        ..WeightsChange::default()
    };
    if held_out.len() < MIN_HELD_OUT_RATINGS || !comparison.is_better(options.margin) {
        change.reason = "not better on the feedback held out, or by chance only".to_owned();
        return ViewChange::Write(LearnOutcome::Rejected(change));
    }
    let adopted = versions.adopt(WeightsVersion {
        weights,
        parent: Some(live.version),
        training: training.len(),
        held_out: held_out.len(),
        ndcg: change.ndcg,
        since: feedback.newest,
        ..WeightsVersion::default()
    });
    change.version = Some(adopted.version);
    ViewChange::Write(LearnOutcome::Updated(change))
}

/// Compares the live version with its parent on the feedback since it went live, and rolls back if it is worse.
fn roll_back_if_worse(
    versions: &mut VersionedWeights,
    feedback: &CollectionFeedback,
    options: LearnOptions,
) -> Option<LearnOutcome> {
    let live = versions.live;
    let parent = versions.find(live.parent?)?;
    let since = feedback.since(live.since);
    if since.len() < MIN_RATINGS_SINCE_LIVE {
        return None;
    }
    let comparison = Comparison::of(&since, &live.weights, &parent.weights);
    if !comparison.is_better(options.margin) {
        return None;
    }
    let reason = "worse on the feedback since it is live".to_owned();
    let mut change = restore(versions, parent, feedback.newest, reason);
    (change.held_out, change.ndcg) = (since.len(), Some(comparison.ndcg));
    Some(LearnOutcome::RolledBack(change))
}

/// Rolls back to a version, or to the one before the live one.
pub(super) fn roll_back(versions: &mut VersionedWeights, to: Option<u64>, newest: u64) -> ViewChange<LearnOutcome> {
    let before = versions.history.last().map(|version| version.version);
    let Some(to) = to.or(versions.live.parent).or(before) else {
        return ViewChange::Keep(LearnOutcome::Impossible("it has only one version".to_owned()));
    };
    let Some(version) = versions.find(to) else {
        return ViewChange::Keep(LearnOutcome::Impossible(format!("version {to} is unknown or no longer stored")));
    };
    if version.weights == versions.live.weights {
        return ViewChange::Keep(LearnOutcome::Unchanged);
    }
    let change = restore(versions, version, newest, "requested".to_owned());
    ViewChange::Write(LearnOutcome::RolledBack(change))
}

/// Makes the weights of a version live again, as a new version without a parent.
fn restore(versions: &mut VersionedWeights, to: WeightsVersion, newest: u64, reason: String) -> WeightsChange {
    let from = versions.live;
    let live = versions.adopt(WeightsVersion { weights: to.weights, since: newest, ..WeightsVersion::default() });
    // The feedback that led to the weights is still stored, so further feedback is required before the next fit.
    versions.fitted = newest;
    WeightsChange {
        version: Some(live.version),
        from: from.version,
        to: Some(to.version),
        weights: to.weights,
        previous: from.weights,
        training: 0,
        held_out: 0,
        ndcg: None,
        reason,
        ..WeightsChange::default()
    }
}

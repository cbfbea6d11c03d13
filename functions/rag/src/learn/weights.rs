//! Versions of a collection's weights, one of which is live, in one document in the bucket `views`.

use crate::views;
use nerve_core::{FunctionError, function::Views};
use nerve_events::feedback::{Ndcg, RankingWeights};
use nerve_index::collections::name_digest;
use serde::{Deserialize, Serialize};

/// Maximum number of stored versions.
const MAX_VERSIONS: usize = 20;

/// Score of a document with this relevance and original rank (from 0) among `count` documents.
pub(crate) fn rerank_score(weights: &RankingWeights, relevance: f32, rank: usize, count: usize) -> f32 {
    // Ranks are far below the integer precision of an f32.
    #[expect(clippy::cast_precision_loss)]
    let rank_score = 1.0 - rank as f32 / count.max(1) as f32;
    weights.relevance * relevance + weights.retrieved * rank_score
}

/// One version of the weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct WeightsVersion {
    /// Version from 1; 0 is the default.
    pub(crate) version: u64,
    #[serde(flatten)]
    pub(crate) weights: RankingWeights,
    /// The version that it replaced, if it can be rolled back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<u64>,
    /// Number of ratings used for fitting.
    #[serde(default)]
    pub(crate) training: usize,
    #[serde(default)]
    pub(crate) held_out: usize,
    /// nDCG on the held-out feedback, of the parent and of this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ndcg: Option<Ndcg>,
    /// Sequence number of the newest feedback when it went live.
    #[serde(default)]
    pub(crate) since: u64,
}

/// All stored versions of one collection's weights.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct VersionedWeights {
    /// The version that retrieval and reranking use.
    pub(crate) live: WeightsVersion,
    /// Earlier versions, newest last.
    #[serde(default)]
    pub(crate) history: Vec<WeightsVersion>,
    /// Sequence number of the newest feedback at the last fit.
    #[serde(default)]
    pub(super) fitted: u64,
}

impl VersionedWeights {
    /// The live or an earlier version.
    pub(super) fn find(&self, version: u64) -> Option<WeightsVersion> {
        let builtin = WeightsVersion::default();
        let known = self.history.iter().rev().chain([&self.live, &builtin]);
        known.into_iter().find(|one| one.version == version).copied()
    }

    /// Makes weights live, as the next version.
    pub(super) fn adopt(&mut self, next: WeightsVersion) -> WeightsVersion {
        let live = WeightsVersion { version: self.live.version + 1, ..next };
        self.history.push(std::mem::replace(&mut self.live, live));
        self.history.drain(..self.history.len().saturating_sub(MAX_VERSIONS));
        live
    }
}

/// Key of a collection's weights.
pub(super) fn key(collection: &str) -> String {
    format!("weights.{}", name_digest(collection))
}

/// The live version of a collection; `None` if no weights were learned or `views` is missing.
///
/// # Errors
/// If `views` cannot be read.
pub(crate) async fn live_version(
    views: Option<&dyn Views>,
    collection: &str,
) -> Result<Option<WeightsVersion>, FunctionError> {
    let Some(views) = views else { return Ok(None) };
    let versions: Option<VersionedWeights> = views::read(views, &key(collection)).await?;
    Ok(versions.map(|versions| versions.live).filter(|live| live.version > 0))
}

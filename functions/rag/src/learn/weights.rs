//! The weights of a collection: versions of them, of which one is live, in a document in the bucket `views`.

use crate::views;
use nerve_core::{FunctionError, function::Views};
use nerve_index::collections::digest;
use serde::{Deserialize, Serialize};

/// Versions that are kept.
const HISTORY: usize = 20;

/// How much each ranking weighs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Weights {
    /// The ranking by words, in the fusion.
    pub(crate) lexical: f32,
    /// The ranking by meaning, in the fusion.
    pub(crate) dense: f32,
    /// The model's word, in the reranking.
    pub(crate) relevance: f32,
    /// The place among the retrieved, in the reranking.
    pub(crate) retrieved: f32,
}

impl Default for Weights {
    fn default() -> Self {
        Self { lexical: 1.0, dense: 1.0, relevance: 1.0, retrieved: 0.5 }
    }
}

impl Weights {
    /// The model's word of a document and its place among `count` retrieved, `rank` from 0; each from 0 to 1.
    pub(crate) fn rerank(&self, relevance: f32, rank: usize, count: usize) -> f32 {
        // Ranks are far below where an f32 loses whole numbers.
        #[expect(clippy::cast_precision_loss)]
        let place = 1.0 - rank as f32 / count.max(1) as f32;
        self.relevance * relevance + self.retrieved * place
    }
}

/// One version of the weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Version {
    /// From 1; 0 are those that Nerve comes with.
    pub(crate) version: u64,
    #[serde(flatten)]
    pub(crate) weights: Weights,
    /// The version that it took the place of, as long as it can be rolled back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<u64>,
    /// Feedback that it was made from, and that it was tried on before it went live.
    #[serde(default)]
    pub(crate) training: usize,
    #[serde(default)]
    pub(crate) held_out: usize,
    /// nDCG of the feedback held out, by the version before and by this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ndcg: Option<Ndcg>,
    /// The newest feedback when it went live.
    #[serde(default)]
    pub(crate) since: u64,
}

/// How good the orders are before a change, and after it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ndcg {
    pub(crate) before: f32,
    pub(crate) after: f32,
}

/// Every version that is known of one collection.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Versions {
    /// What retrieval and reranking go by.
    pub(crate) live: Version,
    /// Those before it, the newest last.
    #[serde(default)]
    pub(crate) history: Vec<Version>,
    /// The newest feedback when weights were fitted last.
    #[serde(default)]
    pub(super) fitted: u64,
}

impl Versions {
    /// A version that is live, or was.
    pub(super) fn find(&self, version: u64) -> Option<Version> {
        let builtin = Version::default();
        let known = self.history.iter().rev().chain([&self.live, &builtin]);
        known.into_iter().find(|one| one.version == version).copied()
    }

    /// Makes these weights live, as the next version.
    pub(super) fn adopt(&mut self, next: Version) -> Version {
        let live = Version { version: self.live.version + 1, ..next };
        self.history.push(std::mem::replace(&mut self.live, live));
        self.history.drain(..self.history.len().saturating_sub(HISTORY));
        live
    }
}

/// Where the versions of a collection are kept.
pub(super) fn key(collection: &str) -> String {
    format!("weights.{}", digest(collection))
}

/// The version that is live for a collection; none where nothing was learned, or nothing is kept.
pub(crate) async fn live(views: Option<&dyn Views>, collection: &str) -> Result<Option<Version>, FunctionError> {
    let Some(views) = views else { return Ok(None) };
    let versions: Option<Versions> = views::read(views, &key(collection)).await?;
    Ok(versions.map(|versions| versions.live).filter(|live| live.version > 0))
}

//! Feedback on answers, and the weights learned from it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A user's feedback on an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("anyOf" = [{"required": ["rating"]}, {"required": ["correction"]}, {"required": ["citation"]}]))]
pub struct FeedbackSubmitted {
    /// Id of the answer.
    #[schemars(length(min = 1))]
    pub answer: String,
    /// Rating from -1 (wrong) to 1 (right).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1, max = 1))]
    pub rating: Option<f64>,
    /// The correct answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correction: Option<String>,
    /// Id of the correct chunk or document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub citation: Option<String>,
    /// Other fields, passed through.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Weights with which an answer's documents were ranked; those of steps that did not run yet are absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UsedWeights {
    /// Weight of the lexical ranking in the fusion.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub lexical: Option<f64>,
    /// Weight of the dense ranking in the fusion.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub dense: Option<f64>,
    /// Weight of the model's relevance in the reranking.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub relevance: Option<f64>,
    /// Weight of the original rank in the reranking.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub retrieved: Option<f64>,
    /// Version of learned weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub version: Option<u64>,
    /// Other fields, passed through.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Weights of the rankings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RankingWeights {
    /// Weight of the lexical ranking in the fusion.
    #[schemars(range(min = 0))]
    pub lexical: f32,
    /// Weight of the dense ranking in the fusion.
    #[schemars(range(min = 0))]
    pub dense: f32,
    /// Weight of the model's relevance in the reranking.
    #[schemars(range(min = 0))]
    pub relevance: f32,
    /// Weight of the original rank in the reranking.
    #[schemars(range(min = 0))]
    pub retrieved: f32,
}

impl Default for RankingWeights {
    fn default() -> Self {
        Self { lexical: 1.0, dense: 1.0, relevance: 1.0, retrieved: 0.5 }
    }
}

/// nDCG before and after a change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ndcg {
    /// nDCG of the weights before it.
    #[schemars(range(min = 0))]
    pub before: f32,
    /// nDCG of the weights after it.
    #[schemars(range(min = 0))]
    pub after: f32,
}

/// A change of the weights of a collection.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WeightsChange {
    /// Collection whose rankings they weigh.
    #[schemars(length(min = 1))]
    pub collection: String,
    /// The new live version; absent if it did not change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub version: Option<u64>,
    /// The live version before the change.
    pub from: u64,
    /// The version whose weights were restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
    /// The new weights.
    pub weights: RankingWeights,
    /// The weights before the change.
    pub previous: RankingWeights,
    /// Number of ratings used for fitting.
    #[serde(default)]
    pub training: usize,
    /// Number of ratings held out of fitting.
    #[serde(default)]
    pub held_out: usize,
    /// nDCG on the held-out ratings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ndcg: Option<Ndcg>,
    /// Reason of the change.
    #[serde(default)]
    pub reason: String,
}

/// Weights learned from feedback are live.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["collection", "version", "from", "weights", "previous", "ndcg"]))]
pub struct WeightsUpdated {
    /// The change.
    #[serde(flatten)]
    pub change: WeightsChange,
}

/// Weights learned from feedback are no better on the held-out feedback.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["collection", "from", "weights", "previous", "reason"]))]
pub struct WeightsRejected {
    /// The change that was not made.
    #[serde(flatten)]
    pub change: WeightsChange,
}

/// The previous weights are live again: the new ones performed worse, or a rollback was requested.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("required" = ["collection", "version", "from", "to", "weights", "previous", "reason"]))]
pub struct WeightsRolledBack {
    /// The change.
    #[serde(flatten)]
    pub change: WeightsChange,
}

/// Request to restore earlier weights: the previous ones, or those of a `version`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WeightsRollbackRequested {
    /// Collection; `default` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub collection: Option<String>,
    /// Version to restore; 0 for the default weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

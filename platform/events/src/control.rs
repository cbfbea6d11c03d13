//! Control of answers, retries and collections.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// All data of a collection was erased, with counts by kind. Functions that store such data must delete it too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CollectionErased {
    /// The collection.
    #[schemars(length(min = 1))]
    pub collection: String,
    /// Number of erased items by kind; `null` if it is unknown.
    pub erased: BTreeMap<String, Option<u64>>,
}

/// An answer request was cancelled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ControlCancelled {
    /// Id of the answer.
    #[schemars(length(min = 1))]
    pub answer: String,
}

/// An answer exceeded its time limit, or a function that works on it did so at each attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ControlTimeout {
    /// Id of the answer.
    #[schemars(length(min = 1))]
    pub answer: String,
    /// Function that timed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub function: Option<String>,
}

/// Request to retry a dead letter, or the last step of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("anyOf" = [{"required": ["dead_letter"]}, {"required": ["answer"]}]))]
pub struct ControlRetryRequested {
    /// Id of the dead letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub dead_letter: Option<u64>,
    /// Id of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub answer: Option<String>,
}

/// A requested retry has started: of dead letters, or of an event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ControlRetried {
    /// Id of the request.
    #[schemars(length(min = 1))]
    pub request: String,
    /// Id of the answer that is generated again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub answer: Option<String>,
    /// Ids of redriven dead letters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(range(min = 1)))]
    pub dead_letters: Vec<u64>,
    /// Id of the event that was published again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub event: Option<String>,
}

/// A retry was refused, with the reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ControlRetryRefused {
    /// Id of the request.
    #[schemars(length(min = 1))]
    pub request: String,
    /// Id of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub answer: Option<String>,
    /// Reason of the refusal.
    pub reason: String,
}

//! States of sinks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A sink is disabled: its endpoint has failed for long or is gone, or an operator disabled it. Its events wait.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SinkDisabled {
    /// The sink.
    #[schemars(length(min = 1))]
    pub sink: String,
    /// Host of its endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Reason, as text.
    #[schemars(length(min = 1))]
    pub reason: String,
    /// Time of the first failure without a success since (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub failing_since: Option<String>,
}

/// A disabled sink is enabled again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SinkEnabled {
    /// The sink.
    #[schemars(length(min = 1))]
    pub sink: String,
}

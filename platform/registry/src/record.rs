//! Stored records of functions, sources, sinks, schedules and models.

use nerve_core::{FunctionSpec, Name, Pattern, ScheduleSpec, SinkSpec, SourceSpec, subject::EVENTS_PREFIX};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use time::OffsetDateTime;

/// A deployed function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionRecord {
    /// The manifest's table.
    pub spec: FunctionSpec,
    /// Its files in the Object Store.
    pub artifacts: Vec<ArtifactRef>,
    /// The stream of its consumer.
    pub stream: String,
    /// Time of the deployment.
    #[serde(with = "time::serde::rfc3339")]
    pub deployed_at: OffsetDateTime,
}

impl FunctionRecord {
    /// Whether replacing this record by `other` changes nothing.
    pub fn same_as(&self, other: &Self) -> bool {
        self.spec == other.spec && self.artifacts == other.artifacts && self.stream == other.stream
    }

    /// Whether it consumes events of a type that one of these patterns covers.
    pub fn consumes_any_of(&self, emits: &[Pattern]) -> bool {
        let subjects = emits.iter().filter_map(|types| Pattern::parse(format!("{EVENTS_PREFIX}{types}")).ok());
        let subjects: Vec<Pattern> = subjects.collect();
        self.spec.on.iter().any(|on| subjects.iter().any(|emitted| emitted.overlaps(on)))
    }
}

/// A deployed source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The manifest's table, shared by all webhooks in progress.
    pub spec: Arc<SourceSpec>,
    /// Time of the deployment.
    #[serde(with = "time::serde::rfc3339")]
    pub deployed_at: OffsetDateTime,
}

/// A deployed sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkRecord {
    /// The manifest's table.
    pub spec: SinkSpec,
    /// The stream of its consumer.
    pub stream: String,
    /// Time of the deployment.
    #[serde(with = "time::serde::rfc3339")]
    pub deployed_at: OffsetDateTime,
}

/// The state of a failing or disabled sink. A healthy sink has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkState {
    /// Time of the first failure since the last success.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<OffsetDateTime>,
    /// Present if the sink is disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<DisabledInfo>,
}

/// Time and reason of the disabling of a sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisabledInfo {
    /// Time of the disabling.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// The reason, for display.
    pub reason: String,
}

/// A deployed schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleRecord {
    /// The manifest's table.
    pub spec: ScheduleSpec,
    /// Time of the deployment.
    #[serde(with = "time::serde::rfc3339")]
    pub deployed_at: OffsetDateTime,
}

/// A model of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Its files in the Object Store, named relative to the model's folder.
    pub files: Vec<ArtifactRef>,
    /// The description of the model.
    pub description: ModelInfo,
    /// Time of adding.
    #[serde(with = "time::serde::rfc3339")]
    pub added_at: OffsetDateTime,
}

/// The description of a model, read from its folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The task: `embed`, `sparse`, `rerank`, `classify` or `tensor`.
    pub task: String,
    /// Dimensions of its vectors, or count of its labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<usize>,
    /// Maximum tokens per text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Input names of its graph, if a manifest maps them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
    /// Output names of its graph, if a manifest maps them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
}

/// A deployed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRef {
    /// Its path in the manifest.
    pub name: String,
    /// Lower-case hex SHA-256 of the content, which is its name in the Object Store.
    pub sha256: String,
    /// Size in bytes.
    pub size: u64,
}

/// A record with its name and revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry<R, N = Name> {
    /// The name of the resource.
    pub name: N,
    /// The KV revision. A later deployment has a higher one.
    pub revision: u64,
    /// The deployed record.
    #[serde(flatten)]
    pub record: R,
}

/// The change of a record by a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "lowercase")]
pub enum RecordChange {
    /// The resource is new.
    Created {
        /// The KV revision.
        revision: u64,
    },
    /// The resource replaced another revision.
    Changed {
        /// The KV revision.
        revision: u64,
    },
    /// The resource was already deployed.
    Unchanged {
        /// The KV revision.
        revision: u64,
    },
}

//! What is stored for a deployed function, source, sink, schedule or model.

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
    /// The stream it is bound to.
    pub stream: String,
    /// When it was deployed.
    #[serde(with = "time::serde::rfc3339")]
    pub deployed_at: OffsetDateTime,
}

impl FunctionRecord {
    /// Whether deploying `other` over this would change nothing.
    pub fn same_as(&self, other: &Self) -> bool {
        self.spec == other.spec && self.artifacts == other.artifacts && self.stream == other.stream
    }

    /// Whether an event that one of these patterns (over types) covers may come to it.
    pub fn takes_any_of(&self, emits: &[Pattern]) -> bool {
        let subjects = emits.iter().filter_map(|types| Pattern::parse(format!("{EVENTS_PREFIX}{types}")).ok());
        let subjects: Vec<Pattern> = subjects.collect();
        self.spec.on.iter().any(|on| subjects.iter().any(|emitted| emitted.overlaps(on)))
    }
}

/// A deployed source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The manifest's table; shared, since every webhook is read by it.
    pub spec: Arc<SourceSpec>,
    /// When it was deployed.
    #[serde(with = "time::serde::rfc3339")]
    pub deployed_at: OffsetDateTime,
}

/// A deployed sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkRecord {
    /// The manifest's table.
    pub spec: SinkSpec,
    /// The stream it is bound to.
    pub stream: String,
    /// When it was deployed.
    #[serde(with = "time::serde::rfc3339")]
    pub deployed_at: OffsetDateTime,
}

/// How a sink's endpoint is doing; a sink without one is well.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkState {
    /// Since when it has failed without a success.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<OffsetDateTime>,
    /// Why nothing is posted to it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<Disabled>,
}

/// Why and since when a sink is disabled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disabled {
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Why, for people.
    pub reason: String,
}

/// A deployed schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleRecord {
    /// The manifest's table.
    pub spec: ScheduleSpec,
    /// When it was deployed.
    #[serde(with = "time::serde::rfc3339")]
    pub deployed_at: OffsetDateTime,
}

/// A model that functions and the gateway can name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Its files in the Object Store, named relative to the model's folder.
    pub files: Vec<ArtifactRef>,
    /// What it is.
    pub description: ModelInfo,
    /// When it was added.
    #[serde(with = "time::serde::rfc3339")]
    pub added_at: OffsetDateTime,
}

/// What a model is, as whoever read its folder says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// What it is for: `embed`, `sparse`, `rerank`, `classify` or `tensor`.
    pub task: String,
    /// Length of its vectors, or count of its labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<usize>,
    /// The most tokens it reads of one text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// What its graph takes, by name, where a manifest maps it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
    /// What its graph gives, by name, where a manifest maps it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
}

/// A deployed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRef {
    /// The path the manifest knows it by.
    pub name: String,
    /// Lower-case hex SHA-256 of the content, which is its name in the Object Store.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
}

/// A record and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry<R, N = Name> {
    /// The function's, source's or model's name.
    pub name: N,
    /// The KV revision: a later deploy has a higher one.
    pub revision: u64,
    /// What is deployed.
    #[serde(flatten)]
    pub record: R,
}

/// What a deploy did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "lowercase")]
pub enum Deployed {
    /// It is new.
    Created {
        /// The KV revision.
        revision: u64,
    },
    /// It replaced another revision.
    Changed {
        /// The KV revision.
        revision: u64,
    },
    /// The same was deployed already.
    Unchanged {
        /// The KV revision.
        revision: u64,
    },
}

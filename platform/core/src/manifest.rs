//! `nerve.toml`: what is deployed.
//!
//! [`Manifest::parse`] reads the file and reports every mistake with its line, its key and the nearest right
//! key. The tables it yields ([`FunctionSpec`], [`SourceSpec`], [`SinkSpec`], [`ScheduleSpec`]) are what the registry stores, as JSON.

mod bounds;
mod function_table;
mod problem;
mod read;
mod schedule;
mod scheme;
mod sink;
mod sink_table;
mod source;
mod source_table;
#[cfg(test)]
mod tests;

pub use bounds::{Network, Rate};
pub use problem::{ManifestError, Problem};
pub use read::did_you_mean;
pub use schedule::ScheduleSpec;
pub use scheme::{Algorithm, CustomScheme, Encoding, KeyForm, Locator, TimestampUnit};
pub use sink::{SinkBody, SinkSpec, default_sink_secret};
pub use source::{Dedupe, Ids, Provider, SourceSpec, Verify};

use crate::{EventType, Name, Pattern, RetryPolicy, tool::ToolSpec};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// A whole `nerve.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// `[function.NAME]`
    pub functions: BTreeMap<Name, FunctionSpec>,
    /// `[source.NAME]`
    pub sources: BTreeMap<Name, SourceSpec>,
    /// `[sink.NAME]`
    pub sinks: BTreeMap<Name, SinkSpec>,
    /// `[schedule.NAME]`
    pub schedules: BTreeMap<Name, ScheduleSpec>,
}

/// One function: what to run, what starts it, and its bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionSpec {
    /// What to run.
    pub run: Run,
    /// The subjects whose messages start it.
    pub on: Vec<Pattern>,
    /// The stream those subjects are in; found from them when none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// The event types it may publish, as patterns over types; none by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub emits: Vec<Pattern>,
    /// Invocations in flight a worker.
    pub concurrency: usize,
    /// How many events one invocation takes.
    pub batch: Batch,
    /// The longest one event may take.
    #[serde(with = "crate::manifest::millis")]
    pub timeout: Duration,
    /// The most memory one instance (wasm) or process may hold, in bytes.
    pub memory: u64,
    /// Tries and waits.
    pub retry: RetryPolicy,
    /// The guest's environment, whole.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Names of secrets that are put into the guest's environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// What agents are told of it, where they may call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<ToolSpec>,
}

/// What runs a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "runtime", rename_all = "lowercase")]
pub enum Run {
    /// A WebAssembly component.
    Wasm {
        /// Its file, relative to the manifest.
        source: String,
    },
    /// A long-lived process that speaks the line protocol.
    Process {
        /// The program and its arguments; arguments that name files beside the manifest are deployed with it.
        command: Vec<String>,
        /// A further file or folder to deploy with it, relative to the manifest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
    },
    /// An HTTP service.
    Http {
        /// Where events are posted.
        url: String,
    },
    /// A function that comes with Nerve.
    Builtin {
        /// Which: one of [`BUILTINS`].
        #[serde(rename = "use")]
        function: String,
        /// The model it runs: a name in the registry, or a path relative to the manifest, which then has a `/`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        model: Option<String>,
        /// Its options, which the function itself defines.
        #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
        with: serde_json::Map<String, serde_json::Value>,
    },
}

/// The functions that come with Nerve, as `use` names them.
pub const BUILTINS: &[&str] = &[
    "onnx/embed",
    "onnx/score",
    "rag/chunk",
    "rag/index",
    "rag/retrieve",
    "rag/generate",
    "rag/rerank",
    "rag/evaluate",
    "rag/remember",
    "rag/notify",
    "rag/learn",
    "rag/agent",
];

impl Run {
    /// The runtime's name in a manifest.
    pub fn runtime(&self) -> &'static str {
        match self {
            Self::Wasm { .. } => "wasm",
            Self::Process { .. } => "process",
            Self::Http { .. } => "http",
            Self::Builtin { .. } => "builtin",
        }
    }
}

/// How many events one invocation takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// At most this many, at least 1.
    pub size: usize,
    /// How long to wait for more once there is one.
    #[serde(with = "crate::manifest::millis")]
    pub wait: Duration,
}

impl FunctionSpec {
    /// Whether the manifest lets this function publish events of type `ty`.
    pub fn may_emit(&self, ty: &EventType) -> bool {
        self.emits.iter().any(|pattern| ty.matches(pattern))
    }
}

/// The bounds and defaults of a manifest's values.
pub mod limits {
    use std::time::Duration;

    /// Default and largest `concurrency`.
    pub const CONCURRENCY: (usize, usize) = (16, 1024);
    /// Largest `concurrency` of a source.
    pub const SOURCE_CONCURRENCY: u64 = 65_536;
    /// Largest `batch.size`.
    pub const BATCH_SIZE: usize = 1024;
    /// Largest `batch.wait`.
    pub const BATCH_WAIT: Duration = Duration::from_secs(10);
    /// Default and longest `timeout`.
    pub const TIMEOUT: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(3600));
    /// Default `memory` of a component, in bytes: what a JavaScript or Python guest needs with room to spare.
    pub const WASM_MEMORY: u64 = 256 << 20;
    /// Largest `memory` of a component: what 32 bits can address.
    pub const WASM_MEMORY_MAX: u64 = 4 << 30;
    /// Default `memory` of a process, in bytes.
    pub const PROCESS_MEMORY: u64 = 1 << 30;
    /// Largest `retry.attempts`.
    pub const ATTEMPTS: u32 = 100;
    /// Longest wait in `retry.backoff`.
    pub const BACKOFF: Duration = Duration::from_secs(24 * 3600);
}

/// Durations as whole milliseconds, so that the stored form is plain JSON.
pub(crate) mod millis {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::time::Duration;

    pub(crate) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        u64::try_from(value.as_millis()).unwrap_or(u64::MAX).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Ok(Duration::from_millis(u64::deserialize(deserializer)?))
    }
    /// A list of them.
    pub(crate) mod list {
        use super::*;

        pub(crate) fn serialize<S: Serializer>(values: &[Duration], serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(values.iter().map(|value| u64::try_from(value.as_millis()).unwrap_or(u64::MAX)))
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Duration>, D::Error> {
            Ok(Vec::<u64>::deserialize(deserializer)?.into_iter().map(Duration::from_millis).collect())
        }
    }
}

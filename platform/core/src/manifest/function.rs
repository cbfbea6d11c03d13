//! `[function.NAME]`: a function, as the registry stores it.

use crate::{EventType, Pattern, RetryPolicy, tool::ToolSpec};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// A function: its runtime, its subscriptions and its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionSpec {
    /// The runtime.
    pub run: RuntimeSpec,
    /// Subjects that the function subscribes to.
    pub on: Vec<Pattern>,
    /// The stream of those subjects; looked up if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Patterns of the event types that it may publish.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub emits: Vec<Pattern>,
    /// Concurrent invocations per worker.
    pub concurrency: usize,
    /// Batching of events.
    pub batch: Batch,
    /// Maximum duration of one event.
    #[serde(with = "crate::manifest::millis")]
    pub timeout: Duration,
    /// Maximum memory of one instance (wasm) or process, in bytes.
    pub memory: u64,
    /// Attempts and waits.
    pub retry: RetryPolicy,
    /// The function's whole environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Names of secrets that are added to the function's environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Its description for agents, if they may call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<ToolSpec>,
}

/// The runtime of a function, with what it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "runtime", rename_all = "lowercase")]
pub enum RuntimeSpec {
    /// A WebAssembly component.
    Wasm {
        /// Its file, relative to the manifest.
        source: String,
    },
    /// A long-lived process that implements the line protocol.
    Process {
        /// The program and its arguments. Files below the manifest's directory that they name are deployed.
        command: Vec<String>,
        /// An additional file or directory to deploy, relative to the manifest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
    },
    /// An HTTP service.
    Http {
        /// The URL to which events are posted.
        url: String,
    },
    /// A built-in function.
    Builtin {
        /// Its name, one of [`BUILTINS`].
        #[serde(rename = "use")]
        function: String,
        /// Its model: a name in the registry, or a path relative to the manifest. Only a path contains a `/`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        model: Option<String>,
        /// Its options, which each function defines.
        #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
        with: serde_json::Map<String, serde_json::Value>,
    },
}

/// Names of the built-in functions, as in `use`.
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

impl RuntimeSpec {
    /// Name of the runtime in a manifest.
    pub fn runtime(&self) -> &'static str {
        match self {
            Self::Wasm { .. } => "wasm",
            Self::Process { .. } => "process",
            Self::Http { .. } => "http",
            Self::Builtin { .. } => "builtin",
        }
    }
}

/// Batching of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Maximum events per batch, at least 1.
    pub size: usize,
    /// Maximum wait for further events after the first.
    #[serde(with = "crate::manifest::millis")]
    pub wait: Duration,
}

impl FunctionSpec {
    /// Whether `emits` allows events of type `ty`.
    pub fn may_emit(&self, ty: &EventType) -> bool {
        self.emits.iter().any(|pattern| ty.matches(pattern))
    }
}

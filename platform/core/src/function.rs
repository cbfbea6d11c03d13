//! The contract between a worker and a function host.
//!
//! A [`Host`] turns a [`Deployment`] into a [`Function`]; a worker invokes that function with batches of events. A host
//! does not depend on NATS, a worker does not depend on wasmtime.

use crate::{Event, EventType, FunctionSpec, Name, quota::Quotas, tool::Tool};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

/// An output event of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emission {
    /// The event type; the manifest's `emits` must cover it.
    pub ty: EventType,
    /// The body.
    pub data: Bytes,
    /// Media type of the body; `application/json` if `None`.
    pub content_type: Option<String>,
    /// CloudEvents `subject`: the subject within the source.
    pub subject: Option<String>,
    /// CloudEvents `partitionkey`; inherited from the input if `None`.
    pub partition_key: Option<String>,
}

/// Failure class of an invocation; decides between retry and dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The event can never succeed: it is dead-lettered without a retry.
    Invalid,
    /// A retry may succeed: after the wait that the function requested, or by the retry policy.
    Retry {
        /// The wait that the function requested.
        after: Option<Duration>,
    },
    /// The function exceeded its timeout: retried by the retry policy.
    Timeout,
    /// The function trapped, exited or ran out of memory: retried by the retry policy.
    Crash,
    /// The host is shutting down: the event is redelivered without a wait, even after its last attempt.
    Interrupted,
}

/// An invocation failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct FunctionError {
    /// The failure class.
    pub fault: Fault,
    /// Human-readable cause, with the tail of the function's stderr if it has one.
    pub message: String,
}

impl FunctionError {
    /// Creates an error.
    pub fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into() }
    }
}

/// Result for one event: the output events, or the failure.
pub type Outcome = Result<Vec<Emission>, FunctionError>;

/// Publishes output events before the function returns.
#[async_trait]
pub trait Emitter: Send + Sync {
    /// Publishes one output event of the event at `index` in the batch; returns once it is stored.
    ///
    /// # Errors
    /// If `emits` does not cover the type, or the broker is unavailable. The output event is not retried.
    async fn emit(&self, index: usize, emission: Emission) -> Result<(), FunctionError>;

    /// Answer parts ([`crate::answer`]) that earlier attempts at the event at `index` emitted, oldest first. Later
    /// parts are appended to them.
    ///
    /// # Errors
    /// If the broker is unavailable.
    async fn emitted(&self, _index: usize) -> Result<Vec<Emission>, FunctionError> {
        Ok(Vec::new())
    }

    /// The deployed tools, which the function calls by emitting `tool.called.NAME`.
    fn tools(&self) -> Vec<Tool> {
        Vec::new()
    }
}

/// A stored document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The content.
    pub data: Bytes,
    /// The version.
    pub revision: u64,
}

/// A key-value store of documents that all workers share, for projections and conversation memory.
#[async_trait]
pub trait Views: Send + Sync {
    /// Reads a document. Keys consist of letters, digits, `-`, `_`, `/`, `=` and `.`.
    ///
    /// # Errors
    /// If the broker is unavailable.
    async fn view(&self, key: &str) -> Result<Option<View>, FunctionError>;

    /// Replaces the version `after` of a document, or creates the document if `after` is `None`. Returns `false` after
    /// a concurrent write: read the document again.
    ///
    /// # Errors
    /// If the broker is unavailable.
    async fn put_view(&self, key: &str, data: Bytes, after: Option<u64>) -> Result<bool, FunctionError>;
}

/// Context of one invocation.
#[derive(Clone)]
pub struct Context {
    /// Publishes events before the function returns.
    pub emitter: Arc<dyn Emitter>,
    /// Shared key-value documents; `None` if the function runs without a broker.
    pub views: Option<Arc<dyn Views>>,
    /// Quotas of collections.
    pub quotas: Arc<Quotas>,
}

/// A loaded function. One value serves all invocations, concurrently.
#[async_trait]
pub trait Function: Send + Sync {
    /// Runs the batch and returns one outcome per event, in the order of the events.
    ///
    /// Implementations enforce the manifest's `timeout` and do not panic if the function fails. Dropping the future
    /// cancels the work.
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome>;

    /// Closes the function. No invocation follows; resources are released when this returns.
    async fn close(&self) {}
}

/// Loads deployments.
#[async_trait]
pub trait Host: Send + Sync {
    /// Prepares a function for invocation: compiles it, or starts its process.
    ///
    /// # Errors
    /// If the deployment is invalid, or this machine fails to load it.
    async fn load(&self, deployment: Deployment) -> Result<Arc<dyn Function>, LoadError>;
}

/// A load failure, divided by whether a new deployment is required.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The deployment is invalid: a retry cannot succeed.
    #[error("{0}")]
    Invalid(String),
    /// This machine failed: a retry may succeed.
    #[error("{message}")]
    Failed {
        /// The failed operation.
        message: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl LoadError {
    /// Creates a failure of this machine.
    pub fn failed(message: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed { message: message.into(), source: source.into() }
    }
}

/// One revision of a function, with everything that a host needs to run it.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// The function's name.
    pub name: Name,
    /// The revision in the registry.
    pub revision: u64,
    /// The function's table of the manifest.
    pub spec: FunctionSpec,
    /// The deployed files on this machine's disk, read-only.
    pub artifacts: Vec<Artifact>,
    /// The secrets that the manifest lists, by name.
    pub secrets: BTreeMap<String, Secret>,
    /// Receiver of the function's log lines.
    pub logs: LogSink,
}

/// A deployed file on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The path relative to the manifest, with `/`.
    pub name: String,
    /// Lower-case hex SHA-256 of the content.
    pub sha256: String,
    /// Its path on disk. Deployments with the same digest share it, so it is never modified.
    pub file: PathBuf,
}

/// A secret value that `Debug` and logs do not show. Clones share it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into().into())
    }

    /// Returns the value.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Log level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// For developers.
    Debug,
    /// For operators; the level of a process's stderr.
    Info,
    /// A possible problem.
    Warn,
    /// An attempt failed.
    Error,
}

/// A log line of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Its level.
    pub level: LogLevel,
    /// The text, without the line ending.
    pub message: String,
}

/// Receives a function's log lines without blocking or failing: lines beyond its capacity are dropped and counted.
#[derive(Clone)]
pub struct LogSink(Arc<dyn Fn(LogLine) + Send + Sync>);

impl LogSink {
    /// Creates a sink that calls `receive` for each line. `receive` must not block.
    pub fn new(receive: impl Fn(LogLine) + Send + Sync + 'static) -> Self {
        Self(Arc::new(receive))
    }

    /// Logs one line.
    pub fn log(&self, level: LogLevel, message: impl Into<String>) {
        (self.0)(LogLine { level, message: message.into() });
    }
}

impl fmt::Debug for LogSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogSink")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_debug_output_is_masked() {
        assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter2"));
    }
}

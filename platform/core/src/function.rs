//! The contract between a worker and whatever runs a function.
//!
//! A [`Host`] turns a [`Deployment`] into a [`Function`]; a worker hands that function batches of events.
//! Neither side sees the other's machinery: a host never sees NATS, a worker never sees wasmtime.

use crate::{Event, EventType, FunctionSpec, Name, quota::Quotas, tool::Tool};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

/// What a function wants published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emission {
    /// The event's type; it must be covered by the manifest's `emits`.
    pub ty: EventType,
    /// The body.
    pub data: Bytes,
    /// The body's media type; `application/json` when none.
    pub content_type: Option<String>,
    /// CloudEvents `subject`: what within the source the event is about.
    pub subject: Option<String>,
    /// CloudEvents `partitionkey`; inherited from the input when none.
    pub partition_key: Option<String>,
}

/// Whose fault a failed invocation is, which is to say: what the worker must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The event can never succeed: dead-letter it at once.
    Invalid,
    /// It may succeed later: retry, after this long if the function said so, else by the schedule.
    Retry {
        /// The wait that the function asked for.
        after: Option<Duration>,
    },
    /// The function did not answer within its timeout: retry by the schedule.
    Timeout,
    /// The function trapped, exited or ran out of memory: retry by the schedule.
    Crash,
    /// The host is shutting down: the event goes back at once, whatever its count of attempts.
    Interrupted,
}

/// Why an invocation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct FunctionError {
    /// Whose fault it is.
    pub fault: Fault,
    /// For people: what happened, with the tail of the function's stderr where there is one.
    pub message: String,
}

impl FunctionError {
    /// An error with this fault and message.
    pub fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into() }
    }
}

/// What came of one event: what to publish, or why not.
pub type Outcome = Result<Vec<Emission>, FunctionError>;

/// Publishes what a function emits before it returns.
#[async_trait]
pub trait Emitter: Send + Sync {
    /// Publishes one emission of the event at `index` in the batch; returns once it is stored.
    ///
    /// An error is final for that emission: a type that `emits` does not cover, or a broker that is away.
    async fn emit(&self, index: usize, emission: Emission) -> Result<(), FunctionError>;

    /// The parts of an answer ([`crate::answer`]) that an earlier attempt at the event at `index` has emitted already,
    /// oldest first. What is emitted from now on comes after them.
    async fn emitted(&self, _index: usize) -> Result<Vec<Emission>, FunctionError> {
        Ok(Vec::new())
    }

    /// The tools that are deployed now: what the function may call by emitting `tool.called.NAME`.
    fn tools(&self) -> Vec<Tool> {
        Vec::new()
    }
}

/// A document that lasts beyond an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The content.
    pub data: Bytes,
    /// Names this version.
    pub revision: u64,
}

/// Documents by key that last beyond an event, and that all workers share: projections, and what is remembered.
#[async_trait]
pub trait Views: Send + Sync {
    /// The document of this key. Keys hold letters, digits, `-`, `_`, `/`, `=` and `.`.
    async fn view(&self, key: &str) -> Result<Option<View>, FunctionError>;

    /// Writes a document over the version `after`, or, with none, where there is none; `false` if somebody else wrote
    /// it meanwhile: then read it again.
    async fn put_view(&self, key: &str, data: Bytes, after: Option<u64>) -> Result<bool, FunctionError>;
}

/// What surrounds one invocation.
#[derive(Clone)]
pub struct Context {
    /// Where emissions before the end go.
    pub emitter: Arc<dyn Emitter>,
    /// What lasts; none where the function runs on its own.
    pub views: Option<Arc<dyn Views>>,
    /// What collections may have.
    pub quotas: Arc<Quotas>,
}

/// A loaded function. One value serves every invocation, many at a time.
#[async_trait]
pub trait Function: Send + Sync {
    /// Runs the batch and returns one outcome an event, in the events' order.
    ///
    /// Implementations bound their own time by the manifest's `timeout`; they never panic on a guest's behalf.
    /// Dropping the future cancels the work.
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome>;

    /// Ends the function: no invocation follows. Resources are released by the time this returns.
    async fn close(&self) {}
}

/// Turns deployments into functions.
#[async_trait]
pub trait Host: Send + Sync {
    /// Prepares a function so that it can be invoked: compiles it, or starts its process.
    async fn load(&self, deployment: Deployment) -> Result<Arc<dyn Function>, LoadError>;
}

/// Why a deployment cannot be loaded, split by whether a new deployment is needed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The deployment itself is wrong: only a new one helps.
    #[error("{0}")]
    Invalid(String),
    /// This machine failed: trying again may help.
    #[error("{message}")]
    Failed {
        /// What was being done.
        message: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl LoadError {
    /// A failure of this machine while doing `message`.
    pub fn failed(message: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed { message: message.into(), source: source.into() }
    }
}

/// Everything a host needs to run one revision of a function.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// The function's name.
    pub name: Name,
    /// The revision in the registry; a new one replaces the old.
    pub revision: u64,
    /// The manifest's table.
    pub spec: FunctionSpec,
    /// The deployed files, on this machine's disk, read-only.
    pub artifacts: Vec<Artifact>,
    /// The secrets the manifest names, by name.
    pub secrets: BTreeMap<String, Secret>,
    /// Where the function's own log lines go.
    pub logs: LogSink,
}

/// A deployed file on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The path the manifest knows it by, relative to the manifest, with `/`.
    pub name: String,
    /// Lower-case hex SHA-256 of the content.
    pub sha256: String,
    /// Where it lies; shared by everything with the same digest, so never written to.
    pub file: PathBuf,
}

/// A secret's value, which no `Debug` or log shows; clones share it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into().into())
    }

    /// The value, for the one place that uses it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// How bad a log line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// For developers.
    Debug,
    /// For operators; a process's stderr has this level.
    Info,
    /// Something to look at.
    Warn,
    /// An attempt failed.
    Error,
}

/// One line a function logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// How bad it is.
    pub level: LogLevel,
    /// The text, without its line end.
    pub message: String,
}

/// Takes a function's log lines; never blocks and never fails: lines past its capacity are dropped and counted.
#[derive(Clone)]
pub struct LogSink(Arc<dyn Fn(LogLine) + Send + Sync>);

impl LogSink {
    /// A sink that hands each line to `take`, which must not block.
    pub fn new(take: impl Fn(LogLine) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
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
    fn a_secret_is_never_shown() {
        assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter2"));
    }
}

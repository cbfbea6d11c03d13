//! Runs a long-lived child process that speaks one JSON object a line.
//!
//! # Protocol
//! In: `{"id": 7, "event": {…CloudEvents JSON…}}`. Out, in any order:
//! - `{"id": 7, "events": [{"type": "…", "data": …}]}`: done;
//! - `{"id": 7, "error": {"kind": "invalid" | "retry", "message": "…"}}`: failed;
//! - `{"id": 7, "emit": {…}}`: publish this before the end.
//!
//! stderr is the function's log. EOF on stdin means finish and exit. A line of stdout that is none of these is
//! logged as a warning.
//!
//! A process is **not** sandboxed: it has this user's files and network. Its environment is only PATH, HOME (its
//! own folder), LANG and what the manifest names; its data memory is bounded.
//!
//! # Layout
//! - `actor`: owns the child, and decides who is guilty when it dies.
//! - `child`: starts, feeds, reads and kills one child.
//! - `wire`: the lines.

mod actor;
mod child;
mod wire;

pub use child::die_with_parent;

use actor::{Actor, Progress, Request};
use async_trait::async_trait;
use nerve_core::{Context, Deployment, Event, Fault, Function, FunctionError, Host, LoadError, Outcome, manifest::Run};
use std::{
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Emissions of one event that may wait to be stored.
const PENDING: usize = 1024;

/// Where processes live.
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// Each revision of each function has a folder of its own in here.
    pub work_dir: PathBuf,
    /// How long a process may take to finish once its stdin is closed.
    pub grace: Duration,
}

impl ProcessConfig {
    /// A grace of 5 s.
    pub fn new(work_dir: impl Into<PathBuf>) -> Self {
        Self { work_dir: work_dir.into(), grace: Duration::from_secs(5) }
    }
}

/// Runs processes.
pub struct ProcessHost {
    config: ProcessConfig,
}

impl ProcessHost {
    /// A host that keeps its processes' folders as `config` says.
    pub fn new(config: ProcessConfig) -> Self {
        Self { config }
    }
}

#[async_trait]
impl Host for ProcessHost {
    async fn load(&self, deployment: Deployment) -> Result<Arc<dyn Function>, LoadError> {
        let Run::Process { command, .. } = &deployment.spec.run else {
            let runtime = deployment.spec.run.runtime();
            let message = format!("`{}` has runtime = \"{runtime}\"; this host runs processes", deployment.name);
            return Err(LoadError::Invalid(message));
        };
        let command = command.clone();
        let home = self.config.work_dir.join(deployment.name.as_str()).join(deployment.revision.to_string());
        lay_out(&deployment, &home).await?;
        let launch = child::Launch { command, home, deployment: Arc::new(deployment) };
        let tracker = TaskTracker::new();
        let child = child::Child::start(&launch, &tracker)?;
        let (requests, intake) = mpsc::channel(launch.room());
        let stop = CancellationToken::new();
        let home = launch.home.clone();
        tracker.spawn(Actor::new(launch, child, intake, stop.clone(), tracker.clone(), self.config.grace).run());
        tracker.close();
        Ok(Arc::new(ProcessFunction { requests, stop, tracker, home }))
    }
}

/// Copies the artifacts to their names: copies, so that what a process writes stays its own.
async fn lay_out(deployment: &Deployment, home: &Path) -> Result<(), LoadError> {
    let failed = |error| LoadError::failed(format!("the folder {} could not be laid out", home.display()), error);
    match tokio::fs::remove_dir_all(home).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => tokio::fs::create_dir_all(home).await.map_err(failed)?,
    }
    for artifact in &deployment.artifacts {
        let name = Path::new(&artifact.name);
        if artifact.name.is_empty() || !name.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(LoadError::Invalid(format!(
                "`{}` is not a path inside the function's folder; deploy files beside nerve.toml",
                artifact.name
            )));
        }
        let target = home.join(name);
        if let Some(parent) = target.parent() {
            tokio::fs::create_dir_all(parent).await.map_err(failed)?;
        }
        tokio::fs::copy(&artifact.file, &target).await.map_err(failed)?;
        // A deployed program must be one that can be run, and its folder one that can be removed.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        tokio::fs::set_permissions(&target, mode).await.map_err(failed)?;
    }
    Ok(())
}

struct ProcessFunction {
    requests: mpsc::Sender<Request>,
    stop: CancellationToken,
    tracker: TaskTracker,
    home: PathBuf,
}

#[async_trait]
impl Function for ProcessFunction {
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        let calls = batch.into_iter().enumerate().map(|(index, event)| self.call(index, event, &context));
        futures::future::join_all(calls).await
    }

    async fn close(&self) {
        self.stop.cancel();
        self.tracker.wait().await;
        // What is left is removed when this revision is laid out again.
        let _ = tokio::fs::remove_dir_all(&self.home).await;
    }
}

impl Drop for ProcessFunction {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl ProcessFunction {
    async fn call(&self, index: usize, event: Event, context: &Context) -> Outcome {
        let interrupted =
            || FunctionError::new(Fault::Interrupted, "the process is being stopped; the event goes back");
        let event = serde_json::value::to_raw_value(&event).map_err(|error| {
            FunctionError::new(Fault::Invalid, format!("the event cannot be written as JSON: {error}"))
        })?;
        let (progress, mut steps) = mpsc::channel(PENDING);
        self.requests.send(Request { event, progress }).await.map_err(|_| interrupted())?;
        // A run again emits again from the start: what is stored already is passed over.
        let (mut stored, mut seen) = (0_usize, 0_usize);
        while let Some(step) = steps.recv().await {
            match step {
                Progress::Again => seen = 0,
                Progress::Emit(emission) => {
                    seen = seen.saturating_add(1);
                    if seen > stored {
                        context.emitter.emit(index, emission).await?;
                        stored = seen;
                    }
                }
                Progress::Done(outcome) => return outcome,
            }
        }
        Err(interrupted())
    }
}

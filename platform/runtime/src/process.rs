//! Runs a long-lived child process that exchanges one JSON object per line.
//!
//! # Protocol
//! In: `{"id": 7, "event": {…CloudEvents JSON…}}`. Out, in any order:
//! - `{"id": 7, "events": [{"type": "…", "data": …}]}`: done;
//! - `{"id": 7, "error": {"kind": "invalid" | "retry", "message": "…"}}`: failed;
//! - `{"id": 7, "emit": {…}}`: publish this before the end.
//!
//! stderr is the function's log. EOF on stdin means finish and exit.
//!
//! A line that is intended as an answer but malformed fails its event immediately, with the line quoted. The code is
//! wrong, so running it again cannot help, and the event is dead-lettered until the next deploy.
//! An answer that names no event in flight fails the only one there is; if there are several, they run again one
//! at a time. Any other text on stdout is logged as a warning.
//!
//! A process is **not** sandboxed: it has this user's files and network, except for [`Shim::closed`] and other processes,
//! if the kernel supports Landlock, mount namespaces and seccomp filters. Its environment is only PATH, HOME and TMPDIR (its own folder), LANG and the variables in the manifest; its data
//! memory is limited.
//!
//! # Layout
//! - `actor`: owns the child process and attributes a crash to an event.
//! - `child`: starts, feeds, reads and kills one child.
//! - `folder`: the working folder of each load. `shim`: the parent of a function, which ends all its descendants.
//! - `wire`: the protocol's lines.

mod actor;
mod child;
mod folder;
mod shim;
pub(crate) mod wire;

pub use child::die_with_parent;
pub use shim::{SHIM, run_shim};

use actor::{Actor, Progress, Request};
use async_trait::async_trait;
use nerve_core::{
    Context, Deployment, Event, Fault, Function, FunctionError, Host, LoadError, Outcome, manifest::RuntimeSpec,
};
use std::{
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Maximum output events per event that wait to be stored.
const MAX_PENDING_EVENTS: usize = 1024;

/// The configuration of process functions.
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// The parent of the working folders. Each load of each function has its own until it ends. Workers may share it.
    pub work_dir: PathBuf,
    /// Grace period for a process after its stdin is closed.
    pub grace: Duration,
    /// The parent of each process. Without one, descendants in other sessions outlive the process, and no files are
    /// closed to it.
    pub shim: Option<Shim>,
}

/// The parent of a process function.
#[derive(Debug, Clone)]
pub struct Shim {
    /// The program, which acts as that parent if its first argument is [`SHIM`].
    pub program: PathBuf,
    /// Files and folders that a process cannot open, except its own folder.
    pub closed: Vec<PathBuf>,
    /// Whether these are covered in a mount namespace of the process. If that fails, no process starts.
    pub covers: bool,
}

impl Shim {
    /// A shim without covers.
    pub fn new(program: impl Into<PathBuf>, closed: Vec<PathBuf>) -> Self {
        Self { program: program.into(), closed, covers: false }
    }

    /// Enables covers, if a test process with `folder` as its own succeeds; `folder` is created.
    ///
    /// # Errors
    /// If covers are not supported, such as in a container without user namespaces.
    pub fn covering(self, folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut command = Command::new(&self.program);
        command.arg0("nerve").args(shim::options(&self.closed, folder)).arg(shim::TRY_COVER);
        let tried = command.env_clear().stdin(Stdio::null()).output()?;
        if !tried.status.success() {
            let why = String::from_utf8_lossy(&tried.stderr);
            let why = if why.trim().is_empty() { tried.status.to_string() } else { why.trim().to_owned() };
            return Err(io::Error::other(why));
        }
        Ok(Self { covers: true, ..self })
    }
}

impl ProcessConfig {
    /// A configuration with a grace period of 5 s and no shim.
    pub fn new(work_dir: impl Into<PathBuf>) -> Self {
        Self { work_dir: work_dir.into(), grace: Duration::from_secs(5), shim: None }
    }
}

/// Runs processes.
pub struct ProcessHost {
    folders: folder::Folders,
    grace: Duration,
    shim: Option<Arc<Shim>>,
}

impl ProcessHost {
    /// A host with this configuration. Folders of killed hosts are removed.
    pub fn new(config: ProcessConfig) -> Self {
        let shim = config.shim.map(Arc::new);
        Self { folders: folder::Folders::open(config.work_dir), grace: config.grace, shim }
    }
}

#[async_trait]
impl Host for ProcessHost {
    async fn load(&self, deployment: Deployment) -> Result<Arc<dyn Function>, LoadError> {
        let RuntimeSpec::Process { command, .. } = &deployment.spec.run else {
            let runtime = deployment.spec.run.runtime();
            let message = format!("`{}` has runtime = \"{runtime}\"; this host runs processes", deployment.name);
            return Err(LoadError::Invalid(message));
        };
        let command = command.clone();
        let folder = self.folders.make(&deployment).await?;
        let launch = child::Launch { command, folder, deployment: Arc::new(deployment), shim: self.shim.clone() };
        let tracker = TaskTracker::new();
        let child = child::Child::start(&launch, &tracker)?;
        let (requests, intake) = mpsc::channel(launch.room());
        let stop = CancellationToken::new();
        tracker.spawn(Actor::new(launch, child, intake, stop.clone(), tracker.clone(), self.grace).run());
        tracker.close();
        Ok(Arc::new(ProcessFunction { requests, stop, tracker }))
    }
}

struct ProcessFunction {
    requests: mpsc::Sender<Request>,
    stop: CancellationToken,
    tracker: TaskTracker,
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
        let (progress, mut steps) = mpsc::channel(MAX_PENDING_EVENTS);
        self.requests.send(Request { event, progress }).await.map_err(|_| interrupted())?;
        // A rerun emits again from the start: events that are already stored are skipped.
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

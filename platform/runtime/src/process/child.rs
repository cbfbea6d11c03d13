//! A child process: starts, feeds, reads and kills it.

use super::{
    Shim,
    folder::Folder,
    shim::{COVER, MEMORY, options},
    wire::{Line, LineEnd, MAX_LINE_BYTES},
};
use nerve_core::{
    Deployment, LoadError,
    function::{LogLevel, LogSink},
};
use nerve_sandbox::LATE_COMMIT;
use nix::{
    errno::Errno,
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::{Signal, kill, killpg},
    },
    unistd::{AccessFlags, Pid, access},
};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child as OsChild, ChildStdin, Command},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::task::TaskTracker;

/// Maximum length of a logged stderr line.
const LOG_LINE: usize = 8 * 1024;
/// Lines of stderr quoted in a crash report.
const TAIL: usize = 20;
/// Timeout for reading the pipes of an exited process; a grandchild may hold them open.
const DRAIN: Duration = Duration::from_millis(200);
/// Time within which the shim ends all descendants.
const SHIM_END: Duration = Duration::from_secs(6);

/// How to start the process.
pub(super) struct Launch {
    pub(super) command: Vec<String>,
    pub(super) folder: Folder,
    pub(super) deployment: Arc<Deployment>,
    /// The parent of the process; see [`super::ProcessConfig::shim`].
    pub(super) shim: Option<Arc<Shim>>,
}

impl Launch {
    /// Maximum concurrent events of a process: all events of all batches in flight.
    pub(super) fn room(&self) -> usize {
        let spec = &self.deployment.spec;
        spec.concurrency.max(1).saturating_mul(spec.batch.size.max(1))
    }
}

/// A running process.
pub(super) struct Child {
    os: OsChild,
    group: Option<i32>,
    has_shim: bool,
    feed: Option<mpsc::UnboundedSender<String>>,
    lines: mpsc::Receiver<Line>,
    tail: Arc<Mutex<VecDeque<String>>>,
    /// Ends with the stderr pipe: then the tail is complete.
    logged: Option<JoinHandle<()>>,
}

impl Child {
    /// Starts the process; tasks of `tracker` serve its pipes.
    pub(super) fn start(launch: &Launch, tracker: &TaskTracker) -> Result<Self, LoadError> {
        let name = &launch.deployment.name;
        let Some((program, arguments)) = launch.command.split_first() else {
            return Err(LoadError::Invalid(format!("`{name}` has an empty `command`; name a program in nerve.toml")));
        };
        let found = if launch.shim.is_some() { check_program(program, launch.folder.path()) } else { Ok(()) };
        let mut os =
            found.and_then(|()| command(launch, program, arguments).spawn()).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => LoadError::Invalid(format!(
                    "`{name}` cannot start `{program}`: {error}; install it on the worker, or correct `command`"
                )),
                _ => LoadError::failed(format!("`{name}` could not start `{program}`"), error),
            })?;
        let (feed, fed) = mpsc::unbounded_channel();
        let (out, lines) = mpsc::channel(16);
        let logs = launch.deployment.logs.clone();
        let tail = Arc::<Mutex<VecDeque<String>>>::default();
        if let Some(stdin) = os.stdin.take() {
            tracker.spawn(write(stdin, fed));
        }
        if let Some(stdout) = os.stdout.take() {
            tracker.spawn(read(BufReader::new(stdout), out));
        }
        let stderr = os.stderr.take();
        let logged = stderr.map(|stderr| tracker.spawn(log(BufReader::new(stderr), logs, tail.clone())));
        let group = os.id().and_then(|id| i32::try_from(id).ok());
        let has_shim = launch.shim.is_some();
        Ok(Self { os, group, has_shim, feed: Some(feed), lines, tail, logged })
    }

    /// Sends a line; their number is limited by the requests in flight. A dead process is detected in [`step`](Self::step).
    pub(super) fn send(&self, line: String) {
        if let Some(feed) = &self.feed {
            let _ = feed.send(line);
        }
    }

    /// Closes its stdin, which tells it to finish and exit.
    pub(super) fn finish(&mut self) {
        self.feed = None;
    }

    /// The next line of its stdout; `None` once it has exited or closed it. Cancel-safe.
    pub(super) async fn step(&mut self) -> Option<Line> {
        tokio::select! {
            biased;
            line = self.lines.recv() => line,
            _ = self.os.wait() => None,
        }
    }

    /// Waits briefly for a process that has closed its stdout, which most do when they exit.
    pub(super) async fn await_exit(&mut self) {
        let _ = tokio::time::timeout(DRAIN, self.os.wait()).await;
    }

    /// Kills it and all its descendants, and collects the lines that it had written.
    pub(super) async fn end(mut self) -> (Vec<Line>, String) {
        self.ask_shim();
        if self.has_shim && tokio::time::timeout(SHIM_END, self.os.wait()).await.is_err() {
            tracing::debug!("the processes of a function do not end; their parent is killed");
        }
        if let Some(group) = self.group {
            // An exited process counts as killed.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let status = self.os.wait().await;
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(DRAIN, async {
            while let Some(line) = self.lines.recv().await {
                rest.push(line);
            }
            if let Some(logged) = self.logged.take() {
                let _ = logged.await;
            }
        })
        .await;
        let mut what = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let tail = self.tail.lock();
        if !tail.is_empty() {
            what.push_str("\nstderr:");
        }
        for line in tail.iter() {
            what.push_str("\n  ");
            what.push_str(line);
        }
        (rest, what)
    }

    /// Asks the shim to end all processes that are still running.
    fn ask_shim(&self) {
        if self.has_shim
            && let Some(shim) = self.os.id().and_then(|id| i32::try_from(id).ok())
        {
            let _ = kill(Pid::from_raw(shim), Signal::SIGTERM);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.ask_shim();
    }
}

/// Detects errors here that the shim would detect later.
fn check_program(program: &str, folder: &Path) -> std::io::Result<()> {
    let runs = |path: PathBuf| access(&path, AccessFlags::X_OK).is_ok() && !path.is_dir();
    let found = match program.contains('/') {
        true => runs(folder.join(program)),
        false => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|at| runs(folder.join(at).join(program)))
        }
    };
    if found { Ok(()) } else { Err(std::io::Error::from_raw_os_error(Errno::ENOENT as i32)) }
}

fn command(launch: &Launch, program: &str, arguments: &[String]) -> Command {
    let spec = &launch.deployment.spec;
    let mut command = match &launch.shim {
        Some(shim) => {
            let mut command = Command::new(&shim.program);
            command.arg0("nerve").args(options(&shim.closed, launch.folder.path()));
            if shim.covers {
                command.arg(COVER);
            }
            command.arg(MEMORY).arg(spec.memory.to_string()).arg("--").arg(program);
            command
        }
        None => {
            let mut command = Command::new(program);
            command.kill_on_drop(true);
            command
        }
    };
    command.args(arguments).current_dir(launch.folder.path()).env_clear();
    let own = launch.folder.path();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", own).env("TMPDIR", own);
    if let Some(lang) = std::env::var_os("LANG") {
        command.env("LANG", lang);
    }
    command.envs(&spec.env);
    command.envs(launch.deployment.secrets.iter().map(|(name, secret)| (name, secret.expose())));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    die_with_parent(&mut command);
    if launch.shim.is_some() {
        command.env(LATE_COMMIT.0, LATE_COMMIT.1);
    } else {
        limit_memory(&mut command, spec.memory);
    }
    command
}

/// Makes a child die with this process, however that ends, and keeps a terminal's Ctrl-C from the child.
///
/// The kernel ties the death to the *thread* that spawns: spawn from async code, never from `spawn_blocking`, whose
/// threads end when idle.
pub fn die_with_parent(command: &mut Command) {
    die_with(command.as_std_mut(), nix::unistd::getpid());
}

/// The same for a command started by `parent`, which is this process.
#[allow(unsafe_code)]
pub(super) fn die_with(command: &mut std::process::Command, parent: Pid) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
    // SAFETY: between fork and exec the closure may only do what is async-signal-safe. It makes three system calls
    // (prctl twice, getppid), takes no lock and allocates nothing: `parent` is a copied integer, and an error made of an
    // errno holds no memory.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // A supervisor disables huge pages, which its children would inherit.
            prctl::set_thp_disable(false).ok();
            // The parent may have died before the call above; then no signal is sent.
            if nix::unistd::getppid() != parent { Err(nix::errno::Errno::ESRCH.into()) } else { Ok(()) }
        });
    }
}

#[allow(unsafe_code)]
fn limit_memory(command: &mut Command, bytes: u64) {
    // SAFETY: as above: one system call (setrlimit) with a copied integer, no lock and no allocation.
    unsafe {
        command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_DATA, bytes, bytes)?));
    }
}

async fn write(mut stdin: ChildStdin, mut fed: mpsc::UnboundedReceiver<String>) {
    while let Some(line) = fed.recv().await {
        // A process that has closed its stdin is detected by its exit or by the timeout.
        if stdin.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read(mut pipe: impl AsyncBufRead + Unpin, out: mpsc::Sender<Line>) {
    while let Some(line) = next_line(&mut pipe, MAX_LINE_BYTES).await {
        if out.send(line).await.is_err() {
            return;
        }
    }
}

async fn log(mut pipe: impl AsyncBufRead + Unpin, logs: LogSink, tail: Arc<Mutex<VecDeque<String>>>) {
    while let Some(line) = next_line(&mut pipe, LOG_LINE).await {
        let line = String::from_utf8_lossy(&line.bytes).into_owned();
        {
            let mut tail = tail.lock();
            if tail.len() == TAIL {
                tail.pop_front();
            }
            tail.push_back(line.clone());
        }
        logs.log(LogLevel::Info, line);
    }
}

/// The next line, truncated to `limit` bytes; `None` at the end of the pipe.
async fn next_line(pipe: &mut (impl AsyncBufRead + Unpin), limit: usize) -> Option<Line> {
    let (mut bytes, mut end, mut any) = (Vec::new(), LineEnd::Newline, false);
    loop {
        let (used, ended) = {
            let chunk = pipe.fill_buf().await.ok()?;
            if chunk.is_empty() {
                let end = if end == LineEnd::Limit { end } else { LineEnd::Pipe };
                return any.then_some(Line { bytes, end });
            }
            let newline = chunk.iter().position(|&byte| byte == b'\n');
            let piece = newline.and_then(|newline| chunk.get(..newline)).unwrap_or(chunk);
            let room = limit.saturating_sub(bytes.len());
            if piece.len() > room {
                end = LineEnd::Limit;
            }
            bytes.extend(piece.iter().take(room));
            (newline.map_or(chunk.len(), |newline| newline.saturating_add(1)), newline.is_some())
        };
        any = true;
        pipe.consume(used);
        if ended {
            return Some(Line { bytes, end });
        }
    }
}

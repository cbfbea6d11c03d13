//! One child process, its output in files, killed by pid when dropped.

use crate::eventually;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// A running child. Dropping it kills it, and shows the tail of its output if the test is failing.
pub struct Daemon {
    name: String,
    child: Child,
    output: TempDir,
}

/// How much of a child's output a failing test shows, in bytes.
const TAIL: usize = 8 << 10;

impl Daemon {
    /// Starts `command`; `name` is for messages.
    pub fn spawn(name: &str, command: &mut Command) -> Self {
        Self::spawn_with(name, command, Stdio::null())
    }

    /// Starts `command` with a stdin that ends when this test does, however it ends.
    pub fn spawn_attached(name: &str, command: &mut Command) -> Self {
        Self::spawn_with(name, command, Stdio::piped())
    }

    fn spawn_with(name: &str, command: &mut Command, stdin: Stdio) -> Self {
        crate::install_tls();
        let output = tempfile::tempdir().expect("a temporary folder");
        let file = |stream: &str| fs::File::create(output.path().join(stream)).expect("a file for output");
        let child = command.stdin(stdin).stdout(file("stdout")).stderr(file("stderr")).spawn();
        let child = child.unwrap_or_else(|e| panic!("{name} does not start ({command:?}): {e}"));
        Self { name: name.to_owned(), child, output }
    }

    /// Its pid.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().expect("a pid"))
    }

    /// Everything it has written to stdout.
    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    /// Everything it has written to stderr.
    pub fn stderr(&self) -> String {
        self.read("stderr")
    }

    /// Waits until its log, which comes through a supervisor, holds all of `said`.
    pub async fn logs(&self, what: &str, said: &[&str]) {
        eventually(what, Duration::from_secs(20), || async {
            let log = self.stderr();
            said.iter().all(|said| log.contains(said)).then_some(())
        })
        .await;
    }

    fn read(&self, stream: &str) -> String {
        let path: PathBuf = self.output.path().join(stream);
        String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
    }

    /// Sends a signal; a child that is gone is no error.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(self.pid(), signal);
    }

    /// The process that serves: its child, where it is a supervisor.
    pub fn server(&self) -> Pid {
        self.children("nerve").first().copied().unwrap_or_else(|| self.pid())
    }

    /// `kill -9`, and waits for the end.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for it to end by itself.
    pub async fn exit(&mut self, timeout: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        eventually(&what, timeout, || {
            let status = self.exited();
            async move { status }
        })
        .await
    }

    /// The first line of stdout that `pick` takes; fails at once if the child ends before.
    pub async fn line<T>(&mut self, timeout: Duration, pick: impl Fn(&str) -> Option<T>) -> T {
        let what = format!("{} says it is ready", self.name);
        eventually(&what, timeout, || {
            let output = self.stdout();
            let whole = output.rfind('\n').map_or("", |end| &output[..end]);
            let found = whole.lines().find_map(&pick);
            if found.is_none()
                && let Some(status) = self.exited()
            {
                panic!("{} ended with {status}: {}", self.name, self.stderr());
            }
            async move { found }
        })
        .await
    }

    /// The pids of its children whose command name is `name`.
    pub fn children(&self, name: &str) -> Vec<Pid> {
        let path = format!("/proc/{0}/task", self.pid());
        let tasks = fs::read_dir(path).into_iter().flatten().flatten();
        let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let pids =
            lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>());
        pids.map(Pid::from_raw).filter(|pid| command_name(*pid).as_deref() == Some(name)).collect()
    }
}

/// Whether every thread of a process is stopped by a signal.
pub fn is_stopped(pid: Pid) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut states = tasks.map(|task| std::fs::read_to_string(task.path().join("stat")).unwrap_or_default());
    // pid (name) state …
    states.all(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
}

/// The command name of a live process; none once it is gone or a zombie.
pub fn command_name(pid: Pid) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    if rest.trim_start().starts_with('Z') { None } else { Some(name.to_owned()) }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            for stream in ["stdout", "stderr"] {
                let text = self.read(stream);
                let start = text.char_indices().map(|(at, _)| at).find(|at| text.len() - at <= TAIL).unwrap_or(0);
                eprintln!("---- {} {stream} ----\n{}", self.name, &text[start..]);
            }
        }
    }
}

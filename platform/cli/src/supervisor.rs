//! Restarts a server process after a crash, while this small process keeps the listening socket open.
//!
//! A crash loses only the requests in flight: new connections wait in the socket until the process is restarted. The
//! two communicate over a socket pair ([`link`]); [`attached`] is the server's end.

mod attached;
mod link;
mod stderr;

pub(crate) use attached::SupervisorLink;
pub(crate) use link::Ready;

use crate::{backoff::Backoff, broker::LocalBroker, failure::Failure};
use anyhow::Context;
use clap::{Args, ValueEnum};
use link::DescriptorKind;
use nerve_sandbox::LATE_COMMIT;
use nerve_worker::InFlight;
use nerve_worker::InFlightEvent;
use nix::sys::{prctl, signal::Signal};
use rustix::fs::{MemfdFlags, memfd_create};
use std::{
    fs::File,
    io::IsTerminal,
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            net,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};
use stderr::LastLines;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    process::{Child, Command},
    time::Instant,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

/// Timeout for reading the last lines of an exited process, whose children may hold the pipe open.
const LAST_LINES_TIMEOUT: Duration = Duration::from_millis(200);
/// Maximum logged events in flight.
const MAX_LOGGED_EVENTS: usize = 20;
/// Environment variables of service managers, which restart services themselves.
const SERVICE_MANAGERS: [&str; 3] = ["INVOCATION_ID", "NOTIFY_SOCKET", "KUBERNETES_SERVICE_HOST"];

/// Executes this program again with settings of the allocator and the kernel that save 4 MB of memory. They would slow
/// down a server, which is started without them.
pub(crate) fn exec_with_less_memory() {
    if std::env::var_os(LATE_COMMIT.0).is_some() {
        return;
    }
    let Ok(binary) = binary() else { return };
    // Optional: without these settings the supervisor only takes more memory.
    prctl::set_thp_disable(true).ok();
    let mut command = std::process::Command::new(binary);
    let error = command.args(std::env::args_os().skip(1)).env(LATE_COMMIT.0, LATE_COMMIT.1).exec();
    tracing::debug!(%error, "the supervisor continues without saving memory");
}

/// Options of supervision.
#[derive(Debug, Args)]
pub(crate) struct Supervision {
    /// Serve in this process, even without a service manager (systemd, Kubernetes) that restarts it
    #[arg(long)]
    no_supervisor: bool,
    #[command(flatten)]
    pub(crate) role: SupervisionRole,
}

/// The role of this process in supervision.
#[derive(Debug, Args)]
pub(crate) struct SupervisionRole {
    /// Serve for the supervisor on standard input; internal
    #[arg(long, hide = true, value_enum, value_name = "LOG")]
    supervised: Option<LogStyle>,
}

/// Log style of a server process, whose log goes through a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogStyle {
    /// Without colors.
    Plain,
    /// With colors.
    #[value(name = "colour")]
    Color,
}

impl Supervision {
    /// Whether to start a supervisor.
    pub(crate) fn is_enabled(&self) -> bool {
        !self.no_supervisor && SERVICE_MANAGERS.iter().all(|name| std::env::var_os(name).is_none())
    }
}

impl SupervisionRole {
    /// Returns the log style if this process has a supervisor.
    pub(crate) fn log_style(&self) -> Option<LogStyle> {
        self.supervised
    }
}

/// Resources that a supervisor passes to each server process.
#[derive(Debug)]
pub(crate) struct Supervisor<'b> {
    /// The gateway's socket; `None` for a worker.
    pub(crate) listener: Option<TcpListener>,
    /// The nats-server that this process has started.
    pub(crate) broker: Option<&'b LocalBroker>,
    /// The lock of the data directory.
    pub(crate) lock: Option<OwnedFd>,
}

/// The exit of a server process.
struct ServerExit {
    status: ExitStatus,
    was_ready: bool,
    last_lines: Vec<String>,
    in_flight: Vec<InFlightEvent>,
}

impl Supervisor<'_> {
    /// Runs and restarts a server process until `stop`. Calls `ready` when it is ready for the first time.
    ///
    /// # Errors
    /// If the server fails before it is ready for the first time, or during shutdown.
    pub(crate) async fn run(
        &self,
        stop: &CancellationToken,
        ready: impl FnOnce(&Ready) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let memory = File::from(memfd_create("nerve-in-flight", MemfdFlags::CLOEXEC)?);
        let (mut ready, mut backoff, tasks) = (Some(ready), Backoff::new(), TaskTracker::new());
        loop {
            let started = Instant::now();
            let mut process = ServerProcess::start(self, &memory, &tasks)?;
            let status = process.watch(stop, &mut ready).await?;
            let exit = process.end(status, &memory).await;
            if stop.is_cancelled() {
                return if status.success() { Ok(()) } else { Err(failed(&exit)) };
            }
            if ready.is_some() {
                return Err(failed(&exit));
            }
            let wait = backoff.after(started.elapsed());
            exit.log(wait);
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return Ok(());
            }
        }
    }
}

/// A running server process.
struct ServerProcess {
    child: Child,
    link: UnixStream,
    last_lines: LastLines,
    stderr_task: AbortOnDropHandle<std::io::Result<()>>,
    was_ready: bool,
}

impl ServerProcess {
    fn start(supervisor: &Supervisor<'_>, memory: &File, tasks: &TaskTracker) -> anyhow::Result<Self> {
        let (ours, theirs) = net::UnixStream::pair()?;
        let style = if std::io::stderr().is_terminal() { LogStyle::Color } else { LogStyle::Plain };
        let mut command = Command::new(binary()?);
        command
            .args(std::env::args_os().skip(1))
            .args(["--supervised", if style == LogStyle::Color { "colour" } else { "plain" }])
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .env_remove(LATE_COMMIT.0)
            .kill_on_drop(true);
        nerve_runtime::die_with_parent(&mut command);
        let mut child = command.spawn().context("the server process cannot be started")?;
        let mut descriptors = vec![(DescriptorKind::InFlight, memory.as_fd())];
        descriptors.extend(supervisor.listener.as_ref().map(|socket| (DescriptorKind::Listener, socket.as_fd())));
        descriptors.extend(supervisor.lock.as_ref().map(|lock| (DescriptorKind::Lock, lock.as_fd())));
        link::send(&ours, supervisor.broker, &descriptors)?;
        ours.set_nonblocking(true)?;
        let last_lines = LastLines::default();
        let stderr = child.stderr.take().context("the server process has no standard error")?;
        let stderr_task = AbortOnDropHandle::new(tasks.spawn(last_lines.clone().forward(stderr)));
        Ok(Self { child, link: UnixStream::from_std(ours)?, last_lines, stderr_task, was_ready: false })
    }

    /// Waits until the process exits. `stop` requests its shutdown.
    async fn watch(
        &mut self,
        stop: &CancellationToken,
        ready: &mut Option<impl FnOnce(&Ready) -> anyhow::Result<()>>,
    ) -> anyhow::Result<ExitStatus> {
        let (reports, mut orders) = self.link.split();
        let mut reports = BufReader::new(reports).lines();
        let mut is_stopping = false;
        loop {
            tokio::select! {
                status = self.child.wait() => return Ok(status?),
                report = reports.next_line(), if !self.was_ready => {
                    let Ok(Some(report)) = report else {
                        // It has exited, or is about to.
                        return Ok(self.child.wait().await?);
                    };
                    let report: Ready = link::parse(&report)?;
                    self.was_ready = true;
                    match ready.take() {
                        Some(ready) => ready(&report)?,
                        None => tracing::info!("the server process is ready again"),
                    }
                }
                () = stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    // A process that does not accept the order has exited.
                    orders.write_all(link::DRAIN.as_bytes()).await.ok();
                }
            }
        }
    }

    async fn end(self, status: ExitStatus, memory: &File) -> ServerExit {
        tokio::time::timeout(LAST_LINES_TIMEOUT, self.stderr_task).await.ok();
        let in_flight = InFlight::read(memory).unwrap_or_default();
        ServerExit { status, was_ready: self.was_ready, last_lines: self.last_lines.lines(), in_flight }
    }
}

impl ServerExit {
    /// Logs the exit of a process that is restarted after `wait`.
    fn log(&self, wait: Duration) {
        if self.status.success() {
            return tracing::info!("the server process exited; restarting it");
        }
        let in_flight = event_list(&self.in_flight);
        let (cause, last_lines) = (exit_reason(self.status), self.last_lines.join(" | "));
        tracing::error!(cause, in_flight, last_lines, ?wait, "the server process crashed; restarting it");
    }
}

/// Formats the events in flight.
fn event_list(events: &[InFlightEvent]) -> String {
    let format = |event: &InFlightEvent| format!("{} of {} in {}", event.sequence, event.stream, event.function);
    let mut list: Vec<_> = events.iter().take(MAX_LOGGED_EVENTS).map(format).collect();
    match events.len().saturating_sub(MAX_LOGGED_EVENTS) {
        0 if events.is_empty() => list.push("none".to_owned()),
        0 => {}
        more => list.push(format!("and {more} more")),
    }
    list.join(", ")
}

/// Formats the reason of an exit.
fn exit_reason(status: ExitStatus) -> String {
    let Some(signal) = status.signal() else {
        return format!("exit code {}", status.code().unwrap_or_default());
    };
    let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
    let hint = match Signal::try_from(signal) {
        Ok(Signal::SIGKILL) => ": out of memory, or killed by a user",
        Ok(Signal::SIGABRT) => ": abort, such as a stack overflow",
        Ok(Signal::SIGSEGV | Signal::SIGBUS | Signal::SIGILL) => ": crash in native code",
        _ => "",
    };
    format!("signal {signal} ({name}{hint})")
}

/// Creates the error for a process that exited before it was ready, or failed during shutdown.
fn failed(exit: &ServerExit) -> anyhow::Error {
    match exit.status.code() {
        Some(code) => Failure::reported("the server process failed", u8::try_from(code).unwrap_or(1)).into(),
        None => {
            let thing = if exit.was_ready {
                "the server process crashed during shutdown"
            } else {
                "the server process crashed at startup"
            };
            Failure::new(thing).cause(exit_reason(exit.status)).into()
        }
    }
}

/// Returns the path of this binary. If its file was replaced, the running version is used.
fn binary() -> std::io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    Ok(if path.exists() { path } else { PathBuf::from("/proc/self/exe") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_names_the_signal_or_the_exit_code() {
        assert!(exit_reason(ExitStatus::from_raw(6)).starts_with("signal 6 (SIGABRT: "));
        assert_eq!(exit_reason(ExitStatus::from_raw(15)), "signal 15 (SIGTERM)");
        assert_eq!(exit_reason(ExitStatus::from_raw(3 << 8)), "exit code 3");
    }

    #[test]
    fn only_the_first_events_in_flight_are_listed() {
        let event = |sequence| InFlightEvent { function: "f".into(), stream: "EVENTS".into(), sequence };
        assert_eq!(event_list(&[]), "none");
        assert_eq!(event_list(&[event(3)]), "3 of EVENTS in f");
        let many: Vec<_> = (0..25).map(event).collect();
        assert!(event_list(&many).ends_with("19 of EVENTS in f, and 5 more"), "{}", event_list(&many));
    }
}

//! Keeps a server process running while this process, which is small, keeps its socket open.
//!
//! Whatever ends the server process costs the requests that it was answering: connections that come meanwhile wait in the socket, and
//! the process is started again. The two talk over a socket pair ([`link`]); [`attached`] is the server's end of it.

mod attached;
mod link;
mod stderr;

pub(crate) use attached::Attached;
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

/// How long the last lines of a process that has ended may take to be read: a process of its own may hold them open.
const LAST_LINES: Duration = Duration::from_millis(200);
/// Events in flight that are named.
const MAX_NAMED: usize = 20;
/// Variables of service managers, which start again what has ended.
const SERVICE_MANAGERS: [&str; 3] = ["INVOCATION_ID", "NOTIFY_SOCKET", "KUBERNETES_SERVICE_HOST"];

/// Runs this program anew, in this process, with settings of the allocator and of the kernel under which it takes 4 MB less. A server
/// would be slower under them, and is started without.
pub(crate) fn save_memory() {
    if std::env::var_os(LATE_COMMIT.0).is_some() {
        return;
    }
    let Ok(binary) = binary() else { return };
    // Where either cannot be had, the supervisor is as good with more memory.
    prctl::set_thp_disable(true).ok();
    let mut command = std::process::Command::new(binary);
    let error = command.args(std::env::args_os().skip(1)).env(LATE_COMMIT.0, LATE_COMMIT.1).exec();
    tracing::debug!(%error, "the supervisor goes on with more memory");
}

/// Whether a server is watched by a process of its own.
#[derive(Debug, Args)]
pub(crate) struct Supervision {
    /// Serve in this process, even where no service manager (systemd, Kubernetes) would start it again
    #[arg(long)]
    no_supervisor: bool,
    #[command(flatten)]
    pub(crate) role: SupervisionRole,
}

/// Which of the two processes this is.
#[derive(Debug, Args)]
pub(crate) struct SupervisionRole {
    /// Serve for the supervisor on standard input; for Nerve's own use
    #[arg(long, hide = true, value_enum, value_name = "LOG")]
    supervised: Option<LogStyle>,
}

/// How a server process writes its log, which goes through a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogStyle {
    /// Without colours.
    Plain,
    /// With colours.
    Colour,
}

impl Supervision {
    /// Whether a supervisor is to be started.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.no_supervisor && SERVICE_MANAGERS.iter().all(|name| std::env::var_os(name).is_none())
    }
}

impl SupervisionRole {
    /// How this process, which has a supervisor, writes its log; none where it has no supervisor.
    pub(crate) fn log_style(&self) -> Option<LogStyle> {
        self.supervised
    }
}

/// What a supervisor hands to each server process.
#[derive(Debug)]
pub(crate) struct Supervisor<'b> {
    /// The socket of the gateway, if it is one.
    pub(crate) listener: Option<TcpListener>,
    /// The nats-server that this process has started, if it has.
    pub(crate) broker: Option<&'b LocalBroker>,
    /// The lock of the data folder, if it is locked.
    pub(crate) lock: Option<OwnedFd>,
}

/// How a server process ended.
struct End {
    status: ExitStatus,
    was_ready: bool,
    last_lines: Vec<String>,
    in_flight: Vec<InFlightEvent>,
}

impl Supervisor<'_> {
    /// Keeps a server process running until `stop`. Calls `ready` when it serves for the first time.
    ///
    /// # Errors
    /// The server fails before it serves for the first time, or while it ends.
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
            let end = process.end(status, &memory).await;
            if stop.is_cancelled() {
                return if status.success() { Ok(()) } else { Err(failed(&end)) };
            }
            if ready.is_some() {
                return Err(failed(&end));
            }
            let wait = backoff.after(started.elapsed());
            end.log(wait);
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
    passing_on: AbortOnDropHandle<std::io::Result<()>>,
    was_ready: bool,
}

impl ServerProcess {
    fn start(supervisor: &Supervisor<'_>, memory: &File, tasks: &TaskTracker) -> anyhow::Result<Self> {
        let (ours, theirs) = net::UnixStream::pair()?;
        let style = if std::io::stderr().is_terminal() { LogStyle::Colour } else { LogStyle::Plain };
        let mut command = Command::new(binary()?);
        command
            .args(std::env::args_os().skip(1))
            .args(["--supervised", if style == LogStyle::Colour { "colour" } else { "plain" }])
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
        let passing_on = AbortOnDropHandle::new(tasks.spawn(last_lines.clone().pass_on(stderr)));
        Ok(Self { child, link: UnixStream::from_std(ours)?, last_lines, passing_on, was_ready: false })
    }

    /// Waits until the process ends, which `stop` asks it to.
    async fn watch(
        &mut self,
        stop: &CancellationToken,
        ready: &mut Option<impl FnOnce(&Ready) -> anyhow::Result<()>>,
    ) -> anyhow::Result<ExitStatus> {
        let (reports, mut orders) = self.link.split();
        let mut reports = BufReader::new(reports).lines();
        let mut is_asked = false;
        loop {
            tokio::select! {
                status = self.child.wait() => return Ok(status?),
                report = reports.next_line(), if !self.was_ready => {
                    let Ok(Some(report)) = report else {
                        // It has ended, or is about to.
                        return Ok(self.child.wait().await?);
                    };
                    let report: Ready = link::parse(&report)?;
                    self.was_ready = true;
                    match ready.take() {
                        Some(ready) => ready(&report)?,
                        None => tracing::info!("the server process serves again"),
                    }
                }
                () = stop.cancelled(), if !is_asked => {
                    is_asked = true;
                    // A process that cannot be asked has ended.
                    orders.write_all(link::DRAIN.as_bytes()).await.ok();
                }
            }
        }
    }

    async fn end(self, status: ExitStatus, memory: &File) -> End {
        tokio::time::timeout(LAST_LINES, self.passing_on).await.ok();
        let in_flight = InFlight::read(memory).unwrap_or_default();
        End { status, was_ready: self.was_ready, last_lines: self.last_lines.lines(), in_flight }
    }
}

impl End {
    /// Says why a process died that is started again after `wait`.
    fn log(&self, wait: Duration) {
        if self.status.success() {
            return tracing::info!("the server process was asked to end, and is started again");
        }
        let in_flight = named(&self.in_flight);
        let (cause, last_lines) = (reason(self.status), self.last_lines.join(" | "));
        tracing::error!(cause, in_flight, last_lines, ?wait, "the server process died, and is started again");
    }
}

/// The events that were in flight, in words.
fn named(events: &[InFlightEvent]) -> String {
    let name = |event: &InFlightEvent| format!("{} of {} in {}", event.sequence, event.stream, event.function);
    let mut named: Vec<_> = events.iter().take(MAX_NAMED).map(name).collect();
    match events.len().saturating_sub(MAX_NAMED) {
        0 if events.is_empty() => named.push("none".to_owned()),
        0 => {}
        more => named.push(format!("and {more} more")),
    }
    named.join(", ")
}

/// Why a process ended, in words.
fn reason(status: ExitStatus) -> String {
    let Some(signal) = status.signal() else {
        return format!("exit code {}", status.code().unwrap_or_default());
    };
    let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
    let hint = match Signal::try_from(signal) {
        Ok(Signal::SIGKILL) => ": the system had no memory left, or somebody killed it",
        Ok(Signal::SIGABRT) => ": a fault that it found itself, such as a full stack",
        Ok(Signal::SIGSEGV | Signal::SIGBUS | Signal::SIGILL) => ": a fault in native code",
        _ => "",
    };
    format!("signal {signal} ({name}{hint})")
}

/// What this process says of one that ended before it served, or while it ended.
fn failed(end: &End) -> anyhow::Error {
    match end.status.code() {
        Some(code) => Failure::told("the server process failed", u8::try_from(code).unwrap_or(1)).into(),
        None => {
            let thing = if end.was_ready {
                "the server process died while it ended"
            } else {
                "the server process died at its start"
            };
            Failure::new(thing).cause(reason(end.status)).into()
        }
    }
}

/// This binary. Where its file was replaced, what runs here is started again, and not its successor.
fn binary() -> std::io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    Ok(if path.exists() { path } else { PathBuf::from("/proc/self/exe") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_names_the_signal_or_the_exit_code() {
        assert!(reason(ExitStatus::from_raw(6)).starts_with("signal 6 (SIGABRT: "));
        assert_eq!(reason(ExitStatus::from_raw(15)), "signal 15 (SIGTERM)");
        assert_eq!(reason(ExitStatus::from_raw(3 << 8)), "exit code 3");
    }

    #[test]
    fn only_the_first_events_in_flight_are_named() {
        let event = |sequence| InFlightEvent { function: "f".into(), stream: "EVENTS".into(), sequence };
        assert_eq!(named(&[]), "none");
        assert_eq!(named(&[event(3)]), "3 of EVENTS in f");
        let many: Vec<_> = (0..25).map(event).collect();
        assert!(named(&many).ends_with("19 of EVENTS in f, and 5 more"), "{}", named(&many));
    }
}

//! The parent of a process function: a program of this binary's, between the worker and the function.
//!
//! Descendants of the function that leave its session and its process group become children of this one (a subreaper), and end
//! with it. A worker could not be that itself: it would reap children that its own runtime waits for. The memory of the
//! tree is counted here, since a limit of the system's is for one process.

use super::child::die_with;
use nerve_sandbox::LATE_COMMIT;
use nix::{
    errno::Errno,
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::{SigSet, Signal, kill, raise},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, dup2_stdin, dup2_stdout, getpid},
};
use std::{
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// The first argument by which this binary is the parent of a process function. Then come the bytes of memory that its tree may
/// hold, and the command.
pub const SHIM: &str = "process-shim";

/// How often the memory of a tree is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a tree is ended, in case it makes new processes faster than they are killed.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const END_PAUSE: Duration = Duration::from_millis(2);
/// The most processes of a tree that are looked at.
const MAX_PROCESSES: usize = 10_000;
/// What a shell says of a command that it cannot run.
const CANNOT_RUN: u8 = 127;

/// Whether the tree was ended as it held too much memory.
static TOO_LARGE: AtomicBool = AtomicBool::new(false);

/// Runs the command in `arguments`, and ends as it ends, with all that it has started.
///
/// To be called at the very beginning of a process, before it has a second thread.
#[expect(clippy::print_stderr, reason = "stderr is the function's log")]
pub fn run_shim(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let bytes = arguments.next().and_then(|bytes| bytes.to_str()?.parse().ok());
    let (Some(bytes), Some(program)) = (bytes, arguments.next()) else {
        eprintln!("nerve {SHIM} is started by a worker, with a limit of memory and a command");
        return ExitCode::from(CANNOT_RUN);
    };
    match supervise(Command::new(&program).args(arguments), bytes) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("`{}` cannot be run: {error}", program.to_string_lossy());
            ExitCode::from(CANNOT_RUN)
        }
    }
}

fn supervise(command: &mut Command, bytes: u64) -> std::io::Result<ExitCode> {
    let mut awaited = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        awaited.add(signal);
    }
    awaited.thread_block()?;
    prctl::set_child_subreaper(true)?;
    // Unlike a killed process, one that is asked to end can end the others first.
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    // For this process only.
    command.env_remove(LATE_COMMIT.0);
    limit_memory(command, bytes);
    die_with(command, getpid());
    let child = Pid::from_raw(i32::try_from(command.spawn()?.id()).map_err(std::io::Error::other)?);
    // The pipes are the function's: they end with it, or when it closes them.
    if let Ok(null) = fs::File::options().read(true).write(true).open("/dev/null") {
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
    }
    std::thread::spawn(move || watch_memory(bytes));
    let status = loop {
        match awaited.wait()? {
            Signal::SIGCHLD => {
                if let Some(status) = reap(child) {
                    break Some(status);
                }
            }
            _ => break None,
        }
    };
    end_all();
    Ok(exit_as(status))
}

#[allow(unsafe_code)]
fn limit_memory(command: &mut Command, bytes: u64) {
    // SAFETY: between fork and exec the closure makes one system call (setrlimit) with a copied integer, takes no lock and allocates
    // nothing.
    unsafe {
        command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_DATA, bytes, bytes)?));
    }
}

/// Takes note of all children that have ended; how the function has, if it is one of them.
fn reap(function: Pid) -> Option<WaitStatus> {
    let mut ended = None;
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
        if status.pid() == Some(function) {
            ended = Some(status);
        }
    }
    ended
}

/// Kills every descendant, however often it has changed its parent.
fn end_all() {
    let deadline = Instant::now() + END_TIMEOUT;
    while Instant::now() < deadline {
        let left = descendants(getpid());
        if left.is_empty() {
            return;
        }
        for pid in left {
            let _ = kill(pid, Signal::SIGKILL);
        }
        while !matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD)) {}
        std::thread::sleep(END_PAUSE);
    }
}

/// The processes below this one.
fn descendants(of: Pid) -> Vec<Pid> {
    let (mut found, mut next) = (Vec::new(), vec![of]);
    while let Some(pid) = next.pop() {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for thread in threads {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            let children = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw);
            next.extend(children.clone());
            found.extend(children);
        }
        if found.len() >= MAX_PROCESSES {
            break;
        }
    }
    found
}

/// Ends the tree once its processes together hold more than one of them may.
#[expect(clippy::print_stderr, reason = "stderr is the function's log")]
fn watch_memory(bytes: u64) {
    loop {
        std::thread::sleep(LOOK_INTERVAL);
        let tree = descendants(getpid());
        // A single process has its limit already.
        let held = if tree.len() > 1 { tree.iter().map(|pid| private_bytes(*pid)).sum() } else { 0 };
        if held > bytes {
            eprintln!(
                "its {} processes hold {held} bytes of memory, and `memory` allows them {bytes} together: they are ended",
                tree.len()
            );
            TOO_LARGE.store(true, Ordering::Relaxed);
            let _ = kill(getpid(), Signal::SIGTERM);
            return;
        }
    }
}

/// What a process holds and does not share.
fn private_bytes(pid: Pid) -> u64 {
    let pages = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let mut pages = pages.split_ascii_whitespace().skip(1).filter_map(|pages| pages.parse::<u64>().ok());
    let (resident, shared) = (pages.next().unwrap_or_default(), pages.next().unwrap_or_default());
    resident.saturating_sub(shared).saturating_mul(PAGE_BYTES)
}

/// Pages are at least this large.
const PAGE_BYTES: u64 = 4096;

/// Ends as the function has ended, so that the worker reads its end.
fn exit_as(status: Option<WaitStatus>) -> ExitCode {
    let signal = match status {
        Some(WaitStatus::Exited(_, code)) => return ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Some(WaitStatus::Signaled(_, signal, _)) => signal,
        _ => Signal::SIGKILL,
    };
    // Its core, if any, was written already.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let mut only = SigSet::empty();
    only.add(signal);
    let _ = only.thread_unblock();
    let _ = raise(signal);
    // A signal that ends nothing by itself.
    ExitCode::from(u8::MAX)
}

//! The shim: the parent of a process function, between the worker and the function.
//!
//! Descendants of the function that leave its session and its process group become children of the shim (a subreaper), and end
//! with it. A worker cannot be a subreaper: it would reap children that its own runtime waits for. The shim also measures the memory of the
//! tree, because the system's limits apply to one process.

use super::child::die_with;
use nerve_sandbox::{CallFilter, Closed, LATE_COMMIT};
use nix::{
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::{SigSet, Signal, kill, raise},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, dup2_stdin, dup2_stdout, getpid},
};
use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// The first argument that makes this binary a shim. It is followed by the options, `--`, and the command.
pub const SHIM: &str = "process-shim";
/// Option: the memory limit of the tree in bytes.
pub(super) const MEMORY: &str = "--memory";
/// Option, repeatable: a file or folder that the tree cannot open.
const CLOSED: &str = "--closed";
/// Option: the folder inside a closed one that the tree may open.
const OWN: &str = "--own";
/// Option: cover the closed files and folders; see [`super::Shim::covers`].
pub(super) const COVER: &str = "--cover";
/// Option: cover them, and exit.
pub(super) const TRY_COVER: &str = "--try-cover";

/// Interval of the memory check.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout for ending a tree that starts processes faster than they are killed.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const END_PAUSE: Duration = Duration::from_millis(2);
/// Maximum processes of a tree that are examined.
const MAX_PROCESSES: usize = 10_000;
/// A shell's exit status for a command that it cannot run.
const CANNOT_RUN: u8 = 127;

/// Whether the tree was ended because it exceeded its memory limit.
static TOO_LARGE: AtomicBool = AtomicBool::new(false);

/// The options of a shim.
#[derive(Debug, Default)]
struct Orders {
    memory: u64,
    closed: Vec<PathBuf>,
    own: PathBuf,
    cover: bool,
    is_trial: bool,
    program: OsString,
    arguments: Vec<OsString>,
}

impl Orders {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        let mut orders = Self::default();
        loop {
            let option = arguments.next()?;
            match option.to_str()? {
                MEMORY => orders.memory = arguments.next()?.to_str()?.parse().ok()?,
                CLOSED => orders.closed.push(arguments.next()?.into()),
                OWN => orders.own = arguments.next()?.into(),
                COVER => orders.cover = true,
                TRY_COVER => {
                    orders.is_trial = true;
                    return Some(orders);
                }
                "--" => break,
                _ => return None,
            }
        }
        orders.program = arguments.next()?;
        orders.arguments = arguments.collect();
        Some(orders)
    }
}

/// The first arguments of every shim: the files closed to its tree, and the folder that is not.
pub(super) fn options<'a>(closed: &'a [PathBuf], own: &'a Path) -> impl Iterator<Item = &'a OsStr> {
    let closed = closed.iter().flat_map(|path| [OsStr::new(CLOSED), path.as_os_str()]);
    [OsStr::new(SHIM)].into_iter().chain(closed).chain([OsStr::new(OWN), own.as_os_str()])
}

/// Runs the command in `arguments`, and exits as it does, after ending all its descendants.
///
/// Must be called at the very beginning of a process, before it has a second thread.
#[expect(clippy::print_stderr, reason = "stderr is the function's log")]
pub fn run_shim(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(orders) = Orders::parse(arguments) else {
        eprintln!("nerve {SHIM} is started by a worker, with options and a command");
        return ExitCode::from(CANNOT_RUN);
    };
    if orders.is_trial {
        return match nerve_sandbox::cover(&orders.closed, &orders.own) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    match supervise(&orders) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("`{}` cannot be run: {error}", orders.program.to_string_lossy());
            ExitCode::from(CANNOT_RUN)
        }
    }
}

fn supervise(orders: &Orders) -> std::io::Result<ExitCode> {
    // Before there is a second thread, and before applying Landlock, which forbids mounts.
    if orders.cover {
        nerve_sandbox::cover(&orders.closed, &orders.own)?;
    }
    let (mut command, bytes) = (Command::new(&orders.program), orders.memory);
    command.args(&orders.arguments);
    let mut awaited = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        awaited.add(signal);
    }
    awaited.thread_block()?;
    prctl::set_child_subreaper(true)?;
    // Unlike a killed process, one that receives SIGTERM can end the others first.
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    // For this process only.
    command.env_remove(LATE_COMMIT.0);
    confine(&mut command, bytes, Closed::new(&orders.closed, &orders.own)?, CallFilter::new()?);
    die_with(&mut command, getpid());
    let child = Pid::from_raw(i32::try_from(command.spawn()?.id()).map_err(std::io::Error::other)?);
    // The pipes belong to the function: they end with it, or when it closes them.
    if let Ok(null) = fs::File::options().read(true).write(true).open("/dev/null") {
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
    }
    std::thread::spawn(move || watch_memory(bytes));
    let ended = loop {
        let signal = awaited.wait()?;
        // Of pending signals SIGTERM is delivered before SIGCHLD.
        let ended = reap(child);
        if ended.is_some() || signal != Signal::SIGCHLD {
            break ended;
        }
    };
    // A process that is already exiting keeps its status when it is killed.
    let killed = end_all(child);
    Ok(exit_as(ended.or(killed)))
}

/// Limits the function, but not the shim, which reads /proc and ends the whole tree.
#[allow(unsafe_code)]
fn confine(command: &mut Command, bytes: u64, mut closed: Option<Closed>, filter: Option<CallFilter>) {
    // SAFETY: this process has one thread, so the child of the fork holds no lock that another thread had taken, and may do what
    // any process does before exec. The closure unblocks signals, sets a limit and applies a ruleset and a filter that are made already.
    unsafe {
        command.pre_exec(move || {
            // The shim waits for signals that it blocks; the function must receive them.
            SigSet::empty().thread_set_mask()?;
            setrlimit(Resource::RLIMIT_DATA, bytes, bytes)?;
            closed.take().map_or(Ok(()), Closed::apply)?;
            // Without seccomp the function runs unfiltered, as the worker has reported.
            filter.as_ref().map_or(Ok(false), CallFilter::apply).map(drop)
        });
    }
}

/// Reaps all exited children, and records the status of the function if it is one of them.
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

/// Kills every descendant, however often it has changed its parent, and returns the function's status.
fn end_all(function: Pid) -> Option<WaitStatus> {
    let mut ended = None;
    let deadline = Instant::now() + END_TIMEOUT;
    while Instant::now() < deadline {
        let left = descendants(getpid());
        if left.is_empty() {
            break;
        }
        for pid in left {
            let _ = kill(pid, Signal::SIGKILL);
        }
        ended = reap(function).or(ended);
        std::thread::sleep(END_PAUSE);
    }
    ended
}

/// The descendants of this process.
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

/// Ends the tree once its processes together exceed the limit of one.
#[expect(clippy::print_stderr, reason = "stderr is the function's log")]
fn watch_memory(bytes: u64) {
    loop {
        std::thread::sleep(LOOK_INTERVAL);
        let tree = descendants(getpid());
        // A single process is limited by the system.
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

/// The unshared memory of a process.
fn private_bytes(pid: Pid) -> u64 {
    let pages = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let mut pages = pages.split_ascii_whitespace().skip(1).filter_map(|pages| pages.parse::<u64>().ok());
    let (resident, shared) = (pages.next().unwrap_or_default(), pages.next().unwrap_or_default());
    resident.saturating_sub(shared).saturating_mul(PAGE_BYTES)
}

/// The minimum page size.
const PAGE_BYTES: u64 = 4096;

/// Exits as the function did, so that the worker reads its status.
fn exit_as(status: Option<WaitStatus>) -> ExitCode {
    let signal = match status {
        Some(WaitStatus::Exited(_, code)) => return ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Some(WaitStatus::Signaled(_, signal, _)) => signal,
        _ => Signal::SIGKILL,
    };
    // A core dump, if any, was already written.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let mut only = SigSet::empty();
    only.add(signal);
    let _ = only.thread_unblock();
    let _ = raise(signal);
    // A signal that is not fatal by default.
    ExitCode::from(u8::MAX)
}

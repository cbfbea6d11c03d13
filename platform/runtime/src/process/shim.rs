//! The parent of a process function: a program of this binary's, between the worker and the function.
//!
//! Descendants of the function that leave its session and its process group become children of this one (a subreaper), and end
//! with it. A worker could not be that itself: it would reap children that its own runtime waits for. The memory of the
//! tree is counted here, since a limit of the system's is for one process.

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

/// The first argument by which this binary is the parent of a process function. Then come the options, `--`, and the command.
pub const SHIM: &str = "process-shim";
/// The bytes of memory that the tree may hold.
pub(super) const MEMORY: &str = "--memory";
/// A file or folder that the tree may not open; more than once for several.
const CLOSED: &str = "--closed";
/// The folder in a closed one that the tree may open.
const OWN: &str = "--own";
/// The closed files and folders are covered; see [`super::Shim::covers`].
pub(super) const COVER: &str = "--cover";
/// They are covered, and that is all.
pub(super) const TRY_COVER: &str = "--try-cover";

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

/// What the parent of a function is to do.
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

/// The first arguments of every parent: what is closed to its tree, and the folder that is not.
pub(super) fn options<'a>(closed: &'a [PathBuf], own: &'a Path) -> impl Iterator<Item = &'a OsStr> {
    let closed = closed.iter().flat_map(|path| [OsStr::new(CLOSED), path.as_os_str()]);
    [OsStr::new(SHIM)].into_iter().chain(closed).chain([OsStr::new(OWN), own.as_os_str()])
}

/// Runs the command in `arguments`, and ends as it ends, with all that it has started.
///
/// To be called at the very beginning of a process, before it has a second thread.
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
    // Before there is a second thread, and before the rules of Landlock, which forbids mounts.
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
    // Unlike a killed process, one that is asked to end can end the others first.
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    // For this process only.
    command.env_remove(LATE_COMMIT.0);
    confine(&mut command, bytes, Closed::new(&orders.closed, &orders.own)?, CallFilter::new()?);
    die_with(&mut command, getpid());
    let child = Pid::from_raw(i32::try_from(command.spawn()?.id()).map_err(std::io::Error::other)?);
    // The pipes are the function's: they end with it, or when it closes them.
    if let Ok(null) = fs::File::options().read(true).write(true).open("/dev/null") {
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
    }
    std::thread::spawn(move || watch_memory(bytes));
    let ended = loop {
        let signal = awaited.wait()?;
        // Of signals that wait together SIGTERM comes before SIGCHLD.
        let ended = reap(child);
        if ended.is_some() || signal != Signal::SIGCHLD {
            break ended;
        }
    };
    // One that is ending when it is killed ends with the status that it has already.
    let killed = end_all(child);
    Ok(exit_as(ended.or(killed)))
}

/// Limits the function, and not this process, which looks into /proc and ends the whole tree.
#[allow(unsafe_code)]
fn confine(command: &mut Command, bytes: u64, mut closed: Option<Closed>, filter: Option<CallFilter>) {
    // SAFETY: this process has one thread, so the child of the fork holds no lock that another thread had taken, and may do what
    // any process does before exec. The closure unblocks signals, sets a limit and applies a ruleset and a filter that are made already.
    unsafe {
        command.pre_exec(move || {
            // This process waits for signals that it blocks; the function is to be ended by them, or to handle them.
            SigSet::empty().thread_set_mask()?;
            setrlimit(Resource::RLIMIT_DATA, bytes, bytes)?;
            closed.take().map_or(Ok(()), Closed::apply)?;
            // Without filters in the kernel the function runs all the same: the worker has said what that means.
            filter.as_ref().map_or(Ok(false), CallFilter::apply).map(drop)
        });
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

/// Kills every descendant, however often it has changed its parent; how the function has ended, if it had not before.
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

//! The inside of a helper process.
//!
//! The main thread reads requests, so that it notices the end of the pipe while the other thread works, and then ends the process
//! immediately. The other thread has the stack that the work requires.

use crate::{
    access::Access,
    confine::confine,
    frame::{self, Status},
};
use std::{
    any::Any,
    ffi::OsString,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, AsRawFd},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::ExitCode,
    sync::mpsc::{Receiver, sync_channel},
};

/// The first argument of a helper process.
pub const COMMAND: &str = "sandbox";

/// Maximum size of a refusal.
const MAX_REFUSAL_BYTES: usize = 16 << 10;

/// A kind of work for helper processes.
#[derive(Clone, Copy)]
pub struct Work {
    /// Its name in requests.
    pub name: &'static str,
    /// Initializes it once per process, with the setup shared by all requests. The error describes what is wrong with the setup.
    pub start: fn(setup: &[u8]) -> Result<Job, String>,
    /// Loads the library of the [`Access`], before the process is confined and reads input. Starts no threads.
    pub load: Option<fn(library: &Path)>,
}

/// Converts a request to its result. The error describes what is wrong with the request.
pub type Job = Box<dyn FnMut(&[u8]) -> Result<Vec<u8>, String>>;

/// The number of [`Bounds`].
const BOUNDS: usize = 5;

/// The limits of a helper process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Memory, in bytes.
    pub(crate) memory: u64,
    /// The stack of the working thread, in bytes; a part of the memory.
    pub(crate) stack: u64,
    /// CPU time, in seconds.
    pub(crate) cpu: u64,
    /// Maximum size of a request.
    pub(crate) input: u64,
    /// Maximum size of a result.
    pub(crate) output: u64,
}

impl Bounds {
    /// The command-line arguments that [`Bounds::read`] parses.
    pub(crate) fn arguments(self) -> [String; BOUNDS] {
        [self.memory, self.stack, self.cpu, self.input, self.output].map(|number| number.to_string())
    }

    fn read(arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        let numbers: Option<Vec<u64>> =
            arguments.take(BOUNDS).map(|argument| argument.to_str()?.parse().ok()).collect();
        let [memory, stack, cpu, input, output] = numbers?.try_into().ok()?;
        Some(Self { memory, stack, cpu, input, output })
    }
}

/// Runs a helper process, if the arguments say that this is one, and returns its exit code. Must be called first in
/// `main`: before this process has threads, open files or anything in memory.
pub fn serve(arguments: impl IntoIterator<Item = OsString>, works: &[Work]) -> Option<ExitCode> {
    let mut arguments = arguments.into_iter().skip(1);
    if arguments.next()? != COMMAND {
        return None;
    }
    let name = arguments.next().unwrap_or_default();
    let work = works.iter().find(|work| name == work.name);
    let (Some(work), Some(bounds)) = (work, Bounds::read(arguments.by_ref())) else {
        return Some(fail(&format!("nerve starts `nerve {COMMAND}` itself, with limits and pipes; it is no command")));
    };
    Some(match run(*work, bounds, &Access::read(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => fail(&why),
    })
}

fn fail(why: &str) -> ExitCode {
    // A closed stderr cannot be reported.
    let _ = writeln!(io::stderr(), "{why}");
    ExitCode::from(2)
}

fn run(work: Work, bounds: Bounds, access: &Access) -> Result<(), String> {
    close_inherited();
    let mut answers = take_stdout().map_err(|error| format!("stdout cannot be set apart: {error}"))?;
    prefer_as_victim();
    // Only for `ps`.
    let _ = nix::sys::prctl::set_name(c"nerve-sandbox");
    if let (Some(load), Some(library)) = (work.load, &access.library) {
        load(library);
        // The confinement of this process also applies to the threads that it starts later.
        if std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() > 1) {
            return Err(format!("{} starts threads where it is loaded: they cannot be confined", library.display()));
        }
    }
    confine(bounds.memory, bounds.cpu, access)?;
    let (requests, received) = sync_channel(1);
    let stack = usize::try_from(bounds.stack).map_err(|error| error.to_string())?;
    let worker = std::thread::Builder::new().name(work.name.to_owned()).stack_size(stack);
    let worker = worker.spawn(move || {
        // The server has closed the pipe.
        let _ = answer_all(work, bounds.output, &received, &mut answers);
        exit_now();
    });
    worker
        .map_err(|error| format!("a thread with a stack of {} MiB cannot be started: {error}", bounds.stack >> 20))?;
    let mut pipe = io::stdin().lock();
    while let Some(request) = frame::read_request(&mut pipe, bounds.input).map_err(|error| error.to_string())? {
        if requests.send(request).is_err() {
            break;
        }
    }
    exit_now()
}

/// Answers requests; the first one is the setup shared by the others.
fn answer_all(work: Work, limit: u64, requests: &Receiver<Vec<u8>>, answers: &mut File) -> io::Result<()> {
    let mut job = None;
    for request in requests {
        let result = match &mut job {
            None => guarded(|| (work.start)(&request)).map(|started| {
                job = Some(started);
                Vec::new()
            }),
            Some(job) => guarded(|| job(&request)),
        };
        drop(request);
        let result = result.and_then(|bytes| match u64::try_from(bytes.len()) {
            Ok(length) if length <= limit => Ok(bytes),
            _ => Err(format!("its result is larger than {} MiB", limit >> 20)),
        });
        match result {
            Ok(bytes) => frame::write_answer(answers, Status::Done, &bytes)?,
            Err(why) => {
                let bytes = why.as_bytes();
                let bytes = bytes.get(..MAX_REFUSAL_BYTES).unwrap_or(bytes);
                frame::write_answer(answers, Status::Refused, bytes)?;
            }
        }
    }
    Ok(())
}

/// Converts a panic to a refusal: parsing libraries panic on some inputs.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(format!("its reader gave up: {}", words(&*panic))))
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it panicked")
}

/// The pipe for answers. Output of libraries to stdout is discarded.
fn take_stdout() -> io::Result<File> {
    let answers = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let nowhere = File::options().write(true).open("/dev/null")?;
    replace_stdout(&nowhere)?;
    Ok(answers)
}

#[allow(unsafe_code)]
fn replace_stdout(with: &File) -> io::Result<()> {
    // SAFETY: dup2 takes two integers. The first is open, since it is borrowed from a `File`. The second is stdout, which
    // nothing in this process owns or has written to yet.
    let replaced = unsafe { libc::dup2(with.as_raw_fd(), libc::STDOUT_FILENO) };
    nix::errno::Errno::result(replaced).map(drop).map_err(io::Error::from)
}

/// Makes the kernel's OOM killer prefer this process over the server.
fn prefer_as_victim() {
    // Without /proc the kernel decides alone.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
}

/// Closes inherited descriptors without close-on-exec.
#[allow(unsafe_code)]
fn close_inherited() {
    // SAFETY: the call closes descriptors from 3 on and touches no memory. `serve` is called before this process opens
    // anything, so no descriptor of that range has an owner in it. A kernel without the call leaves them open.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
    }
}

/// Exits immediately: no cleanup is required, and exit handlers of libraries may hang while a thread works.
#[allow(unsafe_code)]
fn exit_now() -> ! {
    // SAFETY: `_exit` takes an integer, runs no handlers and does not return.
    unsafe { libc::_exit(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_command_starts_a_helper() {
        let serve = |line: &str| serve(line.split(' ').map(OsString::from), &[]);
        assert!(serve("nerve up").is_none() && serve("nerve").is_none());
        assert!(serve("nerve sandbox").is_some() && serve("nerve sandbox text 1 2 3").is_some());
    }

    #[test]
    fn bounds_round_trip_through_the_command_line() {
        let bounds = Bounds { memory: 1, stack: 2, cpu: 3, input: 4, output: 5 };
        assert_eq!(Bounds::read(bounds.arguments().into_iter().map(OsString::from)), Some(bounds));
        assert_eq!(Bounds::read(["1", "2"].into_iter().map(OsString::from)), None);
    }
}

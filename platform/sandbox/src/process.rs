//! A helper process from the server's side: starts it, sends requests and ends it.

use crate::{
    LATE_COMMIT,
    access::Access,
    error::{Death, DeathLimits, SandboxError},
    frame::{self, ANSWER_HEAD_BYTES, Status},
    helper::{Bounds, COMMAND},
};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    io,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    task::JoinHandle,
};
use tokio_util::task::TaskTracker;

/// Maximum length of stderr kept.
const STDERR_BYTES: usize = 4 << 10;
/// Timeout for reading stderr after the end of a process.
const STDERR_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum size of a refusal.
const MAX_REFUSAL_BYTES: u64 = 64 << 10;
/// Threads of libraries in a helper: its requirements must not depend on the machine's cores.
const THREADS: &str = "1";
/// Copy buffer size.
const COPY_BYTES: usize = 64 << 10;

/// A running helper process.
pub(crate) struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr: Arc<Mutex<Vec<u8>>>,
    /// Ends with the stderr pipe.
    stderr_read: JoinHandle<()>,
    bounds: Bounds,
    /// When it was assigned to its tenant.
    pub(crate) turn: Instant,
    /// Number of answered requests.
    pub(crate) answered: u64,
}

/// The reason why there is no answer.
pub(crate) enum Failure {
    /// The process can continue.
    Refused(String),
    /// The pipe has ended: the process is dead or dying.
    Broken {
        /// Whether the output has a part of the result.
        written: bool,
    },
    /// The process violates the protocol, or its answer is too large.
    Bad(SandboxError),
    /// The result cannot be written to its destination.
    Unwritten(io::Error),
}

impl Process {
    /// Starts a process for `work`. A task of `tracker` reads its stderr.
    pub(crate) fn start(
        program: &Path,
        work: &str,
        bounds: Bounds,
        access: &Access,
        tracker: &TaskTracker,
    ) -> Result<Self, SandboxError> {
        let mut command = Command::new(program);
        command.arg(COMMAND).arg(work).args(bounds.arguments()).args(access.arguments()).current_dir("/").env_clear();
        // Reserved but unused memory of the allocator would count against the process.
        command.env(LATE_COMMIT.0, LATE_COMMIT.1).env("RAYON_NUM_THREADS", THREADS);
        // A terminal's Ctrl-C is for the server only.
        command.process_group(0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let unavailable = |why: String| SandboxError::Unavailable(why);
        let mut child = command.spawn().map_err(|error| unavailable(format!("{}: {error}", program.display())))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(pipe)) = pipes else {
            return Err(unavailable("it has no pipes".to_owned()));
        };
        let stderr = Arc::<Mutex<Vec<u8>>>::default();
        let stderr_read = tracker.spawn(keep_last(pipe, stderr.clone()));
        Ok(Self { child, stdin, stdout, stderr, stderr_read, bounds, turn: Instant::now(), answered: 0 })
    }

    /// Returns whether it is running.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Writes a request, and its result to `output`.
    pub(crate) async fn exchange(
        &mut self,
        request: &[Bytes],
        output: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), Failure> {
        let broken = |_| Failure::Broken { written: false };
        self.send(request).await.map_err(broken)?;
        let mut head = [0; ANSWER_HEAD_BYTES];
        self.stdout.read_exact(&mut head).await.map_err(broken)?;
        let unknown = || Failure::Bad(SandboxError::Unavailable("it breaks the protocol".to_owned()));
        let (status, length) = frame::answer_head(head).ok_or_else(unknown)?;
        match status {
            Status::Done if length <= self.bounds.output => copy(&mut self.stdout, length, output).await?,
            Status::Done => {
                let limit = self.bounds.output;
                return Err(Failure::Bad(SandboxError::TooLarge { what: "its result", limit }));
            }
            Status::Refused if length <= MAX_REFUSAL_BYTES => {
                let mut why = Vec::new();
                copy(&mut self.stdout, length, &mut why).await?;
                self.answered += 1;
                return Err(Failure::Refused(String::from_utf8_lossy(&why).into_owned()));
            }
            Status::Refused => return Err(unknown()),
        }
        self.answered += 1;
        Ok(())
    }

    async fn send(&mut self, request: &[Bytes]) -> io::Result<()> {
        let length: usize = request.iter().map(Bytes::len).sum();
        let length = u64::try_from(length).map_err(io::Error::other)?;
        self.stdin.write_all(&length.to_le_bytes()).await?;
        for part in request {
            self.stdin.write_all(part).await?;
        }
        self.stdin.flush().await
    }

    /// Kills it and waits for its end; returns the cause if it was dead or dying before.
    pub(crate) async fn end(self, dying: bool) -> Death {
        let Self { mut child, stdin, stdout, stderr, stderr_read, bounds, .. } = self;
        // A process whose pipes have ended exits, with the reason in its status.
        drop((stdin, stdout));
        if !dying || tokio::time::timeout(STDERR_TIMEOUT, child.wait()).await.is_err() {
            // Killing fails if it has ended already.
            let _ = child.start_kill();
        }
        let status = child.wait().await.unwrap_or_default();
        let _ = tokio::time::timeout(STDERR_TIMEOUT, stderr_read).await;
        let stderr = stderr.lock();
        let limits = DeathLimits { memory: bounds.memory, stack: bounds.stack, cpu: bounds.cpu };
        Death::of(status, &String::from_utf8_lossy(&stderr), limits)
    }
}

/// Copies a number of bytes in small steps: the largest results go to files.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    length: u64,
    to: &mut (impl AsyncWrite + Unpin),
) -> Result<(), Failure> {
    let (mut left, mut piece) = (length, vec![0; COPY_BYTES]);
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        let read = from.read(piece.get_mut(..room).unwrap_or_default()).await;
        let read = read.map_err(|_| Failure::Broken { written: true })?;
        if read == 0 {
            return Err(Failure::Broken { written: true });
        }
        left = left.saturating_sub(u64::try_from(read).unwrap_or_default());
        to.write_all(piece.get(..read).unwrap_or_default()).await.map_err(Failure::Unwritten)?;
    }
    to.flush().await.map_err(Failure::Unwritten)
}

/// Reads a pipe to its end, and keeps its last bytes.
async fn keep_last(mut pipe: ChildStderr, kept: Arc<Mutex<Vec<u8>>>) {
    let mut piece = [0; 1024];
    while let Ok(read @ 1..) = pipe.read(&mut piece).await {
        let mut kept = kept.lock();
        kept.extend(piece.iter().take(read));
        let surplus = kept.len().saturating_sub(STDERR_BYTES);
        kept.drain(..surplus);
    }
}

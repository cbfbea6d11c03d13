//! A pool of helper processes within one budget: assigns helpers to requests, and ends them.

use crate::{
    access::Access,
    error::{Death, SandboxError},
    helper::Bounds,
    process::{Failure, Process},
    queue::{Idle, Key, Queue, Step},
};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{io::AsyncWrite, runtime::Handle, sync::oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// This binary, even if its file was replaced.
const THIS_BINARY: &str = "/proc/self/exe";
/// Maximum idle time of a helper.
const IDLE: Duration = Duration::from_secs(5);
/// Minimum CPU time of a helper, in seconds.
const MIN_CPU: u64 = 10;

/// The limits of a pool.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The binary whose `main` begins with [`serve`](crate::serve).
    pub program: PathBuf,
    /// Memory of all helpers, in bytes.
    pub memory: u64,
    /// Maximum number of helpers.
    pub helpers: usize,
    /// Maximum idle time of a helper.
    pub idle: Duration,
}

impl Settings {
    /// Settings for helpers of this binary.
    pub fn new(memory: u64, helpers: usize) -> Self {
        Self { program: THIS_BINARY.into(), memory, helpers, idle: IDLE }
    }
}

/// The limits of one helper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory, in bytes, reserved from the pool. A helper that requires more than the pool has runs alone: it starts when no other
    /// helper runs, and blocks others until it has ended.
    pub memory: u64,
    /// The stack of the working thread, in bytes; a part of the memory when used.
    pub stack: u64,
    /// Maximum size of a request.
    pub input: u64,
    /// Maximum size of a result.
    pub output: u64,
}

/// The setup shared by all requests to a helper, such as a tokenizer. It is sent once, when the helper starts.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    digest: u64,
    bytes: Bytes,
    access: Access,
}

impl Setup {
    /// A setup with these bytes.
    pub fn new(bytes: Bytes) -> Self {
        Self::with_access(bytes, Access::default())
    }

    /// A setup with these bytes, for a helper that may use these files.
    pub fn with_access(bytes: Bytes, access: Access) -> Self {
        let mut hasher = DefaultHasher::new();
        (&bytes, &access).hash(&mut hasher);
        Self { digest: hasher.finish(), bytes, access }
    }
}

/// A request to a helper.
#[derive(Debug, Clone)]
pub struct Request {
    /// The name of the [`Work`](crate::Work).
    pub work: &'static str,
    /// The owner of the bytes: no helper serves two tenants.
    pub tenant: String,
    /// The setup of the helper.
    pub setup: Setup,
    /// The request's bytes, in parts.
    pub parts: Vec<Bytes>,
    /// The limits of the helper.
    pub limits: Limits,
    /// Timeout from the assignment of a helper; then the helper is killed.
    pub timeout: Duration,
}

/// A pool of helper processes; cheap to clone.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    settings: Settings,
    state: Mutex<State>,
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct State {
    queue: Queue<Process, oneshot::Sender<Lease>>,
    /// Whether a task ends idle helpers.
    sweeping: bool,
}

impl Pool {
    /// A pool without helpers, which are started on the current Tokio runtime.
    pub fn new(settings: Settings) -> Self {
        let queue = Queue::new(settings.memory, settings.helpers);
        Self(Arc::new(Shared {
            settings,
            state: Mutex::new(State { queue, sweeping: false }),
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// Runs the request in a helper. Dropping the future kills that helper.
    ///
    /// # Errors
    /// If the work rejects the request, or the helper died.
    pub async fn run(&self, request: &Request) -> Result<Vec<u8>, SandboxError> {
        let mut result = Vec::new();
        self.run_into(request, &mut result).await?;
        Ok(result)
    }

    /// Runs the request, and writes the result to `output` in pieces.
    ///
    /// # Errors
    /// As [`run`](Self::run), or if `output` cannot be written to. It may then contain a part of the result.
    pub async fn run_into(
        &self,
        request: &Request,
        output: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), SandboxError> {
        let size: usize = request.parts.iter().map(Bytes::len).sum();
        if u64::try_from(size).unwrap_or(u64::MAX) > request.limits.input {
            return Err(SandboxError::TooLarge { what: "it", limit: request.limits.input });
        }
        loop {
            let mut lease = self.0.lease(request).await?;
            // The cause may be memory left over from earlier requests.
            let used = lease.process.as_ref().is_some_and(|process| process.answered > 1);
            let working = tokio::time::timeout(request.timeout, lease.work(request, output));
            let failure = match working.await {
                Ok(Ok(())) => {
                    lease.give_back();
                    return Ok(());
                }
                Ok(Err(failure)) => failure,
                Err(_) => return Err(SandboxError::Timeout(request.timeout)),
            };
            match failure {
                Failure::Refused(why) => {
                    lease.give_back();
                    return Err(SandboxError::Refused(why));
                }
                Failure::Broken { written } => {
                    let death = lease.bury().await;
                    if !used || written {
                        return Err(SandboxError::Died(death));
                    }
                    tracing::debug!(%death, work = request.work, "a reused helper process died");
                }
                Failure::Bad(error) => return Err(error),
                Failure::Unwritten(error) => return Err(SandboxError::Unavailable(error.to_string())),
            }
        }
    }

    /// Ends all idle helpers, and waits until all have ended. Running requests continue until then.
    pub async fn close(&self) {
        self.0.stop.cancel();
        self.0.end_idle(Duration::ZERO);
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Shared {
    /// A helper for the request, or its share of the budget to start one.
    async fn lease(self: &Arc<Self>, request: &Request) -> Result<Lease, SandboxError> {
        let key = Arc::new(Key {
            work: request.work,
            tenant: request.tenant.clone(),
            setup: request.setup.digest,
            memory: request.limits.memory,
            cpu: request.timeout.as_secs().saturating_mul(2).max(MIN_CPU),
        });
        let (waiter, granted) = oneshot::channel();
        self.state.lock().queue.wait(key, waiter);
        self.advance();
        granted.await.map_err(|_| SandboxError::Unavailable("the server is stopping".to_owned()))
    }

    /// Makes progress for waiting requests.
    fn advance(self: &Arc<Self>) {
        loop {
            let step = {
                let mut state = self.state.lock();
                state.queue.keep_waiting(|waiter| !waiter.is_closed());
                state.queue.step(Instant::now())
            };
            let (waiter, lease) = match step {
                None => return,
                Some(Step::End(idle)) => {
                    self.end(idle);
                    continue;
                }
                Some(Step::Start(waiter, key)) => (waiter, self.leased(key, None)),
                Some(Step::Reuse(waiter, mut idle)) => {
                    idle.begin_turn_if_rested(Instant::now());
                    (waiter, self.leased(idle.key, Some(idle.process)))
                }
            };
            // The waiter may have been cancelled at this moment.
            if let Err(unwanted) = waiter.send(lease) {
                unwanted.put_back();
            }
        }
    }

    fn leased(self: &Arc<Self>, key: Arc<Key>, process: Option<Process>) -> Lease {
        Lease { shared: self.clone(), key, process, held: true }
    }

    fn end_idle(self: &Arc<Self>, after: Duration) {
        let then = Instant::now().checked_sub(after);
        let expired = then.map(|then| self.state.lock().queue.expire(then)).unwrap_or_default();
        for idle in expired {
            self.end(idle);
        }
    }

    fn end(self: &Arc<Self>, idle: Idle<Process>) {
        let shared = self.clone();
        let ending = async move {
            idle.process.end(false).await;
            shared.state.lock().queue.ended(&idle.key);
            shared.advance();
        };
        self.tasks.spawn_on(ending, &self.runtime);
    }

    /// Starts the task that ends idle helpers, until there are none.
    fn sweep(self: &Arc<Self>) {
        {
            let mut state = self.state.lock();
            if state.sweeping || !state.queue.has_idle() {
                return;
            }
            state.sweeping = true;
        }
        let shared = self.clone();
        let sweeping = async move {
            let pause = shared.settings.idle / 2;
            while shared.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
                shared.end_idle(shared.settings.idle);
                let mut state = shared.state.lock();
                if !state.queue.has_idle() {
                    state.sweeping = false;
                    return;
                }
            }
            shared.end_idle(Duration::ZERO);
        };
        self.tasks.spawn_on(sweeping, &self.runtime);
    }
}

/// A share of the budget, with its helper. Dropping it kills the helper: the request was cancelled.
struct Lease {
    shared: Arc<Shared>,
    key: Arc<Key>,
    process: Option<Process>,
    /// Whether the queue counts it as busy.
    held: bool,
}

impl Lease {
    async fn work(&mut self, request: &Request, output: &mut (impl AsyncWrite + Unpin)) -> Result<(), Failure> {
        if self.process.as_mut().is_some_and(|process| !process.runs()) {
            self.process = None;
        }
        let process = match &mut self.process {
            Some(process) => process,
            None => {
                let Limits { stack, input, output, .. } = request.limits;
                // The setup is sent like a request.
                let setup = u64::try_from(request.setup.bytes.len()).unwrap_or(u64::MAX);
                let bounds =
                    Bounds { memory: self.key.memory, stack, cpu: self.key.cpu, input: input.max(setup), output };
                let Shared { settings, tasks, .. } = &*self.shared;
                let started = Process::start(&settings.program, request.work, bounds, &request.setup.access, tasks);
                let started = started.map_err(Failure::Bad)?;
                let process = self.process.insert(started);
                let setup = [request.setup.bytes.clone()];
                match process.exchange(&setup, &mut Vec::new()).await {
                    // A helper without setup is useless.
                    Err(Failure::Refused(why)) => return Err(Failure::Bad(SandboxError::Refused(why))),
                    ready => ready?,
                }
                process
            }
        };
        process.exchange(&request.parts, output).await
    }

    /// Returns the helper for the next request.
    fn give_back(self) {
        let shared = self.shared.clone();
        self.put_back();
        shared.advance();
        shared.sweep();
    }

    fn put_back(mut self) {
        if let Some(process) = self.process.take() {
            self.held = false;
            self.shared.state.lock().queue.returned(self.key.clone(), process, Instant::now());
        }
    }

    /// Waits for the end of the helper, and returns the cause.
    async fn bury(mut self) -> Death {
        match self.process.take() {
            Some(process) => process.end(true).await,
            None => Death::Exited("no process".to_owned()),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        let (shared, key, process) = (self.shared.clone(), self.key.clone(), self.process.take());
        let freed = move |shared: Arc<Shared>| {
            shared.state.lock().queue.lost(&key);
            shared.advance();
        };
        match process {
            None => freed(shared),
            Some(process) => {
                let runtime = shared.runtime.clone();
                let tasks = shared.tasks.clone();
                let ending = async move {
                    process.end(false).await;
                    freed(shared);
                };
                tasks.spawn_on(ending, &runtime);
            }
        }
    }
}

//! Connection threads: each has a single-threaded runtime and its own connection to NATS.
//!
//! A webhook takes some microseconds of CPU time. If any thread could serve any connection, moving connections, queues and locks between
//! cores would take half as much again. So a connection stays on one thread, and the webhooks of a thread are published over a
//! connection to NATS that the same thread drives.
//!
//! Requests that may take long run on the shared runtime, so that they do not delay other connections: see `thread` in the route table.

use crate::Gateway;
use nerve_broker::NatsSettings;
use nerve_broker::bus::{Bus, BusError, FastPublisher};
use std::{io, sync::Arc, thread, time::Duration};
use tokio::{
    net::TcpStream,
    runtime,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// Maximum time for blocking work of a thread, such as a DNS lookup, to end at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);
/// Accepted connections per thread that it has not polled yet. In a flood, a connection that was accepted long before it is served would
/// be idle longest, and be evicted first.
const MAX_UNPOLLED: usize = 16;

/// The connection threads of a gateway; they end when this is dropped.
pub struct ConnectionThreads {
    threads: Vec<ConnectionThread>,
    stop: DropGuard,
}

struct ConnectionThread {
    handle: ThreadHandle,
    bus: Bus,
    batches: FastPublisher,
    thread: thread::JoinHandle<()>,
}

/// Moves connections to a thread.
#[derive(Clone)]
pub(crate) struct ThreadHandle {
    runtime: runtime::Handle,
    unpolled: Arc<Semaphore>,
}

impl ThreadHandle {
    fn new(runtime: runtime::Handle) -> Self {
        Self { runtime, unpolled: Arc::new(Semaphore::new(MAX_UNPOLLED)) }
    }

    /// Waits until the thread can take another connection; the permit is held until it polls the connection.
    pub(crate) async fn ready(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.unpolled).acquire_owned().await.ok()
    }

    /// Registers a connection that was accepted on another thread with this thread's runtime.
    pub(crate) fn adopt(&self, stream: TcpStream) -> io::Result<TcpStream> {
        let stream = stream.into_std()?;
        let _guard = self.runtime.enter();
        TcpStream::from_std(stream)
    }

    pub(crate) fn runtime(&self) -> &runtime::Handle {
        &self.runtime
    }
}

/// Why the connection threads cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// The system refuses a thread or its event queue.
    #[error("a thread of the gateway cannot be started")]
    Thread(#[source] io::Error),
    /// The broker cannot be used.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl ConnectionThreads {
    /// Starts `count` threads. `tasks` tracks their tasks, which run until `end`.
    ///
    /// # Errors
    /// [`ThreadError`] if a thread cannot start or NATS refuses its connection.
    pub async fn start(
        count: usize,
        (bus, nats): (&Bus, &NatsSettings),
        end: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Self, ThreadError> {
        let stop = CancellationToken::new();
        let mut started = Self { threads: Vec::with_capacity(count), stop: stop.clone().drop_guard() };
        for number in 1..=count {
            let (runtime, thread) = start_thread(number, stop.clone()).map_err(ThreadError::Thread)?;
            let (bus, nats, end, followers) = (bus.clone(), nats.clone(), end.clone(), tasks.clone());
            let connect = async move {
                let bus = bus.connect_shared(&nats, "nerve gateway").await?;
                let batches = FastPublisher::start(&bus, end, &followers).await?;
                Ok::<_, BusError>((bus, batches))
            };
            let connected = tasks.spawn_on(connect, &runtime).await;
            let (bus, batches) = connected.map_err(|error| ThreadError::Thread(error.into()))??;
            started.threads.push(ConnectionThread { handle: ThreadHandle::new(runtime), bus, batches, thread });
        }
        Ok(started)
    }

    /// One thread, for tests without NATS.
    #[cfg(test)]
    pub(crate) fn for_tests(gateway: &Gateway) -> Self {
        let stop = CancellationToken::new();
        let (runtime, thread) = start_thread(1, stop.clone()).unwrap();
        let (bus, batches) = (gateway.bus().clone(), gateway.batches().clone());
        Self {
            threads: vec![ConnectionThread { handle: ThreadHandle::new(runtime), bus, batches, thread }],
            stop: stop.drop_guard(),
        }
    }

    /// The gateway as each thread has it, with the thread's batches.
    pub(crate) fn gateways(&self, gateway: &Gateway) -> Vec<(ThreadHandle, Gateway)> {
        self.threads.iter().map(|thread| (thread.handle.clone(), gateway.with(thread.batches.clone()))).collect()
    }

    /// Flushes the threads' connections to NATS and ends the threads. Nothing may run on them any more.
    pub async fn end(self) {
        for thread in &self.threads {
            if let Err(error) = thread.bus.flush().await {
                tracing::debug!(%error, "a thread's connection to NATS ended before it was flushed");
            }
        }
        drop(self.stop);
        let threads = self.threads.into_iter().map(|thread| thread.thread);
        // Each ends within SHUTDOWN_TIMEOUT.
        let joined = tokio::task::spawn_blocking(move || threads.for_each(|thread| drop(thread.join()))).await;
        if let Err(error) = joined {
            tracing::debug!(%error, "the connection threads were not joined");
        }
    }
}

fn start_thread(number: usize, stop: CancellationToken) -> io::Result<(runtime::Handle, thread::JoinHandle<()>)> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let thread = thread::Builder::new().name(format!("gateway-{number}")).spawn(move || {
        runtime.block_on(stop.cancelled());
        runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    })?;
    Ok((handle, thread))
}

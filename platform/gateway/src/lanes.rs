//! Threads that serve connections, each with a way of its own to the broker.
//!
//! A webhook is some microseconds of work. Where any thread may serve any connection, half as much again goes into what
//! then moves between the cores: the connection, the queues, the locks. So a connection stays on one thread, a lane, and
//! the webhooks of a lane go to the log over a connection to NATS that is served on the same thread.
//!
//! What may take long runs on the threads that the whole server shares, so that it holds up no lane: every request but
//! webhooks and posted events, and of these the large ones.

use super::Gateway;
use nerve_broker::NatsSettings;
use nerve_broker::bus::{Batches, Bus, BusError};
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

/// How long what a lane has handed to other threads, such as the look-up of a name, may take to end.
const LAST_WORK: Duration = Duration::from_millis(500);
/// Connections that are accepted, and that their lane has not seen yet. In a flood, whoever is accepted long before it is
/// served would have waited longest, and be the first to give way.
const UNSEEN: usize = 16;

/// The lanes of a server; they end when this is dropped.
pub struct Lanes {
    lanes: Vec<Lane>,
    stop: DropGuard,
}

/// One thread.
struct Lane {
    way: Way,
    bus: Bus,
    batches: Batches,
    thread: thread::JoinHandle<()>,
}

/// How connections come onto a lane.
#[derive(Clone)]
pub(super) struct Way {
    runtime: runtime::Handle,
    unseen: Arc<Semaphore>,
}

impl Way {
    fn onto(runtime: runtime::Handle) -> Self {
        Self { runtime, unseen: Arc::new(Semaphore::new(UNSEEN)) }
    }

    /// A turn to come onto the lane, held until the lane has seen the connection.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        Arc::clone(&self.unseen).acquire_owned().await.ok()
    }

    /// Moves a connection that was accepted elsewhere onto the lane.
    pub(super) fn take(&self, stream: TcpStream) -> io::Result<TcpStream> {
        let stream = stream.into_std()?;
        let _on_lane = self.runtime.enter();
        TcpStream::from_std(stream)
    }

    pub(super) fn runtime(&self) -> &runtime::Handle {
        &self.runtime
    }
}

/// Why there are no lanes.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// The system gives no thread, or no way to wait for sockets.
    #[error("a thread of the gateway cannot be started")]
    Thread(#[source] io::Error),
    /// The broker cannot be used.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl Lanes {
    /// Starts so many lanes. What follows the broker on them is tracked by `tasks`, and goes on until `end`.
    pub async fn start(
        count: usize,
        (bus, nats): (&Bus, &NatsSettings),
        end: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Self, LaneError> {
        let stop = CancellationToken::new();
        let mut lanes = Self { lanes: Vec::with_capacity(count), stop: stop.clone().drop_guard() };
        for number in 1..=count {
            let (runtime, thread) = start_thread(number, stop.clone()).map_err(LaneError::Thread)?;
            let (bus, nats, end, followers) = (bus.clone(), nats.clone(), end.clone(), tasks.clone());
            let connect = async move {
                let bus = bus.connect_beside(&nats, "nerve gateway").await?;
                let batches = Batches::start(&bus, end, &followers).await?;
                Ok::<_, BusError>((bus, batches))
            };
            let connected = tasks.spawn_on(connect, &runtime).await;
            let (bus, batches) = connected.map_err(|error| LaneError::Thread(error.into()))??;
            lanes.lanes.push(Lane { way: Way::onto(runtime), bus, batches, thread });
        }
        Ok(lanes)
    }

    /// One lane, for tests without a broker.
    #[cfg(test)]
    pub(super) fn for_tests(gateway: &Gateway) -> Self {
        let stop = CancellationToken::new();
        let (runtime, thread) = start_thread(1, stop.clone()).unwrap();
        let (bus, batches) = (gateway.bus().clone(), gateway.batches().clone());
        Self { lanes: vec![Lane { way: Way::onto(runtime), bus, batches, thread }], stop: stop.drop_guard() }
    }

    /// This gateway for each lane, and where its connections are served.
    pub(super) fn gateways(&self, gateway: &Gateway) -> Vec<(Way, Gateway)> {
        self.lanes.iter().map(|lane| (lane.way.clone(), gateway.with(lane.batches.clone()))).collect()
    }

    /// Ends the lanes, once nothing goes on on them and what was sent has left.
    pub async fn end(self) {
        for lane in &self.lanes {
            if let Err(error) = lane.bus.flush().await {
                tracing::debug!(%error, "a lane's connection ended before the last bytes left");
            }
        }
        drop(self.stop);
        let threads = self.lanes.into_iter().map(|lane| lane.thread);
        // Each ends within LAST_WORK.
        let joined = tokio::task::spawn_blocking(move || threads.for_each(|thread| drop(thread.join()))).await;
        if let Err(error) = joined {
            tracing::debug!(%error, "the lanes were not waited for");
        }
    }
}

fn start_thread(number: usize, stop: CancellationToken) -> io::Result<(runtime::Handle, thread::JoinHandle<()>)> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let thread = thread::Builder::new().name(format!("gateway-{number}")).spawn(move || {
        runtime.block_on(stop.cancelled());
        runtime.shutdown_timeout(LAST_WORK);
    })?;
    Ok((handle, thread))
}

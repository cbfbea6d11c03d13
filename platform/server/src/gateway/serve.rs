//! Serves connections: bounded in number, patient with nobody, drained at the end.

use super::Gateway;
use axum::Router;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

/// The longest that a request's head may take to arrive, and that a connection stays open between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a silent HTTP/2 connection is asked whether it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Requests at once on one HTTP/2 connection.
const HTTP2_STREAMS: u32 = 256;
/// The most that the headers of an HTTP/2 request may hold, in bytes.
const HTTP2_HEADERS: u32 = 64 << 10;
/// How long shutdown waits for requests that are being answered.
const DRAIN: Duration = Duration::from_secs(10);
/// The wait before accepting again when the machine is out of files or memory.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Runs hyper's own tasks where they are tracked, and no longer than their connections.
#[derive(Clone)]
struct Tracked {
    tasks: TaskTracker,
    end: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let end = self.end.clone();
        self.tasks.spawn(async move { end.run_until_cancelled(task).await });
    }
}

/// Serves `gateway` on `listener` until its shutdown, then waits for what is being answered, at most 10 s.
pub async fn serve(listener: TcpListener, gateway: Gateway, tasks: TaskTracker) -> io::Result<()> {
    serve_patiently(listener, gateway, tasks, HEAD_TIMEOUT).await
}

/// [`serve`], with the time that the first head of a connection may take.
pub(super) async fn serve_patiently(
    listener: TcpListener,
    gateway: Gateway,
    tasks: TaskTracker,
    head_timeout: Duration,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    let capacity = gateway.capacity();
    let slots = Arc::new(Semaphore::new(capacity));
    let shutdown = gateway.shutdown().clone();
    let end = CancellationToken::new();
    let builder = builder(Tracked { tasks: tasks.clone(), end: end.clone() });
    let server = Server { builder, router: gateway.router(), shutdown: shutdown.clone(), head_timeout };
    tracing::info!(%address, "the gateway listens");
    while let Some((stream, slot)) = shutdown.run_until_cancelled(accept(&listener, &slots)).await {
        tasks.spawn(server.clone().drive(stream, slot));
    }
    drop(listener);
    // Every connection gives its slot back within DRAIN.
    let all = u32::try_from(capacity).unwrap_or(u32::MAX);
    let _ = slots.acquire_many(all).await;
    end.cancel();
    tracing::info!(%address, "the gateway has stopped");
    Ok(())
}

/// The next connection, once there is a slot for it: callers past the bound wait in the listener's queue.
async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    let slot = Arc::clone(slots).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, slot),
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

fn builder(executor: Tracked) -> Builder<Tracked> {
    let mut builder = Builder::new(executor);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_header_list_size(HTTP2_HEADERS);
    builder
}

#[derive(Clone)]
struct Server {
    builder: Builder<Tracked>,
    router: Router,
    shutdown: CancellationToken,
    head_timeout: Duration,
}

impl Server {
    async fn drive(self, stream: TcpStream, _slot: Option<OwnedSemaphorePermit>) {
        // Small frames of a stream of events must not wait for each other.
        let _ = stream.set_nodelay(true);
        let begun = Arc::new(AtomicBool::new(false));
        let begins = Arc::clone(&begun);
        let router = self.router.map_request(move |request: http::Request<Incoming>| {
            begins.store(true, Ordering::Relaxed);
            request
        });
        let connection = self.builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = never_begun(self.head_timeout, &begun) => return,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended badly");
        }
    }
}

/// Returns when no request came in time. Hyper's own timer starts only once it knows the protocol, and a caller
/// that sends nothing never tells it.
async fn never_begun(wait: Duration, begun: &AtomicBool) {
    tokio::time::sleep(wait).await;
    if begun.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

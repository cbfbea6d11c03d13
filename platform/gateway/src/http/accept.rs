//! Accepts connections, limits them, enforces timeouts and drains them at shutdown.
//!
//! A connection is idle while its peer has something to send or to read. It is active while a complete request on it has no response yet
//! or its response is a stream. See [`admission`](crate::http::admission) for the eviction of idle connections.

use crate::{
    Gateway, OVERLOAD_RETRY_AFTER,
    http::{
        admission::{Slot, SlotLimiter},
        completion::{hold_until_sent, on_complete},
        forwarded::Peer,
        local_user::Owner,
        problem::{Problem, ProblemType},
        threads::ConnectionThreads,
        tls::Tls,
    },
    routes,
    webhooks::receive,
};
use axum::{Router, body::HttpBody, extract::Request, response::Response};
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use parking_lot::Mutex;
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime::Handle,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tower::ServiceExt;

/// Maximum time for a request head to arrive, and between requests of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval and timeout of HTTP/2 keep-alive pings.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// Maximum concurrent requests per HTTP/2 connection.
const MAX_HTTP2_STREAMS: u32 = 256;
/// Maximum size of a request head, in bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HTTP2_HEAD_BYTES: u32 = 64 << 10;
/// Maximum time for requests in flight to end at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before the next accept if the system is out of files or memory and no connection can be evicted.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Runs hyper's tasks under the tracker until the connections end.
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

/// A listening socket, with TLS or without.
pub struct Listener {
    /// The socket.
    pub listener: TcpListener,
    /// The certificate; plain HTTP if `None`.
    pub tls: Option<Tls>,
}

/// Serves `gateway` on `listener` until its shutdown, then waits up to 10 s for requests in flight. Connections run on `threads`; requests run
/// where the route table says, on those or on the runtime that this is called on.
///
/// # Errors
/// When the socket or the certificate cannot be used.
pub async fn serve(
    listener: Listener,
    gateway: Gateway,
    threads: &ConnectionThreads,
    tasks: TaskTracker,
) -> io::Result<()> {
    serve_with_head_timeout(listener, gateway, threads, (tasks, HEAD_TIMEOUT)).await
}

/// [`serve`], with the maximum time for the first request head of a connection to arrive.
pub(crate) async fn serve_with_head_timeout(
    listener: Listener,
    gateway: Gateway,
    threads: &ConnectionThreads,
    (tasks, head_timeout): (TaskTracker, Duration),
) -> io::Result<()> {
    let Listener { listener, tls } = listener;
    let address = listener.local_addr()?;
    let limiter = SlotLimiter::new("connection", gateway.max_connections());
    let shutdown = gateway.shutdown().clone();
    let end = CancellationToken::new();
    let builder = builder(Tracked { tasks: tasks.clone(), end: end.clone() });
    let acceptor = tls.as_ref().map(Tls::acceptor).transpose().map_err(io::Error::other)?;
    if let Some(tls) = tls {
        tasks.spawn(tls.follow(end.clone()));
    }
    tracing::info!(%address, tls = acceptor.is_some(), "the gateway is listening");
    let checks_local_user = gateway.checks_local_user();
    let router = gateway.router();
    let shared = SharedRuntime { router, tasks: tasks.clone(), runtime: Handle::current() };
    let servers = threads.gateways(&gateway).into_iter().map(|(thread, gateway)| {
        let dispatcher = Dispatcher { gateway, shared: shared.clone() };
        let (builder, shutdown, acceptor) = (builder.clone(), shutdown.clone(), acceptor.clone());
        (thread, Server { builder, dispatcher, shutdown, head_timeout, acceptor, checks_local_user })
    });
    let servers: Vec<_> = servers.collect();
    for (thread, server) in servers.iter().cycle() {
        let next = async { (thread.ready().await, accept(&listener, &limiter).await) };
        let Some((permit, (stream, peer, slot))) = shutdown.run_until_cancelled(next).await else { break };
        match thread.adopt(stream) {
            Ok(stream) => {
                let driven = server.clone().drive(stream, peer, slot);
                let polled = async move {
                    drop(permit);
                    driven.await;
                };
                tasks.spawn_on(polled, thread.runtime());
            }
            Err(error) => tracing::warn!(%error, "a connection was closed: its thread cannot register it"),
        }
    }
    drop(listener);
    // Every connection releases its slot within DRAIN_TIMEOUT.
    limiter.drained().await;
    end.cancel();
    tracing::info!(%address, "the gateway has stopped");
    Ok(())
}

/// The next connection and its slot. While all open connections are active, clients wait in the socket's queue.
async fn accept(listener: &TcpListener, limiter: &SlotLimiter) -> (TcpStream, SocketAddr, Slot) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, limiter.acquire().await),
            Err(error) => {
                // If the system is out of files, closing an idle connection frees one.
                let freed = limiter.evict();
                tracing::warn!(%error, freed, "accepting a connection failed");
                tokio::time::sleep(if freed { Duration::ZERO } else { ACCEPT_RETRY_INTERVAL }).await;
            }
        }
    }
}

fn builder(executor: Tracked) -> Builder<Tracked> {
    let mut builder = Builder::new(executor);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_INTERVAL)
        .max_concurrent_streams(MAX_HTTP2_STREAMS)
        .max_header_list_size(MAX_HTTP2_HEAD_BYTES);
    builder
}

#[derive(Clone)]
struct Server {
    builder: Builder<Tracked>,
    dispatcher: Dispatcher,
    shutdown: CancellationToken,
    head_timeout: Duration,
    acceptor: Option<TlsAcceptor>,
    /// Whether access depends on the local user of a connection.
    checks_local_user: bool,
}

/// The local user of a connection.
fn owner(stream: &TcpStream, peer: SocketAddr) -> Option<Owner> {
    let found = stream.local_addr().and_then(|here| Owner::of(peer, here));
    // An unknown user is refused.
    Some(found.unwrap_or_else(|error| {
        tracing::debug!(%error, "the kernel does not report the user of this connection");
        Owner::Gone
    }))
}

impl Server {
    async fn drive(self, stream: TcpStream, peer: SocketAddr, slot: Slot) {
        // Small frames of an event stream must not wait for each other.
        let _ = stream.set_nodelay(true);
        let connection =
            Arc::new(Connection { slot, active_requests: Mutex::new(0), has_request: AtomicBool::new(false) });
        let owner = if self.checks_local_user { owner(&stream, peer) } else { None };
        let peer = Peer { address: peer.ip(), tls: self.acceptor.is_some(), owner };
        let Some(acceptor) = self.acceptor.clone() else { return self.run(stream, peer, connection).await };
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
        let accepted = tokio::select! {
            accepted = handshake => accepted,
            () = connection.slot.evicted() => return,
            () = self.shutdown.cancelled() => return,
        };
        match accepted {
            Ok(Ok(stream)) => self.run(stream, peer, connection).await,
            Ok(Err(error)) => tracing::debug!(%error, client = %peer.address, "TLS handshake failed"),
            Err(_) => tracing::debug!(client = %peer.address, "TLS handshake timed out"),
        }
    }

    /// Runs HTTP on a connection until it ends.
    async fn run<S>(self, stream: S, peer: Peer, connection: Arc<Connection>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (dispatcher, received) = (self.dispatcher, Arc::clone(&connection));
        let service = service_fn(move |request| dispatcher.dispatch(peer, received.begin_request(), request));
        let served = self.builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(served);
        // The connection is polled several times per request. These futures are polled only when they are woken themselves.
        let given_up = async {
            tokio::select! {
                () = connection.slot.evicted() => true,
                () = no_request_within(self.head_timeout, &connection.has_request) => true,
                () = self.shutdown.cancelled() => false,
            }
        };
        let mut end = std::pin::pin!(FuturesUnordered::from_iter([given_up]));
        let ended = tokio::select! {
            ended = served.as_mut() => ended,
            Some(given_up) = end.next() => {
                if given_up {
                    return;
                }
                served.as_mut().graceful_shutdown();
                tokio::time::timeout(DRAIN_TIMEOUT, served).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection failed");
        }
    }
}

struct Connection {
    slot: Slot,
    /// Complete requests without a response, or whose response is still being streamed.
    active_requests: Mutex<usize>,
    /// Whether a request head has arrived.
    has_request: AtomicBool,
}

/// A request on a connection, until its response is complete.
struct InFlightRequest {
    connection: Arc<Connection>,
    is_complete: AtomicBool,
}

impl Connection {
    /// A request head has arrived.
    fn begin_request(self: &Arc<Self>) -> Arc<InFlightRequest> {
        self.has_request.store(true, Ordering::Relaxed);
        let active = self.active_requests.lock();
        if *active == 0 {
            self.slot.set_idle();
        }
        Arc::new(InFlightRequest { connection: Arc::clone(self), is_complete: AtomicBool::new(false) })
    }
}

impl InFlightRequest {
    /// The request is complete. Returns `false` if the connection was evicted before.
    fn complete(&self) -> bool {
        let mut active = self.connection.active_requests.lock();
        let may_proceed = self.connection.slot.activate();
        if may_proceed && !self.is_complete.swap(true, Ordering::Relaxed) {
            *active += 1;
        }
        may_proceed
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        if !*self.is_complete.get_mut() {
            return;
        }
        let mut active = self.connection.active_requests.lock();
        *active = active.saturating_sub(1);
        if *active == 0 {
            self.connection.slot.set_idle();
        }
    }
}

/// Runs a request on the connection's thread or on the shared runtime.
#[derive(Clone)]
struct Dispatcher {
    gateway: Gateway,
    shared: SharedRuntime,
}

/// The runtime of all connections, where a request that takes long delays no other connection.
#[derive(Clone)]
struct SharedRuntime {
    router: Router,
    tasks: TaskTracker,
    runtime: Handle,
}

impl SharedRuntime {
    /// Runs a request on the connection's thread, by the same routes.
    fn run_inline(&self, request: Request) -> impl Future<Output = Response> + use<> {
        self.router.clone().oneshot(request).map(|result| {
            let Ok(response) = result;
            response
        })
    }

    /// Runs a request. Dropping the future aborts the request.
    fn run(&self, request: Request) -> impl Future<Output = Response> + use<> {
        let format = routes::error_format(request.uri().path());
        let task = self.tasks.spawn_on(self.router.clone().oneshot(request), &self.runtime);
        AbortOnDropHandle::new(task).map(move |result| match result {
            Ok(Ok(response)) => response,
            Err(_) => {
                let detail = "the server is shutting down";
                Problem::retry_after(ProblemType::NotServing, detail, OVERLOAD_RETRY_AFTER).respond(format)
            }
        })
    }
}

impl Dispatcher {
    /// Not an async function, whose future would hold the request twice.
    fn dispatch(
        &self,
        peer: Peer,
        in_flight: Arc<InFlightRequest>,
        mut request: http::Request<Incoming>,
    ) -> impl Future<Output = Result<Response, Infallible>> + use<> {
        let completed = Arc::clone(&in_flight);
        let completed = move || completed.complete();
        let response = match receive::source_of_small(&request) {
            Some(source) => self.gateway.clone().respond_to_webhook(source, peer, request, completed).left_future(),
            None => {
                request.extensions_mut().insert(peer);
                let runs_inline = routes::runs_on_connection(&request);
                let request = request.map(|body| on_complete(body, completed));
                if runs_inline {
                    self.shared.run_inline(request).boxed().left_future()
                } else {
                    self.shared.run(request).right_future()
                }
                .right_future()
            }
        };
        response.map(move |response| {
            // A streamed response keeps its connection active. A complete one waits for its reader, who may never read it.
            let is_complete = response.body().size_hint().exact().is_some();
            Ok(if is_complete { response } else { response.map(|body| hold_until_sent(body, in_flight)) })
        })
    }
}

/// Returns if no request head arrives in time. Hyper's timer starts only once it knows the protocol, which takes the first bytes.
async fn no_request_within(timeout: Duration, has_request: &AtomicBool) {
    tokio::time::sleep(timeout).await;
    if has_request.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;

//! Serves connections: bounded in number, patient with nobody, drained at the end.
//!
//! A connection waits while its peer has something to send or to read, and works while a request on it is whole and not
//! answered yet, or answered by a stream; see [`places`](super::places) for what becomes of those that wait when there are too many.

use super::{
    Gateway, LATER, events,
    forwarded::Peer,
    hooks,
    lanes::Lanes,
    local_user::Owner,
    places::{Place, Places},
    problem::Problem,
    tls::Tls,
    watched::{arriving, leaving},
};
use axum::{
    Router,
    body::HttpBody,
    extract::Request,
    response::{IntoResponse, Response},
};
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
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

/// The longest that a request's head may take to arrive, and that a connection stays open between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest that a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a silent HTTP/2 connection is asked whether it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Requests at once on one HTTP/2 connection.
const HTTP2_STREAMS: u32 = 256;
/// The most that the head of a request may hold, in bytes.
const HEAD: usize = 64 << 10;
const HTTP2_HEAD: u32 = 64 << 10;
/// How long shutdown waits for requests that are being answered.
const DRAIN: Duration = Duration::from_secs(10);
/// The wait before accepting again when the machine is out of files or memory, and nobody can be hung up on.
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

/// Where connections come in.
pub struct Door {
    /// The socket.
    pub listener: TcpListener,
    /// The certificate, where it is served; HTTP is plain when none.
    pub tls: Option<Tls>,
}

/// Serves `gateway` on `door` until its shutdown, then waits for what is being answered, at most 10 s. Connections are
/// served on `lanes`, and all requests but small webhooks and events on the threads that this runs on.
pub async fn serve(door: Door, gateway: Gateway, lanes: &Lanes, tasks: TaskTracker) -> io::Result<()> {
    serve_patiently(door, gateway, lanes, (tasks, HEAD_TIMEOUT)).await
}

/// [`serve`], with the time that the first head of a connection may take.
pub(super) async fn serve_patiently(
    door: Door,
    gateway: Gateway,
    lanes: &Lanes,
    (tasks, head_timeout): (TaskTracker, Duration),
) -> io::Result<()> {
    let Door { listener, tls } = door;
    let address = listener.local_addr()?;
    let places = Places::new("connection", gateway.capacity());
    let shutdown = gateway.shutdown().clone();
    let end = CancellationToken::new();
    let builder = builder(Tracked { tasks: tasks.clone(), end: end.clone() });
    let acceptor = tls.as_ref().map(Tls::acceptor).transpose().map_err(io::Error::other)?;
    if let Some(tls) = tls {
        tasks.spawn(tls.follow(end.clone()));
    }
    tracing::info!(%address, tls = acceptor.is_some(), "the gateway listens");
    let asks_for_owner = gateway.asks_for_owner();
    let router = gateway.router();
    let elsewhere = Elsewhere { router, tasks: tasks.clone(), runtime: Handle::current() };
    let servers = lanes.gateways(&gateway).into_iter().map(|(lane, gateway)| {
        let answerer = Answerer { gateway, elsewhere: elsewhere.clone() };
        let (builder, shutdown, acceptor) = (builder.clone(), shutdown.clone(), acceptor.clone());
        (lane, Server { builder, answerer, shutdown, head_timeout, acceptor, asks_for_owner })
    });
    let servers: Vec<_> = servers.collect();
    for (lane, server) in servers.iter().cycle() {
        let next = async { (lane.turn().await, accept(&listener, &places).await) };
        let Some((turn, (stream, peer, place))) = shutdown.run_until_cancelled(next).await else { break };
        match lane.take(stream) {
            Ok(stream) => {
                let driven = server.clone().drive(stream, peer, place);
                let seen = async move {
                    drop(turn);
                    driven.await;
                };
                tasks.spawn_on(seen, lane.runtime());
            }
            Err(error) => tracing::warn!(%error, "a connection was not taken up"),
        }
    }
    drop(listener);
    // Every connection gives its place back within DRAIN.
    places.emptied().await;
    end.cancel();
    tracing::info!(%address, "the gateway has stopped");
    Ok(())
}

/// The next connection, once there is a place for it: when all that are open work, callers wait in the listener's queue.
async fn accept(listener: &TcpListener, places: &Places) -> (TcpStream, SocketAddr, Place) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, places.enter().await),
            Err(error) => {
                // Out of files: somebody who only waits has one.
                let freed = places.evict();
                tracing::warn!(%error, freed, "a connection was not accepted");
                tokio::time::sleep(if freed { Duration::ZERO } else { ACCEPT_AGAIN }).await;
            }
        }
    }
}

fn builder(executor: Tracked) -> Builder<Tracked> {
    let mut builder = Builder::new(executor);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_header_list_size(HTTP2_HEAD);
    builder
}

#[derive(Clone)]
struct Server {
    builder: Builder<Tracked>,
    answerer: Answerer,
    shutdown: CancellationToken,
    head_timeout: Duration,
    acceptor: Option<TlsAcceptor>,
    /// Whether it matters which user of this machine opened a connection.
    asks_for_owner: bool,
}

/// The user of this machine who opened the connection.
fn owner(stream: &TcpStream, peer: SocketAddr) -> Option<Owner> {
    let found = stream.local_addr().and_then(|here| Owner::of(peer, here));
    // A user that is not known is refused.
    Some(found.unwrap_or_else(|error| {
        tracing::debug!(%error, "the kernel does not say whose connection this is");
        Owner::Gone
    }))
}

impl Server {
    async fn drive(self, stream: TcpStream, peer: SocketAddr, place: Place) {
        // Small frames of a stream of events must not wait for each other.
        let _ = stream.set_nodelay(true);
        let line = Arc::new(Line { place, working: Mutex::new(0), begun: AtomicBool::new(false) });
        let owner = if self.asks_for_owner { owner(&stream, peer) } else { None };
        let peer = Peer { address: peer.ip(), tls: self.acceptor.is_some(), owner };
        let Some(acceptor) = self.acceptor.clone() else { return self.speak(stream, peer, line).await };
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
        let shaken = tokio::select! {
            shaken = handshake => shaken,
            () = line.place.evicted() => return,
            () = self.shutdown.cancelled() => return,
        };
        match shaken {
            Ok(Ok(stream)) => self.speak(stream, peer, line).await,
            Ok(Err(error)) => tracing::debug!(%error, client = %peer.address, "a TLS handshake failed"),
            Err(_) => tracing::debug!(client = %peer.address, "a TLS handshake took too long"),
        }
    }

    /// Answers what is asked on one connection.
    async fn speak<S>(self, stream: S, peer: Peer, line: Arc<Line>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (answerer, asked) = (self.answerer, Arc::clone(&line));
        let service = service_fn(move |request| answerer.answer(peer, asked.asked(), request));
        let connection = self.builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        // A connection is woken several times a request; what may end it is looked at only when it was woken itself.
        let given_up = async {
            tokio::select! {
                () = line.place.evicted() => true,
                () = never_begun(self.head_timeout, &line.begun) => true,
                () = self.shutdown.cancelled() => false,
            }
        };
        let mut end = std::pin::pin!(FuturesUnordered::from_iter([given_up]));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            Some(given_up) = end.next() => {
                if given_up {
                    return;
                }
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended badly");
        }
    }
}

/// One connection, and what goes on on it.
struct Line {
    place: Place,
    /// Requests that are whole and not answered, or whose answer is a stream that goes on.
    working: Mutex<usize>,
    /// Whether the head of a request has arrived.
    begun: AtomicBool,
}

/// One request on a connection, until it is answered.
struct Exchange {
    line: Arc<Line>,
    whole: AtomicBool,
}

impl Line {
    /// The head of a request has arrived.
    fn asked(self: &Arc<Self>) -> Arc<Exchange> {
        self.begun.store(true, Ordering::Relaxed);
        let working = self.working.lock().unwrap_or_else(PoisonError::into_inner);
        if *working == 0 {
            self.place.waits();
        }
        Arc::new(Exchange { line: Arc::clone(self), whole: AtomicBool::new(false) })
    }
}

impl Exchange {
    /// The request is whole; false when the connection was given up before.
    fn works(&self) -> bool {
        let mut working = self.line.working.lock().unwrap_or_else(PoisonError::into_inner);
        let works = self.line.place.works();
        if works && !self.whole.swap(true, Ordering::Relaxed) {
            *working += 1;
        }
        works
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !*self.whole.get_mut() {
            return;
        }
        let mut working = self.line.working.lock().unwrap_or_else(PoisonError::into_inner);
        *working = working.saturating_sub(1);
        if *working == 0 {
            self.line.place.waits();
        }
    }
}

/// What requests are answered by.
#[derive(Clone)]
struct Answerer {
    /// Small webhooks, on the thread of their connection.
    gateway: Gateway,
    elsewhere: Elsewhere,
}

/// The threads that all of the server shares, where a request may take long and hold up no other connection.
#[derive(Clone)]
struct Elsewhere {
    router: Router,
    tasks: TaskTracker,
    runtime: Handle,
}

impl Elsewhere {
    /// By the same routes, on the thread of the connection.
    fn answer_here(&self, request: Request) -> impl Future<Output = Response> + use<> {
        self.router.clone().oneshot(request).map(|answered| {
            let Ok(response) = answered;
            response
        })
    }

    /// The answer's own work ends with it, as when it is dropped because nobody waits for it any more.
    fn answer(&self, request: Request) -> impl Future<Output = Response> + use<> {
        let answer = self.tasks.spawn_on(self.router.clone().oneshot(request), &self.runtime);
        AbortOnDropHandle::new(answer).map(|answered| match answered {
            Ok(Ok(response)) => response,
            Err(_) => Problem::unavailable("the server is ending", LATER).into_response(),
        })
    }
}

impl Answerer {
    /// Not an async function, which would keep room for the request twice.
    fn answer(
        &self,
        peer: Peer,
        exchange: Arc<Exchange>,
        mut request: http::Request<Incoming>,
    ) -> impl Future<Output = Result<Response, Infallible>> + use<> {
        let whole = Arc::clone(&exchange);
        let arrived = move || whole.works();
        let answered = match hooks::source_of(&request) {
            Some(source) => self.gateway.clone().answer_webhook(source, peer, request, arrived).left_future(),
            None => {
                request.extensions_mut().insert(peer);
                let is_quick = events::is_small_post(&request);
                let request = request.map(|body| arriving(body, arrived));
                match is_quick {
                    true => self.elsewhere.answer_here(request).boxed().left_future(),
                    false => self.elsewhere.answer(request).right_future(),
                }
                .right_future()
            }
        };
        answered.map(move |response| {
            // A stream works for as long as it lasts. What is there as a whole only waits for its reader, who may never read.
            let whole = response.body().size_hint().exact().is_some();
            Ok(if whole { response } else { response.map(|body| leaving(body, exchange)) })
        })
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

#[cfg(test)]
mod tests;

//! Responses until NATS is reachable: `/healthz` is ok, everything else gets a 503.

use crate::{
    Listener, OVERLOAD_RETRY_AFTER,
    api::health::LIVE,
    http::problem::{Problem, ProblemType},
    routes,
};
use axum::response::{IntoResponse, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// Time that connections wait in the socket before they get a 503. A start takes less if NATS is reachable, so that a restarted server
/// process refuses no request.
const QUIET_START: Duration = Duration::from_secs(2);
/// Maximum concurrent connections; others wait in the socket.
const MAX_CONNECTIONS: usize = 64;
/// Maximum lifetime of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before the next accept after one failed, for example for lack of file descriptors.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Responds on `listener` until `work` is done. `awaited` names in the responses what the work waits for.
pub async fn respond_while<T>(listener: &Listener, awaited: &str, work: impl Future<Output = T>) -> T {
    let detail: Arc<str> = format!("the gateway is starting and waits for {awaited}").into();
    let acceptor = listener.tls.as_ref().and_then(|tls| tls.acceptor().ok());
    let mut connections = JoinSet::new();
    tokio::pin!(work);
    if let Ok(done) = tokio::time::timeout(QUIET_START, &mut work).await {
        return done;
    }
    loop {
        tokio::select! {
            done = &mut work => return done,
            accepted = listener.listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    let (acceptor, detail) = (acceptor.clone(), Arc::clone(&detail));
                    connections.spawn(tokio::time::timeout(CONNECTION_TIMEOUT, answer(stream, acceptor, detail)));
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(stream: TcpStream, acceptor: Option<TlsAcceptor>, detail: Arc<str>) {
    match acceptor {
        None => serve(stream, detail).await,
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                serve(stream, detail).await;
            }
        }
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, detail: Arc<str>) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let response: Response = match request.uri().path() {
            "/healthz" => LIVE.into_response(),
            path => {
                let problem = Problem::retry_after(ProblemType::NotServing, &*detail, OVERLOAD_RETRY_AFTER);
                problem.respond(routes::error_format(path))
            }
        };
        std::future::ready(Ok::<_, Infallible>(response))
    });
    // The connection ends with its answer, so that the next request meets the gateway itself.
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).keep_alive(false);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection ended before its answer");
    }
}

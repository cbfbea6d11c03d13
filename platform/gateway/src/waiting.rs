//! What a gateway answers while it waits for its broker: that it lives, and that it is not ready.

use super::{Door, LATER, health::LIVE, problem::Problem};
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

/// How long connections wait in the socket before they are answered: a start takes less where the broker is there, and a server
/// process that is started again after it died refuses nothing.
const PATIENCE: Duration = Duration::from_secs(2);
/// Connections that are answered at once; others wait in the socket.
const MAX_CONNECTIONS: usize = 64;
/// The longest that a connection may take in all.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The wait after a connection could not be accepted, as when there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers on `door` until `work` is done. `awaited` is what the work waits for, as callers read it.
pub async fn answer_while<T>(door: &Door, awaited: &str, work: impl Future<Output = T>) -> T {
    let detail: Arc<str> = format!("the gateway starts, and waits for {awaited}").into();
    let acceptor = door.tls.as_ref().and_then(|tls| tls.acceptor().ok());
    let mut connections = JoinSet::new();
    tokio::pin!(work);
    if let Ok(done) = tokio::time::timeout(PATIENCE, &mut work).await {
        return done;
    }
    loop {
        tokio::select! {
            done = &mut work => return done,
            accepted = door.listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    let (acceptor, detail) = (acceptor.clone(), Arc::clone(&detail));
                    connections.spawn(tokio::time::timeout(CONNECTION_TIMEOUT, answer(stream, acceptor, detail)));
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
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
            _ => Problem::unavailable(&*detail, LATER).into_response(),
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

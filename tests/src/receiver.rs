//! An endpoint that takes webhooks, and answers each as it is told to.

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::Value;
use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, task::JoinSet};

/// How a request is answered.
#[derive(Debug, Clone)]
pub enum Reply {
    /// With this status.
    Status(u16),
    /// With this status, and `Retry-After`.
    Later(u16, &'static str),
    /// With a redirect to this URL.
    Redirect(&'static str),
    /// Not within the test.
    Hang,
    /// With 200 and half a body.
    BreakOff,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Received {
    /// When.
    pub at: Instant,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Received {
    /// A header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("ASCII"))
    }

    /// Its body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a body in JSON")
    }
}

/// An endpoint on a port of 127.0.0.1.
pub struct Receiver {
    /// Where it takes webhooks.
    pub url: String,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

struct Shared {
    /// For the requests that come next.
    replies: Mutex<VecDeque<Reply>>,
    /// For those after.
    usual: Mutex<Reply>,
    received: Mutex<Vec<Received>>,
}

impl Receiver {
    /// Starts one that answers the first requests so, and all others with 204.
    pub async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let shared = Arc::new(Shared {
            replies: Mutex::new(replies.into_iter().collect()),
            usual: Mutex::new(Reply::Status(204)),
            received: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/hook", listener.local_addr().expect("a bound address"));
        let router = Router::new().fallback(reply).layer(DefaultBodyLimit::disable()).with_state(Arc::clone(&shared));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.expect("the endpoint serves") });
        Self { url, shared, _serving: serving }
    }

    /// Answers so from now on.
    pub fn from_now_on(&self, reply: Reply) {
        self.shared.replies.lock().clear();
        *self.shared.usual.lock() = reply;
    }

    /// The requests so far, the first first.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().clone()
    }

    /// Waits until there are so many requests, and gives them.
    pub async fn reaches(&self, wanted: usize, timeout: Duration) -> Vec<Received> {
        let what = format!("{wanted} webhooks");
        crate::eventually(&what, timeout, || async { Some(self.received()).filter(|got| got.len() >= wanted) }).await
    }
}

async fn reply(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    shared.received.lock().push(Received { at: Instant::now(), headers, body });
    let reply = shared.replies.lock().pop_front();
    let reply = reply.unwrap_or_else(|| shared.usual.lock().clone());
    let status = |status| StatusCode::from_u16(status).expect("a status");
    match reply {
        Reply::Status(code) => (status(code), format!("said {code}")).into_response(),
        Reply::Later(code, after) => (status(code), [(header::RETRY_AFTER, after)], "later").into_response(),
        Reply::Redirect(url) => (StatusCode::FOUND, [(header::LOCATION, url)]).into_response(),
        Reply::Hang => std::future::pending().await,
        Reply::BreakOff => {
            let broken = futures::stream::once(async {
                // What was begun is sent while nothing more is there.
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(io::Error::other("broken off"))
            });
            let begun = futures::stream::iter([Ok(Bytes::from_static(b"half"))]);
            Body::from_stream(begun.chain(broken)).into_response()
        }
    }
}

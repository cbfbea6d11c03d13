//! Chat completions as OpenAI has them: llama.cpp's server, and an endpoint before it that records, refuses and breaks off.

use crate::{checkout, daemon::Daemon, seconds};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::Value;
use std::{collections::VecDeque, io, process::Command, sync::Arc, time::Instant};
use tokio::{net::TcpListener, task::JoinSet};

/// The name of the model that [`LlamaServer`] serves.
pub const MODEL: &str = "tiny";

/// llama.cpp's server with a model of two layers (`tests/python/openai_server.py`), on a port of 127.0.0.1.
pub struct LlamaServer {
    daemon: Daemon,
    /// Its base URL, up to and with `/v1`.
    pub url: String,
    key: String,
}

impl LlamaServer {
    /// Starts one that asks for this key, and waits until it is ready.
    pub async fn start(key: &str) -> Self {
        let (daemon, url) = spawn(key, "0").await;
        Self { daemon, url, key: key.to_owned() }
    }

    /// `kill -9`.
    pub fn kill9(&mut self) {
        self.daemon.kill9();
    }

    /// Starts it again after [`kill9`](Self::kill9), on the same port.
    pub async fn restart(&mut self) {
        let port = self.url.trim_end_matches("/v1").rsplit(':').next().expect("a port").to_owned();
        let url;
        (self.daemon, url) = spawn(&self.key, &port).await;
        assert_eq!(url, self.url);
    }

    /// What it answers to a request that wants the whole answer at once.
    pub async fn complete(&self, request: &Value) -> Value {
        let mut request = request.clone();
        let fields = request.as_object_mut().expect("a request is an object");
        fields.insert("stream".to_owned(), false.into());
        fields.remove("stream_options");
        let url = format!("{}/chat/completions", self.url);
        let sent = reqwest::Client::new().post(url).bearer_auth(&self.key).json(&request).send().await;
        let response = sent.expect("llama.cpp's server answers");
        assert_eq!(response.status(), 200, "{request}");
        response.json().await.expect("a completion is JSON")
    }
}

async fn spawn(key: &str, port: &str) -> (Daemon, String) {
    let python = checkout().join(".tools/venv/bin/python");
    assert!(python.exists(), "{} is missing: run `make setup`", python.display());
    let mut command = Command::new(python);
    command.arg(checkout().join("tests/python/openai_server.py")).args([MODEL, "--port", port, "--key", key]);
    let mut daemon = Daemon::spawn_attached("llama.cpp's server", &mut command);
    let url = daemon.line(seconds(60), |line| {
        let ready: Value = serde_json::from_str(line).ok()?;
        ready["url"].as_str().map(str::to_owned)
    });
    let url = url.await;
    (daemon, url)
}

/// What [`Endpoint`] does with a request.
pub enum Reply {
    /// Passes it on, and the answer back.
    Forward,
    /// The same, but the connection breaks once so many pieces of text were passed back.
    BreakAfter(usize),
    /// Answers with this completion in place of the server.
    Say(Value),
    /// Refuses it.
    Refuse {
        /// With this status.
        status: u16,
        /// With `Retry-After: …`.
        retry_after: Option<&'static str>,
        /// With this body.
        body: String,
    },
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    /// When.
    pub at: Instant,
    /// Its `Authorization`.
    pub authorization: Option<String>,
    /// Its body.
    pub body: Value,
}

/// An endpoint of 127.0.0.1 before a [`LlamaServer`].
pub struct Endpoint {
    /// Its base URL, up to and with `/v1`.
    pub url: String,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

struct Shared {
    target: String,
    replies: Mutex<VecDeque<Reply>>,
    asked: Mutex<Vec<RecordedRequest>>,
}

impl Endpoint {
    /// Starts one that replies to each request as told, and passes on those that come after.
    pub async fn before(server: &LlamaServer, replies: impl IntoIterator<Item = Reply>) -> Self {
        let shared = Arc::new(Shared {
            target: format!("{}/chat/completions", server.url),
            replies: Mutex::new(replies.into_iter().collect()),
            asked: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/v1", listener.local_addr().expect("a bound address"));
        let router = Router::new().route("/v1/chat/completions", post(reply)).with_state(Arc::clone(&shared));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.expect("the endpoint serves") });
        Self { url, shared, _serving: serving }
    }

    /// Replies so to the requests that come next.
    pub fn then(&self, replies: impl IntoIterator<Item = Reply>) {
        self.shared.replies.lock().extend(replies);
    }

    /// The requests that came, the first first; they are told once.
    pub fn take_asked(&self) -> Vec<RecordedRequest> {
        std::mem::take(&mut *self.shared.asked.lock())
    }
}

async fn reply(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let authorization = headers.get(header::AUTHORIZATION).map(|value| value.to_str().expect("ASCII").to_owned());
    let asked =
        RecordedRequest { at: Instant::now(), authorization, body: serde_json::from_slice(&body).expect("JSON") };
    shared.asked.lock().push(asked);
    let reply = shared.replies.lock().pop_front();
    match reply {
        None | Some(Reply::Forward) => forward(&shared.target, headers, body, None).await,
        Some(Reply::BreakAfter(pieces)) => forward(&shared.target, headers, body, Some(pieces)).await,
        Some(Reply::Say(completion)) => axum::Json(completion).into_response(),
        Some(Reply::Refuse { status, retry_after, body }) => {
            let mut response = (StatusCode::from_u16(status).expect("a status"), body).into_response();
            let after = retry_after.map(|after| (header::RETRY_AFTER, HeaderValue::from_static(after)));
            response.headers_mut().extend(after);
            response
        }
    }
}

/// Passes a request on, and the answer back: all of it, or so many pieces of its text and then a broken connection.
async fn forward(target: &str, mut headers: HeaderMap, body: Bytes, pieces: Option<usize>) -> Response {
    for name in [header::HOST, header::CONTENT_LENGTH] {
        headers.remove(name);
    }
    let sent = reqwest::Client::new().post(target).headers(headers).body(body).send().await;
    let Ok(response) = sent else { return StatusCode::BAD_GATEWAY.into_response() };
    let status = response.status();
    let content_type = response.headers().get(header::CONTENT_TYPE).map(|value| (header::CONTENT_TYPE, value.clone()));
    let passed = match pieces {
        None => Body::from_stream(response.bytes_stream()),
        Some(pieces) => {
            let whole = response.text().await.expect("llama.cpp's server ends its answer");
            let begun = Bytes::from(beginning(&whole, pieces).to_owned());
            let broken = futures::stream::once(async {
                // What was passed is sent while nothing more is there.
                tokio::task::yield_now().await;
                Err(io::Error::other("broken off"))
            });
            Body::from_stream(futures::stream::iter([Ok(begun)]).chain(broken))
        }
    };
    let mut response = (status, passed).into_response();
    response.headers_mut().extend(content_type);
    response
}

/// A stream's frames up to and with this piece of text.
fn beginning(stream: &str, pieces: usize) -> &str {
    let ends = stream.match_indices("\n\n").map(|(at, end)| at + end.len());
    let mut passed = 0;
    let mut start = 0;
    for end in ends {
        let chunk = stream[start..end].trim().trim_start_matches("data:");
        let chunk: Value = serde_json::from_str(chunk).unwrap_or_default();
        passed += usize::from(chunk["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty()));
        start = end;
        if passed == pieces {
            return &stream[..end];
        }
    }
    panic!("it has fewer than {pieces} pieces: {stream}");
}

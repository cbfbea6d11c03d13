//! Verified webhooks to JetStream's ack, against a handler that only publishes with ack.

use crate::{Side, compare, load};
use async_nats::{HeaderMap, jetstream};
use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use nerve_tests::{Folder, Nats, Nerve, daemon::Daemon, eventually, github, seconds};
use std::process::Command;

/// Rounds of each side: more than elsewhere, since each takes a second.
const ROUNDS: usize = 9;
/// Requests a round.
const REQUESTS: usize = 40_000;
/// Connections, each with one request at a time.
const CONNECTIONS: usize = 64;
/// Bytes of each body.
const BODY: usize = 1024;

pub(crate) async fn compare_with_bare_handler(nats: &Nats) {
    let gateway = Nerve::gateway(&nats.url()).await;
    gateway.cli().secret("GITHUB_WEBHOOK_SECRET", github::SECRET).await;
    gateway.cli().deploy(Folder::new(github::SOURCE).path()).await;
    let url = gateway.url("/hooks/github");
    eventually("the gateway serves the source", seconds(10), || async {
        let response = github::delivery(&url, "ping", "first", "{}").send().await.ok()?;
        response.status().is_success().then_some(())
    })
    .await;
    let exe = std::env::current_exe().expect("a program knows its own path");
    let mut bare = Daemon::spawn("the bare handler", Command::new(exe).args(["bare", &nats.url()]));
    let bare_address = bare.line(seconds(10), |line| line.strip_prefix("listening on ").map(str::to_owned)).await;
    let gateway_address = gateway.gateway.trim_start_matches("http://").to_owned();

    let (mut verified, mut plain, mut same) = (Side::default(), Side::default(), Side::default());
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let load = load::send(&gateway_address, requests(round, "/hooks/github")).await;
        verified.rates.push(load.rate);
        times.push((load.quantile(0.5), load.quantile(0.99)));
        plain.rates.push(load::send(&bare_address, requests(round, "/body")).await.rate);
        same.rates.push(load::send(&bare_address, requests(round, "/event")).await.rate);
    }
    let title = format!("webhooks of {BODY} B, {CONNECTIONS} connections: request to JetStream's ack");
    compare(&title, "requests/s", ("verified by the gateway", &verified), ("bare axum handler", &plain));
    // What the broker itself costs once a message is a CloudEvent under a message id, which is how none is stored twice.
    let title = "the same, the bare handler's messages being CloudEvents with message ids, as Nerve's are";
    compare(title, "requests/s", ("verified by the gateway", &verified), ("bare handler, same messages", &same));
    times.sort_unstable();
    let (p50, p99) = times[ROUNDS / 2];
    println!("  of the gateway's answers     p50 {:.2?}, p99 {:.2?}\n", p50, p99);
}

/// A round's requests by connection: signed, each with a body and a delivery id of its own.
fn requests(round: usize, path: &str) -> Vec<Vec<bytes::Bytes>> {
    let request = |n: usize| {
        let start = format!(r#"{{"action":"opened","n":"{round}-{n}","text":""#);
        let body = format!("{start}{}\"}}", "x".repeat(BODY - start.len() - 2));
        let signature = github::signature(github::SECRET, body.as_bytes());
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             x-github-event: issues\r\nx-github-delivery: {round}-{n}\r\nx-hub-signature-256: {signature}\r\n\r\n",
            body.len()
        );
        bytes::Bytes::from(head + &body)
    };
    let each = REQUESTS / CONNECTIONS;
    (0..CONNECTIONS).map(|connection| (0..each).map(|n| request(connection * each + n)).collect()).collect()
}

/// The bare handler: publishes the body, waits for the ack, answers 202; at `/event` with the headers of an event.
pub(crate) async fn serve_bare(nats: &str) {
    async fn body(State(jetstream): State<jetstream::Context>, body: Bytes) -> StatusCode {
        publish(jetstream, HeaderMap::new(), body).await
    }
    async fn event(State(jetstream): State<jetstream::Context>, request: http::HeaderMap, body: Bytes) -> StatusCode {
        let id = request.get("x-github-delivery").and_then(|id| id.to_str().ok()).expect("a delivery has an id");
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("ce-specversion", "1.0"),
            ("ce-id", id),
            ("ce-source", "/hooks/github"),
            ("ce-type", "bench.bare.opened"),
            ("ce-time", "2026-01-31T12:00:00.123456789Z"),
            ("content-type", "application/json"),
            ("Nats-Msg-Id", &format!("bare#{id}")),
        ] {
            headers.insert(name, value);
        }
        publish(jetstream, headers, body).await
    }
    async fn publish(jetstream: jetstream::Context, headers: HeaderMap, body: Bytes) -> StatusCode {
        let sent = match headers.is_empty() {
            true => jetstream.publish("events.bench.bare", body).await,
            false => jetstream.publish_with_headers("events.bench.bare", headers, body).await,
        };
        let Ok(sent) = sent else { return StatusCode::SERVICE_UNAVAILABLE };
        if sent.await.is_ok() { StatusCode::ACCEPTED } else { StatusCode::SERVICE_UNAVAILABLE }
    }
    let client = async_nats::connect(nats).await.expect("the bench's nats-server");
    let routes = Router::new().route("/body", post(body)).route("/event", post(event));
    let app = routes.with_state(jetstream::new(client));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("listening on {}", listener.local_addr().expect("a bound address"));
    axum::serve(listener, app).await.expect("the handler serves");
}

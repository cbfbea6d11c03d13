//! Verified webhooks to JetStream's ack, against a handler that only publishes with ack.

use crate::{ROUNDS, Side, compare, load};
use async_nats::jetstream;
use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use nerve_tests::{Folder, Nats, Nerve, daemon::Daemon, eventually, github, seconds};
use std::process::Command;

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

    let (mut verified, mut plain) = (Side::default(), Side::default());
    for round in 0..ROUNDS {
        let prepared = requests(round);
        verified.rates.push(load::rate(&gateway_address, prepared.clone()).await);
        plain.rates.push(load::rate(&bare_address, prepared).await);
    }
    let title = format!("webhooks of {BODY} B, {CONNECTIONS} connections: request to JetStream's ack");
    compare(&title, "requests/s", ("verified by the gateway", &verified), ("bare axum handler", &plain));
}

/// A round's requests by connection: signed, each with a body and a delivery id of its own.
fn requests(round: usize) -> Vec<Vec<bytes::Bytes>> {
    let request = |n: usize| {
        let start = format!(r#"{{"action":"opened","n":"{round}-{n}","text":""#);
        let body = format!("{start}{}\"}}", "x".repeat(BODY - start.len() - 2));
        let signature = github::signature(github::SECRET, body.as_bytes());
        let head = format!(
            "POST /hooks/github HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             x-github-event: issues\r\nx-github-delivery: {round}-{n}\r\nx-hub-signature-256: {signature}\r\n\r\n",
            body.len()
        );
        bytes::Bytes::from(head + &body)
    };
    let each = REQUESTS / CONNECTIONS;
    (0..CONNECTIONS).map(|connection| (0..each).map(|n| request(connection * each + n)).collect()).collect()
}

/// The bare handler: publishes the body, waits for the ack, answers 202.
pub(crate) async fn serve_bare(nats: &str) {
    async fn publish(State(jetstream): State<jetstream::Context>, body: Bytes) -> StatusCode {
        let Ok(sent) = jetstream.publish("events.bench.bare", body).await else {
            return StatusCode::SERVICE_UNAVAILABLE;
        };
        if sent.await.is_ok() { StatusCode::ACCEPTED } else { StatusCode::SERVICE_UNAVAILABLE }
    }
    let client = async_nats::connect(nats).await.expect("the bench's nats-server");
    let app = Router::new().route("/hooks/github", post(publish)).with_state(jetstream::new(client));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("listening on {}", listener.local_addr().expect("a bound address"));
    axum::serve(listener, app).await.expect("the handler serves");
}

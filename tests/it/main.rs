//! Nerve from outside, as its users meet it: the binary, HTTP, NATS.
//!
//! Each test runs servers of its own and is named after what it shows.

mod access;
mod agents;
mod answers;
mod batches;
mod broker;
mod builtins;
mod check;
mod closed;
mod commands;
mod connections;
mod crashes;
mod crates;
mod deploy;
mod documents;
mod endpoint;
mod erase;
mod escapes;
mod events;
mod examples;
mod faults;
mod fuzz;
mod github;
mod governor;
mod harness;
mod home;
mod hostile;
mod hostile_models;
mod idempotency;
mod identity;
mod inference;
mod intake;
mod join;
mod kills;
mod large;
mod learning;
mod manifests;
mod manual;
mod mistakes;
mod models;
mod openapi;
mod outage;
mod pipelines;
mod postgres;
mod processes;
mod protection;
mod providers;
mod questions;
mod quotas;
mod readers;
mod refusals;
mod replaced_steps;
mod replay;
mod retries;
mod sandbox;
mod schedules;
mod secrets;
mod secrets_key;
mod senders;
mod shares;
mod sinks;
mod sns;
mod sources;
mod spans;
mod spool;
mod sse;
mod strangers;
mod streams;
mod supervision;
mod templates;
mod tls;
mod traces;
mod trees;
mod up;
mod upgrade;
mod words;
mod workers;
mod writer;

use nerve_tests::{Folder, Nerve, eventually, github::SOURCE, guest, seconds};
use serde_json::Value;

/// A `nerve up` with the GitHub source.
async fn up_with_github() -> Nerve {
    let nerve = Nerve::up().await;
    nerve.cli().secret("GITHUB_WEBHOOK_SECRET", nerve_tests::github::SECRET).await;
    nerve.cli().deploy(Folder::new(SOURCE).path()).await;
    source_is_served(&nerve, "github").await;
    nerve
}

/// Waits until the gateway has heard of a source and of its secrets: until it refuses what is signed wrong.
async fn source_is_served(nerve: &Nerve, name: &str) {
    let url = nerve.url(&format!("/hooks/{name}"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time after 1970");
    let (zeros, now) = ("0".repeat(64), now.as_secs().to_string());
    let forged = [
        ("x-hub-signature-256", format!("sha256={zeros}")),
        ("x-till-signature", format!("v1={zeros}")),
        ("x-till-time", now.clone()),
    ];
    let standard = ["webhook", "svix"].into_iter().flat_map(|prefix| {
        let signature = format!("v1,{}=", "A".repeat(43));
        let fields = [("id", "forged".to_owned()), ("timestamp", now.clone()), ("signature", signature)];
        fields.map(|(field, value)| (format!("{prefix}-{field}"), value))
    });
    let forged = forged.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(standard);
    let headers = forged.map(|(name, value)| {
        let name: reqwest::header::HeaderName = name.parse().expect("a header's name");
        (name, value.parse().expect("a header's value"))
    });
    let headers: reqwest::header::HeaderMap = headers.collect();
    eventually("the gateway verifies for the source", seconds(10), || async {
        let response = reqwest::Client::new().post(&url).headers(headers.clone()).body("{}").send().await.ok()?;
        (response.status() == 401).then_some(())
    })
    .await;
}

/// A folder with the GitHub source and a component that answers each of its events with one `digest.made`.
fn digesting_github() -> Folder {
    let component = guest::summing("digest.made");
    let function = "[function.digest]\nruntime = \"wasm\"\nsource = \"digest.wasm\"\non = [\"events.github.>\"]\n\
                    emits = [\"digest.made\"]\n";
    Folder::new(&format!("{SOURCE}{function}")).with("digest.wasm", component)
}

/// Posts one event in binary mode; returns the status.
async fn post_event(nerve: &Nerve, ty: &str, id: &str, body: &str) -> u16 {
    let request = reqwest::Client::new().post(nerve.url("/v1/events")).header("content-type", "application/json");
    let request = request.header("ce-specversion", "1.0").header("ce-type", ty).header("ce-id", id);
    let response = request.header("ce-source", "/tests").body(body.to_owned()).send().await;
    response.expect("the gateway answers").status().as_u16()
}

/// A response's status and body, once it is sure that it is a problem document (RFC 9457) about that status.
async fn problem(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let content_type = response.headers().get("content-type").cloned();
    let body = response.text().await.expect("a body");
    let content_type = content_type.unwrap_or_else(|| panic!("{status} has no content type: {body}"));
    let content_type = content_type.to_str().expect("a content type in ASCII").to_owned();
    assert!(content_type.starts_with("application/problem+json"), "{status} {content_type}: {body}");
    let document: Value = serde_json::from_str(&body).expect("a problem document is JSON");
    assert_eq!(document["status"], status, "{document}");
    assert!(document["title"].is_string(), "{document}");
    assert!(document["type"].as_str().is_some_and(|ty| ty.starts_with("/problems/")), "{document}");
    (status, document)
}

/// The status and the message of an error of a route that OpenAI's clients use.
async fn openai_error(response: reqwest::Response) -> (u16, String) {
    let status = response.status().as_u16();
    let document: Value = response.json().await.expect("an error is JSON");
    let message = document["error"]["message"].as_str().unwrap_or_else(|| panic!("{document}"));
    (status, message.to_owned())
}

//! Nerve from outside, as its users meet it: the binary, HTTP, NATS.
//!
//! Each test runs servers of its own and is named after what it shows.

mod access;
mod deploy;
mod events;
mod faults;
mod github;
mod harness;
mod kills;
mod large;
mod manifests;
mod outage;
mod processes;
mod refusals;
mod secrets;
mod senders;
mod sse;
mod up;

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

/// Waits until the gateway has heard of a source that checks signatures.
async fn source_is_served(nerve: &Nerve, name: &str) {
    let url = nerve.url(&format!("/hooks/{name}"));
    eventually("the gateway serves the source", seconds(10), || async {
        let response = reqwest::Client::new().post(&url).body("{}").send().await.ok()?;
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
    (status, document)
}

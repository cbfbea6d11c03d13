//! The example functions, deployed as their README says.

use crate::{
    github::{PAYLOADS, send_all},
    post_event, up_with_github,
};
use nerve_tests::{Nerve, Streams, checkout, github::delivery, seconds};
use serde_json::{Value, json};
use std::path::PathBuf;

/// An example's folder; one that was not built fails the test.
fn example(name: &str, built: &str) -> PathBuf {
    let folder = checkout().join("functions/examples").join(name);
    assert!(folder.join(built).exists(), "{name} is not built ({built} is missing): run `make guests`");
    folder
}

async fn only_result(streams: &Streams, ty: &str) -> Value {
    // A Python component is compiled first, which takes some seconds.
    streams.reaches("EVENTS", &format!("events.{ty}"), 1, seconds(90)).await;
    let results = streams.read("EVENTS", &format!("events.{ty}")).await;
    assert_eq!(results.len(), 1);
    serde_json::from_slice(&results[0].data).expect("a result that is JSON")
}

#[tokio::test]
async fn the_component_in_c_digests_every_github_example_once() {
    let nerve = up_with_github().await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(&example("github-digest", "github-digest.wasm")).await;
    send_all(&nerve).await;
    streams.reaches("EVENTS", "events.event.digested", PAYLOADS, seconds(60)).await;
    let deliveries = streams.read("EVENTS", "events.github.>").await;
    let digests = streams.read("EVENTS", "events.event.digested").await;
    assert_eq!((deliveries.len(), digests.len()), (PAYLOADS, PAYLOADS));
    for delivery in &deliveries {
        let of_it: Vec<_> = digests.iter().filter(|d| d.header("ce-causationid") == delivery.header("ce-id")).collect();
        let [digest] = of_it.as_slice() else { panic!("{} digests of {}", of_it.len(), delivery.header("ce-id")) };
        let digest: Value = serde_json::from_slice(&digest.data).expect("a digest that is JSON");
        let payload: Value = serde_json::from_slice(&delivery.data).expect("a payload that is JSON");
        assert_eq!(digest["type"], delivery.header("ce-type"));
        assert_eq!(digest["repository"], payload["repository"]["full_name"]);
        assert_eq!(
            (&digest["action"], digest["size"].as_u64()),
            (&payload["action"], Some(delivery.data.len() as u64))
        );
    }
    assert_eq!(streams.count("DEAD", ">").await, 0);
}

#[tokio::test]
async fn the_component_in_javascript_labels_an_issue() {
    let nerve = up_with_github().await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(&example("github-labels", "build/github-labels.wasm")).await;
    let issue = json!({
        "action": "opened",
        "issue": { "number": 7, "title": "Crash when the file is empty", "html_url": "https://example.com/7",
                   "body": "It panics with an error: a bug, I think.", "labels": [] },
        "repository": { "full_name": "harbour/tide" },
    });
    let sent = delivery(&nerve.url("/hooks/github"), "issues", "1", issue.to_string()).send().await;
    assert_eq!(sent.expect("an answer").status().as_u16() / 100, 2);
    let result = only_result(&streams, "github.labels.suggested").await;
    assert_eq!((result["repository"].as_str(), result["number"].as_u64()), (Some("harbour/tide"), Some(7)));
    assert!(result["labels"].to_string().contains("bug"), "{result:#}");
}

#[tokio::test]
async fn the_component_in_python_finds_the_keywords_of_a_comment() {
    let nerve = up_with_github().await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(&example("text-keywords", "build/text-keywords.wasm")).await;
    let comment = json!({
        "action": "created",
        "comment": { "body": "The harbour gauge reads the tide. The tide gauge in the harbour is late.",
                     "html_url": "https://example.com/c" },
        "issue": { "number": 7 },
        "repository": { "full_name": "harbour/tide" },
    });
    let sent = delivery(&nerve.url("/hooks/github"), "issue_comment", "1", comment.to_string()).send().await;
    assert_eq!(sent.expect("an answer").status().as_u16() / 100, 2);
    let result = only_result(&streams, "text.keywords").await;
    assert!(result["keywords"].to_string().contains("gauge"), "{result:#}");
}

#[tokio::test]
async fn the_builtin_embeds_documents() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(&example("document-embed", "nerve.toml")).await;
    let document = json!({ "name": "a", "text": "This is an example sentence" }).to_string();
    assert_eq!(post_event(&nerve, "document.uploaded", "1", &document).await / 100, 2);
    let result = only_result(&streams, "document.embedded").await;
    assert_eq!((&result["name"], &result["dimensions"]), (&json!("a"), &json!(384)), "{result:#}");
}

#[tokio::test]
async fn the_process_counts_words_and_calls_what_is_no_document_invalid() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(&example("word-count", "nerve.toml")).await;
    let document = json!({ "name": "a", "text": "the tide and the harbour" }).to_string();
    assert_eq!(post_event(&nerve, "document.uploaded", "good", &document).await / 100, 2);
    assert_eq!(post_event(&nerve, "document.uploaded", "bad", r#"{"name": "b", "data": "Yg=="}"#).await / 100, 2);
    assert_eq!(only_result(&streams, "document.counted").await["words"], 5);
    streams.reaches("DEAD", "dead.word-count", 1, seconds(20)).await;
    let dead = streams.read("DEAD", "dead.word-count").await;
    assert_eq!((dead[0].header("ce-id"), dead[0].header("nerve-attempts")), ("bad", "1"));
}

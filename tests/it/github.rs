//! Every payload that GitHub's own examples hold, signed by GitHub's own SDK.

use crate::{digesting_github, up_with_github};
use nerve_tests::{Nerve, Script, Streams, github::SECRET, seconds, streams::Stored};
use serde_json::json;
use std::collections::BTreeSet;

/// How many payloads @octokit/webhooks-examples has.
pub(crate) const PAYLOADS: usize = 329;

/// Asserts that each delivery is in EVENTS once, and has one result, about itself.
pub(crate) async fn each_once_with_one_result(streams: &Streams) {
    streams.reaches("EVENTS", "events.digest.made", PAYLOADS, seconds(60)).await;
    let deliveries = streams.read("EVENTS", "events.github.>").await;
    let results = streams.read("EVENTS", "events.digest.made").await;
    let ids = |stored: &[Stored], header: &str| -> BTreeSet<String> {
        stored.iter().map(|message| message.header(header).to_owned()).collect()
    };
    assert_eq!((deliveries.len(), results.len()), (PAYLOADS, PAYLOADS));
    assert_eq!(ids(&deliveries, "ce-id").len(), PAYLOADS, "each delivery has an id of its own");
    assert_eq!(ids(&results, "ce-causationid"), ids(&deliveries, "ce-id"), "each result is caused by one delivery");
    assert_eq!(streams.count("DEAD", ">").await, 0, "nothing is dead-lettered");
}

/// Sends all payloads, which must all be accepted.
pub(crate) async fn send_all(nerve: &Nerve) {
    let sender = Script::node("github.mjs", &[&nerve.url("/hooks/github"), SECRET]);
    let (sent, accepted) = sender.finish(seconds(180)).await;
    assert!(accepted, "{sent}");
    assert_eq!(sent["sent"], json!(PAYLOADS));
}

#[tokio::test]
async fn every_github_example_is_stored_once_and_answered_once_and_a_second_sending_changes_nothing() {
    let nerve = up_with_github().await;
    nerve.cli().deploy(digesting_github().path()).await;
    let streams = Streams::connect(&nerve.nats).await;
    send_all(&nerve).await;
    each_once_with_one_result(&streams).await;

    let before = streams.stream("EVENTS").await.cached_info().state.last_sequence;
    send_all(&nerve).await;
    // The marker is processed after whatever the second sending could have stored.
    assert_eq!(crate::post_event(&nerve, "github.marker", "marker", "{}").await / 100, 2);
    streams.reaches("EVENTS", "events.digest.made", PAYLOADS + 1, seconds(30)).await;
    let after = streams.stream("EVENTS").await.cached_info().state.last_sequence;
    assert_eq!(after, before + 2, "the second sending stored something");
}

#[tokio::test]
async fn an_event_says_where_it_is_from() {
    let nerve = up_with_github().await;
    let body = r#"{"action":"opened","number":1,"repository":{"full_name":"o/r"}}"#;
    let request = nerve_tests::github::delivery(&nerve.url("/hooks/github"), "pull_request", "delivery-1", body);
    let response = request.send().await.unwrap();
    assert!(response.status().is_success(), "{response:?}");
    let streams = Streams::connect(&nerve.nats).await;
    let stored = streams.read("EVENTS", ">").await;
    assert_eq!(stored.len(), 1);
    let event = &stored[0];
    assert_eq!(event.subject, "events.github.pull_request.opened");
    assert_eq!(event.header("ce-type"), "github.pull_request.opened");
    assert_eq!(event.header("ce-id"), "delivery-1");
    assert_eq!(event.header("ce-specversion"), "1.0");
    assert!(!event.header("ce-source").is_empty() && !event.header("nats-msg-id").is_empty());
    assert_eq!(event.header("content-type"), "application/json");
    assert_eq!(event.data, body.as_bytes(), "the body is the sender's bytes");
}

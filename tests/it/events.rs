//! Events through the API, in the three modes of the CloudEvents HTTP binding.

use nerve_tests::{Nerve, Streams};
use serde_json::{Value, json};

fn event(id: &str) -> Value {
    json!({
        "specversion": "1.0", "id": id, "source": "/tests", "type": "order.placed", "subject": "é",
        "time": "2026-01-02T03:04:05Z", "partitionkey": "k", "datacontenttype": "application/json",
        "data": {"n": 1},
    })
}

#[tokio::test]
async fn structured_batch_and_binary_mode_store_the_same_event() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let post = || reqwest::Client::new().post(nerve.url("/v1/events"));
    let structured =
        post().header("content-type", "application/cloudevents+json").body(event("structured").to_string());
    let batch = json!([event("batch-1"), event("batch-2")]).to_string();
    let batch = post().header("content-type", "application/cloudevents-batch+json; charset=utf-8").body(batch);
    let mut binary = post().header("content-type", "application/json").body(r#"{"n":1}"#);
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", "binary"),
        ("ce-source", "/tests"),
        ("ce-type", "order.placed"),
        ("ce-subject", "%C3%A9"),
        ("ce-time", "2026-01-02T03:04:05Z"),
        ("ce-partitionkey", "k"),
    ] {
        binary = binary.header(name, value);
    }
    for request in [structured, batch, binary] {
        let response = request.send().await.unwrap();
        assert!(response.status().is_success(), "{response:?}");
    }
    let stored = streams.read("EVENTS", ">").await;
    let ids: Vec<_> = stored.iter().map(|event| event.header("ce-id").to_owned()).collect();
    assert_eq!(ids, ["structured", "batch-1", "batch-2", "binary"]);
    for event in &stored {
        assert_eq!(event.subject, "events.order.placed");
        assert_eq!(serde_json::from_slice::<Value>(&event.data).unwrap(), json!({"n": 1}));
        assert_eq!(event.header("content-type"), "application/json");
        let attributes = ["ce-source", "ce-type", "ce-subject", "ce-time", "ce-partitionkey"];
        let attributes = attributes.map(|name| event.header(name).to_owned());
        assert_eq!(attributes, ["/tests", "order.placed", "%C3%A9", "2026-01-02T03:04:05Z", "k"]);
    }
}

#[tokio::test]
async fn an_event_sent_twice_is_stored_once_and_ids_are_per_source() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let send = |event: Value| {
        let request = reqwest::Client::new().post(nerve.url("/v1/events"));
        request.header("content-type", "application/cloudevents+json").body(event.to_string()).send()
    };
    for _ in 0..2 {
        assert!(send(event("1")).await.unwrap().status().is_success());
    }
    let mut other = event("1");
    other["source"] = json!("/others");
    assert!(send(other).await.unwrap().status().is_success());
    assert_eq!(streams.count("EVENTS", ">").await, 2);
}

#[tokio::test]
async fn a_batch_with_one_bad_event_is_refused_whole() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let batch = json!([event("1"), {"specversion": "1.0"}]).to_string();
    let request = reqwest::Client::new().post(nerve.url("/v1/events"));
    let request = request.header("content-type", "application/cloudevents-batch+json").body(batch);
    let (status, _) = crate::problem(request.send().await.unwrap()).await;
    assert_eq!(status, 400);
    assert_eq!(streams.total().await, 0);
}

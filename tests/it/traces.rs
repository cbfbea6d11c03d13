//! Traces and requests to try again, of whatever shape: what causes say comes from outside.

use nerve_tests::{Nerve, Streams, eventually, nerve::Options, seconds};
use serde_json::{Value, json};

const EVENTS: usize = 4_000;

/// Posts events of one workflow, each the cause of the next.
async fn chain(nerve: &Nerve, workflow: &str) {
    for first in (0..EVENTS).step_by(500) {
        let events: Vec<Value> = (first..first + 500)
            .map(|n| {
                json!({"specversion": "1.0", "type": "chain.link", "source": "/tests", "id": format!("{workflow}-{n}"),
                    "correlationid": workflow, "causationid": format!("{workflow}-{}", n.wrapping_sub(1))})
            })
            .collect();
        let request = reqwest::Client::new().post(nerve.url("/v1/events"));
        let request = request.header("content-type", "application/cloudevents-batch+json");
        let response = request.body(json!(events).to_string()).send().await.unwrap();
        assert_eq!(response.status().as_u16() / 100, 2, "{}", response.text().await.unwrap());
    }
}

#[tokio::test]
async fn chain_of_four_thousand_causes_is_traced_and_ends_no_worker() {
    let mut nerve = Nerve::up().await;
    chain(&nerve, "deep").await;
    let response = reqwest::get(nerve.url("/v1/traces/deep")).await.unwrap();
    assert_eq!(response.status(), 200);
    // Read by serde_json, which refuses values that are nested too deeply.
    let trace: Value = response.json().await.unwrap();
    let (mut level, mut depth, mut count) = (trace["events"].as_array().unwrap().clone(), 0, 0);
    while !level.is_empty() {
        (depth, count) = (depth + 1, count + level.len());
        level = level.iter().flat_map(|event| event["led_to"].as_array().cloned().unwrap_or_default()).collect();
    }
    assert!(count == EVENTS && depth < 60, "{count} events on {depth} levels");
    let text = nerve.cli().run(&["trace", "deep"]).await.ok().stdout;
    assert_eq!(text.lines().count(), EVENTS);

    let request = json!({"answer": "deep"}).to_string();
    nerve.cli().run(&["publish", "control.retry_requested", "--data", &request]).await.ok();
    let streams = Streams::connect(&nerve.nats).await;
    streams.reaches("EVENTS", "events.control.retry_refused", 1, seconds(30)).await;
    assert!(nerve.daemon.exited().is_none(), "the request ended the worker");
}

#[tokio::test]
async fn request_to_try_again_that_fails_is_given_up_after_its_attempts() {
    let nerve = Nerve::up_with(Options::default()).await;
    let streams = Streams::connect(&nerve.nats).await;
    // What every attempt has to read.
    streams.delete("ANSWERS").await;
    let request = json!({"answer": "lost"}).to_string();
    nerve.cli().run(&["publish", "control.retry_requested", "--data", &request]).await.ok();
    streams.reaches("EVENTS", "events.control.retry_refused", 1, seconds(60)).await;
    let refused = streams.read("EVENTS", "events.control.retry_refused").await;
    let reason: Value = serde_json::from_slice(&refused[0].data).unwrap();
    assert!(reason["reason"].as_str().unwrap().contains("it failed 5 times"), "{reason}");
    // It was acknowledged.
    eventually("nothing waits for an attempt", seconds(10), || async {
        let stream = streams.stream("EVENTS").await;
        let info = stream.consumer_info("nerve_retries").await;
        Some(()).filter(|()| info.is_ok_and(|info| info.num_pending == 0 && info.num_ack_pending == 0))
    })
    .await;
}

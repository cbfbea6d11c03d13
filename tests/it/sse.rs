//! The SSE tail as a browser's `EventSource` sees it.

use nerve_tests::{Nerve, Proxy, Script, Streams, seconds};
use serde_json::Value;

/// Publishes `count` events of type `tick` with the numbers from `first`, straight into JetStream.
async fn publish_ticks(streams: &Streams, first: usize, count: usize) {
    let mut acknowledgements = Vec::with_capacity(count);
    for n in first..first + count {
        let mut headers = async_nats::HeaderMap::new();
        let id = n.to_string();
        for (name, value) in [("ce-specversion", "1.0"), ("ce-type", "tick"), ("ce-source", "/tests"), ("ce-id", &id)] {
            headers.insert(name, value);
        }
        headers.insert("content-type", "application/json");
        let sent = streams.jetstream.publish_with_headers("events.tick", headers, id.into()).await;
        acknowledgements.push(sent.expect("a publish"));
    }
    for acknowledgement in acknowledgements {
        acknowledgement.await.expect("an acknowledgement");
    }
}

fn numbers(list: &Value) -> Vec<u64> {
    list.as_array().expect("an array").iter().map(|n| n.as_u64().expect("a number")).collect()
}

#[tokio::test]
async fn a_client_that_is_cut_20_times_while_10000_events_pass_sees_each_once_and_in_order() {
    const EVENTS: usize = 10_000;
    const CUTS: usize = 20;
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let target = nerve.gateway.trim_start_matches("http://").to_owned();
    let proxy = Proxy::start(target).await;
    let url = format!("http://{}/v1/events?subject=events.tick&from=1", proxy.address);
    let mut client = Script::node("listen.mjs", &[&url, &EVENTS.to_string()]);
    client.says("open", seconds(30)).await;
    // Each cut has events before and behind it.
    let chunk = EVENTS / CUTS / 2;
    let mut heard = 0;
    for n in 0..CUTS {
        publish_ticks(&streams, 2 * n * chunk, chunk).await;
        let hears = || async { (proxy.answered() > heard).then_some(()) };
        nerve_tests::eventually("the client is connected again, and is answered", seconds(10), hears).await;
        proxy.cut();
        heard = proxy.answered();
        publish_ticks(&streams, (2 * n + 1) * chunk, chunk).await;
    }
    let (seen, well) = client.finish(seconds(90)).await;
    assert!(well);
    assert_eq!(numbers(&seen["data"]), (0..EVENTS as u64).collect::<Vec<_>>(), "each once, in order");
    let ids = numbers(&seen["ids"]);
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "ids are stream sequences");
    assert!(seen["opens"].as_u64().unwrap() > CUTS as u64 / 2, "it was really cut: {}", seen["opens"]);
    assert_eq!(seen["gaps"], serde_json::json!([]), "nothing was purged");
}

/// The first bytes of an SSE response, until `enough` is in them.
async fn read_until(response: reqwest::Response, enough: &str) -> String {
    let mut response = response;
    let mut text = String::new();
    let reading = async {
        while !text.contains(enough) {
            let chunk = response.chunk().await.expect("a chunk").expect("the stream goes on");
            text.push_str(&String::from_utf8_lossy(&chunk));
        }
    };
    let in_time = tokio::time::timeout(seconds(30), reading).await;
    assert!(in_time.is_ok(), "no `{enough}` in: {text}");
    text
}

#[tokio::test]
async fn a_client_that_comes_back_after_a_purge_is_told_of_the_gap() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    publish_ticks(&streams, 0, 100).await;
    streams.stream("EVENTS").await.purge().sequence(61).await.unwrap();
    let client = reqwest::Client::new();
    let request = client.get(nerve.url("/v1/events?subject=events.tick")).header("Last-Event-ID", "10");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(content_type.starts_with("text/event-stream"), "{content_type}");
    let caching = response.headers()["cache-control"].to_str().unwrap().to_owned();
    assert!(caching.contains("no-store"), "{caching}");
    let text = read_until(response, "id: 100\n").await;
    let gap = text.find("event: gap").unwrap_or_else(|| panic!("no gap event: {text}"));
    let first = text.find("id: 61\n").unwrap_or_else(|| panic!("no event 61: {text}"));
    assert!(gap < first, "the gap comes before what follows it: {text}");
    assert!(!text.contains("id: 60\n"), "{text}");
}

#[tokio::test]
async fn a_tail_starts_where_it_is_asked_to() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    publish_ticks(&streams, 0, 10).await;
    let response = reqwest::get(nerve.url("/v1/events?subject=events.tick&from=8")).await.unwrap();
    let text = read_until(response, "id: 10\n").await;
    assert!(text.contains("id: 8\n") && !text.contains("id: 7\n"), "{text}");
    assert!(!text.contains("event: gap"), "{text}");
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let event: Value = serde_json::from_str(data).unwrap();
    assert_eq!((&event["type"], &event["data"]), (&Value::from("tick"), &Value::from(7)));
    assert!(!text.contains("event:"), "events have no name, so that onmessage sees them: {text}");
}

#[tokio::test]
async fn a_tail_shows_only_its_subject_and_refuses_what_is_none() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    crate::post_event(&nerve, "other", "other", "{}").await;
    publish_ticks(&streams, 0, 1).await;
    let response = reqwest::get(nerve.url("/v1/events?subject=events.tick&from=1")).await.unwrap();
    let text = read_until(response, "id: 2\n").await;
    assert!(!text.contains("other"), "{text}");
    for query in ["subject=events..tick", "subject=events.tick&from=soon"] {
        let response = reqwest::get(nerve.url(&format!("/v1/events?{query}"))).await.unwrap();
        assert_eq!(crate::problem(response).await.0, 400, "{query}");
    }
}

//! Bodies over the broker's payload limit: stored by reference, and a function gets the whole.

use crate::{digesting_github, identity::function, post_event, up_with_github};
use nerve_tests::{Nats, Nerve, Streams, github, guest, nerve, seconds};

/// A JSON body of exactly `size` bytes that no compression or repetition hides a mistake in.
fn body(size: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(size);
    body.extend_from_slice(b"{\"action\":\"created\",\"filler\":\"");
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    while body.len() < size - 2 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        body.push(b'a' + (state >> 33) as u8 % 26);
    }
    body.extend_from_slice(b"\"}");
    body
}

#[tokio::test]
async fn bodies_of_5_and_24_megabytes_reach_a_function_whole() {
    let nerve = up_with_github().await;
    nerve.cli().deploy(digesting_github().path()).await;
    let streams = Streams::connect(&nerve.nats).await;
    for (n, size) in [5 << 20, 24_000_000].into_iter().enumerate() {
        let body = body(size);
        let sum = guest::sum(&body);
        let request = github::delivery(&nerve.url("/hooks/github"), "push", &format!("large-{n}"), body);
        let response = request.send().await.unwrap();
        assert!(response.status().is_success(), "{size}: {response:?}");
        streams.reaches("EVENTS", "events.digest.made", n + 1, seconds(30)).await;
        let results = streams.read("EVENTS", "events.digest.made").await;
        assert_eq!(String::from_utf8_lossy(&results[n].data), sum, "{size}");
    }
    let stored = streams.read("EVENTS", "events.github.>").await;
    assert!(stored.iter().all(|event| event.data.len() < 1 << 20), "the messages themselves are small");
}

#[tokio::test]
async fn a_large_body_reaches_a_process_whole() {
    let nerve = up_with_github().await;
    let script = "import json, sys\n\
                  for line in sys.stdin:\n    \
                      call = json.loads(line)\n    \
                      size = len(call['event']['data']['filler'])\n    \
                      event = {'type': 'size.measured', 'data': size}\n    \
                      print(json.dumps({'id': call['id'], 'events': [event]}), flush=True)\n";
    let folder = guest::python("measure", "events.github.>", "size.measured", "", script);
    nerve.cli().deploy(folder.path()).await;
    let streams = Streams::connect(&nerve.nats).await;
    let body = body(5 << 20);
    let filler = body.len() - "{\"action\":\"created\",\"filler\":\"\"}".len();
    let request = github::delivery(&nerve.url("/hooks/github"), "push", "large", body);
    assert!(request.send().await.unwrap().status().is_success());
    streams.reaches("EVENTS", "events.size.measured", 1, seconds(30)).await;
    let results = streams.read("EVENTS", "events.size.measured").await;
    assert_eq!(results[0].data, filler.to_string());
}

#[tokio::test]
async fn body_that_cannot_be_read_holds_up_no_other_event() {
    let nats = Nats::start().await;
    let streams = Streams::connect(&nats.url()).await;
    let gateway = Nerve::gateway(&nats.url()).await;
    let extra = "concurrency = 1";
    gateway.cli().deploy(function("\"c.*\"", extra, "say(call, events=results('c.out'))").path()).await;
    let large = String::from_utf8(body(1_030_000)).unwrap();
    post_event(&gateway, "in", "1", &large).await;
    // As when another event stores the same body again: the chunks disappear while they are read.
    streams.stream("OBJ_bodies").await.purge().filter("$O.bodies.C.>").await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let worker = nerve::worker(&nats.url(), data.path()).await;
    post_event(&gateway, "in", "2", "{}").await;
    streams.reaches("EVENTS", "events.c.out", 1, seconds(60)).await;
    post_event(&gateway, "in", "3", &large).await;
    streams.reaches("EVENTS", "events.c.out", 3, seconds(60)).await;
    assert_eq!(streams.count("DEAD", "dead.>").await, 0);
    drop(worker);
}

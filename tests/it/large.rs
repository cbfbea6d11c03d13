//! Bodies over the broker's payload limit: stored by reference, and a function gets the whole.

use crate::{digesting_github, identity::function, post_event, up_with_github};
use futures::StreamExt;
use nerve_tests::{Nerve, Streams, github, guest, seconds};

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
async fn body_that_is_stored_again_while_it_is_read_reaches_each_function() {
    let nerve = Nerve::up().await;
    nerve.cli().deploy(function("\"c.*\"", "", "say(call, events=results('c.out'))").path()).await;
    let streams = Streams::connect(&nerve.nats).await;
    // The same body under other ids: each is an event of its own, and stores the body anew.
    let body = String::from_utf8(body(1_030_000)).unwrap();
    let post = |n: usize| {
        let (nerve, body) = (&nerve, &body);
        async move { assert_eq!(post_event(nerve, "in", &n.to_string(), body).await, 202) }
    };
    futures::stream::iter(0..120).map(post).buffer_unordered(8).collect::<Vec<_>>().await;
    streams.reaches("EVENTS", "events.c.out", 120, seconds(90)).await;
}

//! A worker among what changes around it: batches, consumers, streams of the user's own, services.

use crate::post_event;
use nerve_tests::{Folder, Nerve, Streams, eventually, guest, seconds};
use std::collections::BTreeSet;

/// Answers each line with one event; the id `bad` is invalid.
const ANSWERS: &str = r#"import json, sys
for line in sys.stdin:
    call = json.loads(line)
    of = call["event"]["id"]
    if of == "bad":
        print(json.dumps({"id": call["id"], "error": {"kind": "invalid", "message": "bad"}}), flush=True)
    else:
        print(json.dumps({"id": call["id"], "events": [{"type": "b", "data": [of, n]} for n in range(3)]}), flush=True)
"#;

#[tokio::test]
async fn a_bad_event_in_a_batch_costs_itself_only_and_results_keep_their_order() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let extra = "batch = { size = 8, wait = \"200ms\" }\nconcurrency = 2";
    nerve.cli().deploy(guest::python("batched", "events.a", "b", extra, ANSWERS).path()).await;
    for n in 0..20 {
        let id = if n == 5 { "bad".to_owned() } else { n.to_string() };
        post_event(&nerve, "a", &id, "{}").await;
    }
    streams.reaches("EVENTS", "events.b", 19 * 3, seconds(30)).await;
    streams.reaches("DEAD", "dead.batched", 1, seconds(10)).await;
    let results = streams.read("EVENTS", "events.b").await;
    let distinct: BTreeSet<_> = results.iter().map(|result| result.data.clone()).collect();
    assert_eq!((results.len(), distinct.len()), (19 * 3, 19 * 3));
    let of_seven: Vec<_> = results.iter().filter(|result| result.header("ce-causationid") == "7").collect();
    let order: Vec<_> = of_seven.iter().map(|result| String::from_utf8_lossy(&result.data).replace(' ', "")).collect();
    assert_eq!(order, ["[\"7\",0]", "[\"7\",1]", "[\"7\",2]"]);
}

#[tokio::test]
async fn a_consumer_that_somebody_deletes_is_made_again() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(guest::wasm("echo", "events.a", "b", "", &guest::echo("b")).path()).await;
    post_event(&nerve, "a", "1", "\"x\"").await;
    streams.reaches("EVENTS", "events.b", 1, seconds(20)).await;
    let events = streams.stream("EVENTS").await;
    events.delete_consumer("nerve-echo").await.expect("a consumer to delete");
    eventually("the consumer is there again", seconds(20), || async {
        streams.consumer("EVENTS", "echo").await.map(drop)
    })
    .await;
    post_event(&nerve, "a", "2", "\"y\"").await;
    streams.reaches("EVENTS", "events.b", 2, seconds(20)).await;
}

#[tokio::test]
async fn a_function_may_be_bound_to_a_stream_of_the_users_own() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let orders = async_nats::jetstream::stream::Config {
        name: "ORDERS".into(),
        subjects: vec!["orders.>".into()],
        ..Default::default()
    };
    streams.jetstream.create_stream(orders).await.expect("a stream of the user's own");
    nerve.cli().deploy(guest::wasm("found", "orders.*", "order.seen", "", &guest::echo("order.seen")).path()).await;
    let named = guest::wasm("named", "orders.*", "order.named", "stream = \"ORDERS\"", &guest::echo("order.named"));
    nerve.cli().deploy(named.path()).await;
    // A plain message: no CloudEvent, no id.
    let sent = streams.jetstream.publish("orders.created", "{\"n\":1}".into()).await;
    sent.expect("a publish").await.expect("an acknowledgement");
    for subject in ["events.order.seen", "events.order.named"] {
        streams.reaches("EVENTS", subject, 1, seconds(20)).await;
        let results = streams.read("EVENTS", subject).await;
        assert_eq!((&results[0].data[..], results[0].header("ce-causationid")), (&b"{\"n\":1}"[..], "ORDERS:1"));
    }
}

#[tokio::test]
async fn a_function_that_waits_for_its_secret_starts_once_it_is_set() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let folder = guest::wasm("shy", "events.a", "b", "secrets = [\"LATE_KEY\"]", &guest::echo("b"));
    nerve.cli().deploy(folder.path()).await;
    post_event(&nerve, "a", "1", "\"x\"").await;
    eventually("the log names the missing secret", seconds(20), || async {
        let logs = nerve.cli().run(&["logs", "shy", "--output", "json"]).await;
        (logs.stdout.contains("LATE_KEY") && logs.stdout.contains("nerve secrets set")).then_some(())
    })
    .await;
    assert_eq!(streams.count("EVENTS", "events.b").await, 0);
    nerve.cli().secret("LATE_KEY", "value").await;
    streams.reaches("EVENTS", "events.b", 1, seconds(20)).await;
}

#[tokio::test]
async fn the_workers_ack_wait_holds_whatever_the_deployers_was() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let folder = guest::wasm("echo", "events.a", "b", "", &guest::echo("b"));
    let mut deploy = nerve.cli().command(&["deploy", &folder.path().display().to_string()]);
    deploy.env("NERVE_WORKER_ACK_WAIT", "33s");
    let deployed = deploy.output().expect("nerve deploy");
    assert!(deployed.status.success(), "{deployed:?}");
    let events = streams.stream("EVENTS").await;
    eventually("the consumer has the worker's ack wait", seconds(20), || async {
        let wait = events.consumer_info("nerve-echo").await.ok()?.config.ack_wait;
        (wait != seconds(33)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_http_service_is_a_function_and_its_troubles_are_retried() {
    use axum::{Router, http::StatusCode, response::IntoResponse, routing::post};
    use std::sync::atomic::{AtomicUsize, Ordering};
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let service = async |headers: axum::http::HeaderMap, body: String| {
        if CALLS.fetch_add(1, Ordering::Relaxed) == 0 {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        assert_eq!(headers["ce-type"], "a");
        ([("ce-type", "b"), ("content-type", "application/json")], body).into_response()
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/", listener.local_addr().expect("its address"));
    let server = axum::serve(listener, Router::new().route("/", post(service))).into_future();

    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let manifest = format!(
        "[function.remote]\nruntime = \"http\"\nurl = \"{url}\"\non = [\"events.a\"]\nemits = [\"b\"]\n\
         retry = {{ attempts = 3, backoff = [\"100ms\"] }}\n"
    );
    nerve.cli().deploy(Folder::new(&manifest).path()).await;
    let story = async {
        post_event(&nerve, "a", "1", "{\"n\":1}").await;
        streams.reaches("EVENTS", "events.b", 1, seconds(20)).await;
    };
    tokio::select! {
        () = story => {}
        _ = server => panic!("the service ended"),
    }
    assert_eq!(CALLS.load(Ordering::Relaxed), 2);
    assert_eq!(streams.read("EVENTS", "events.b").await[0].data, "{\"n\":1}");
}

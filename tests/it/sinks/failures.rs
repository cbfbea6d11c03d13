//! What becomes of what an endpoint does not take: tried again, in order, given up, sent again, disabled.

use super::{attempts, call, ids, sink};
use crate::post_event;
use nerve_tests::{Nats, Nerve, Receiver, Streams, daemon::Daemon, eventually, nerve, receiver::Reply, seconds};
use serde_json::{Value, json};

#[tokio::test]
async fn whatever_an_endpoint_does_its_event_comes_again_under_one_id() {
    let nerve = Nerve::up().await;
    let replies = [
        Reply::Status(500),
        Reply::Later(429, "2"),
        Reply::Hang,
        Reply::BreakOff,
        Reply::Redirect("http://169.254.169.254/latest/meta-data/"),
        Reply::Status(404),
    ];
    let (cli, endpoint) = (nerve.cli(), Receiver::start(replies).await);
    let lines = "timeout = \"500ms\"\nretry = { attempts = 9, backoff = [\"100ms\"] }";
    cli.deploy(sink(&endpoint.url, lines).path()).await;
    post_event(&nerve, "a", "1", "{}").await;
    let received = endpoint.reaches(7, seconds(60)).await;
    assert_eq!(ids(&received).len(), 1, "{received:#?}");
    let waited = received[2].at - received[1].at;
    assert!(waited >= seconds(2), "the endpoint asked for 2 s and got {waited:?}");
    let attempts = attempts(&cli, 7).await;
    let told: Vec<(Value, Value)> =
        attempts.iter().map(|attempt| (attempt["status"].clone(), attempt["outcome"].clone())).collect();
    let retry = |status: Value| (status, json!("retry"));
    let retried = [json!(500), json!(429), Value::Null, json!(200), json!(302), json!(404)].map(retry);
    assert_eq!(told[..6], retried, "{attempts:#?}");
    assert_eq!(told[6], (json!(204), json!("delivered")));
    for (number, said) in [(0, "500"), (2, "no response within"), (3, "incomplete"), (4, "not followed")] {
        assert!(attempts[number]["error"].as_str().unwrap().contains(said), "{:#?}", attempts[number]);
    }
    assert_eq!((&attempts[0]["answer"], &attempts[3]["answer"]), (&json!("said 500"), &json!("half")));
    let numbers: Vec<u64> = attempts.iter().map(|attempt| attempt["attempt"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
    // What waited and what was due is gone, and nothing was given up.
    let streams = Streams::connect(&nerve.nats).await;
    assert_eq!((streams.count("TIMERS", "timers.wait.>").await, streams.count("DEAD", ">").await), (0, 0));
    assert_eq!(endpoint.received().len(), 7);
}

#[tokio::test]
async fn what_is_given_up_is_kept_whole_and_sent_again_on_demand() {
    let nerve = Nerve::up().await;
    let (cli, endpoint) = (nerve.cli(), Receiver::start([]).await);
    let streams = Streams::connect(&nerve.nats).await;
    endpoint.from_now_on(Reply::Status(503));
    cli.deploy(sink(&endpoint.url, "retry = { attempts = 2, backoff = [\"50ms\"] }").path()).await;
    for id in ["1", "2", "3"] {
        post_event(&nerve, "a", id, r#"{"k": "v"}"#).await;
    }
    streams.reaches("DEAD", "dead.crm", 3, seconds(40)).await;
    let letters = cli.run(&["dlq", "list", "crm", "--output", "json"]).await.ok().json();
    let letter = &letters[0];
    assert_eq!((&letter["attempts"], &letter["event"]["data"]), (&json!(2), &json!({"k": "v"})), "{letter}");
    let errors = letter["errors"].as_array().unwrap();
    let told = |error: &Value| error["error"]["message"].as_str().unwrap().contains("503");
    assert!(errors.len() == 2 && errors.iter().all(told), "{letter}");
    assert_eq!(call(&cli, &["attempts", "crm", "--failed"]).await.as_array().unwrap().len(), 6);

    endpoint.from_now_on(Reply::Status(204));
    let before = endpoint.received().len();
    let known = call(&cli, &["attempts", "crm", "--event", "2"]).await[0]["id"].as_str().unwrap().to_owned();
    call(&cli, &["redeliver", "crm", "2"]).await;
    let received = endpoint.reaches(before + 1, seconds(30)).await;
    assert_eq!(received[before].header("webhook-id"), known, "it is known by the same id");
    let last = eventually("it is delivered", seconds(20), || async {
        let attempts = call(&cli, &["attempts", "crm", "--event", &known]).await;
        attempts.as_array().unwrap().last().cloned().filter(|last| last["outcome"] == "delivered")
    })
    .await;
    assert_eq!(last["attempt"], 1, "attempts count anew");
    assert_eq!(streams.count("DEAD", "dead.crm").await, 2, "it is no dead letter any more");

    let dry = call(&cli, &["redeliver", "crm", "--since", "1h", "--dry-run"]).await;
    let due = dry["redelivered"].as_array().unwrap();
    assert_eq!((due.len(), streams.count("DEAD", "dead.crm").await), (2, 2), "{dry}");
    // Its letter is all that is left of it.
    let place = due[0]["sequence"].as_u64().unwrap();
    streams.stream("EVENTS").await.delete_message(place).await.unwrap();
    call(&cli, &["redeliver", "crm", "--since", "1h"]).await;
    let received = endpoint.reaches(before + 3, seconds(30)).await;
    assert_eq!(ids(&received[before..]).len(), 3);
    assert_eq!(streams.count("DEAD", "dead.crm").await, 0);
    attempts(&cli, 9).await;
    let all = call(&cli, &["redeliver", "crm", "--since", "1h", "--all", "--dry-run"]).await;
    assert_eq!(all["redelivered"].as_array().unwrap().len(), 3, "{all}");

    let gone = cli.run(&["sink", "redeliver", "crm", &place.to_string()]).await.failed(1);
    assert!(gone.stderr.contains("neither in the stream nor dead letters"), "{gone:?}");

    endpoint.from_now_on(Reply::Status(503));
    post_event(&nerve, "a", "4", "{}").await;
    streams.reaches("DEAD", "dead.crm", 1, seconds(40)).await;
    endpoint.from_now_on(Reply::Status(204));
    let before = endpoint.received().len();
    cli.run(&["dlq", "redrive", "--function", "crm"]).await.ok();
    endpoint.reaches(before + 1, seconds(30)).await;
    // By its place, whether it was posted or not.
    post_event(&nerve, "other", "x", "{}").await;
    let place = streams.read("EVENTS", "events.other").await[0].sequence.to_string();
    call(&cli, &["redeliver", "crm", &place]).await;
    assert_eq!(endpoint.reaches(before + 2, seconds(30)).await[before + 1].json()["type"], "other");
    let unknown = cli.run(&["sink", "redeliver", "crm", "nobody"]).await.failed(1);
    assert!(unknown.stderr.contains("event `nobody` was not posted"), "{unknown:?}");
}

#[tokio::test]
async fn a_redelivery_that_is_killed_loses_no_dead_letter_and_posts_none_twice() {
    const LETTERS: usize = 150;
    let nerve = Nerve::up().await;
    let (cli, endpoint) = (nerve.cli(), Receiver::start([]).await);
    let streams = Streams::connect(&nerve.nats).await;
    // What a template cannot make is given up at once.
    cli.deploy(sink(&endpoint.url, "template = '\"{{ type }}\"'").path()).await;
    for id in 0..LETTERS {
        post_event(&nerve, "a", &id.to_string(), "{}").await;
    }
    streams.reaches("DEAD", "dead.crm", LETTERS, seconds(60)).await;
    cli.deploy(sink(&endpoint.url, "").path()).await;
    eventually("the new revision is at work", seconds(20), || async {
        (cli.run(&["sink", "test", "crm"]).await.code == Some(0)).then_some(())
    })
    .await;
    let tried = endpoint.received().len();

    let redeliver = |places: Vec<String>| {
        let mut command = nerve.cli().command(&["sink", "redeliver", "crm"]);
        command.args(places);
        Daemon::spawn("nerve sink redeliver", &mut command)
    };
    let places = async || {
        let letters = streams.read("DEAD", "dead.crm").await;
        letters.iter().map(|letter| letter.header("nerve-sequence").to_owned()).collect::<Vec<_>>()
    };
    let mut first = redeliver(places().await);
    while streams.count("DEAD", "dead.crm").await == LETTERS {
        assert!(first.exited().is_none(), "{}", first.stderr());
    }
    first.kill9();
    let left = places().await;
    assert!(!left.is_empty(), "it was killed too late");
    assert!(redeliver(left).exit(seconds(60)).await.success());
    assert_eq!(streams.count("DEAD", "dead.crm").await, 0);
    let received = endpoint.reaches(tried + LETTERS, seconds(60)).await;
    assert_eq!((received.len(), ids(&received[tried..]).len()), (tried + LETTERS, LETTERS));
}

#[tokio::test]
async fn a_retry_outlives_its_worker_and_comes_once() {
    let nats = Nats::start().await;
    let nerve = Nerve::gateway(&nats.url()).await;
    let (cli, endpoint) = (nerve.cli(), Receiver::start([Reply::Status(500)]).await);
    let data = tempfile::tempdir().unwrap();
    let mut worker = nerve::worker(&nats.url(), data.path()).await;
    cli.deploy(sink(&endpoint.url, "retry = { attempts = 3, backoff = [\"3s\"] }").path()).await;
    post_event(&nerve, "a", "1", "{}").await;
    attempts(&cli, 1).await;
    let streams = Streams::connect(&nats.url()).await;
    streams.reaches("TIMERS", "timers.wait.crm.>", 1, seconds(20)).await;
    worker.kill9();
    // It is due while nobody is there to take it.
    streams.reaches("TIMERS", "timers.due.crm", 1, seconds(20)).await;
    assert_eq!(endpoint.received().len(), 1);
    let _worker = nerve::worker(&nats.url(), data.path()).await;
    let received = endpoint.reaches(2, seconds(30)).await;
    assert_eq!(ids(&received).len(), 1);
    let attempts = attempts(&cli, 2).await;
    assert_eq!((&attempts[1]["attempt"], &attempts[1]["outcome"]), (&json!(2), &json!("delivered")));
    // Longer than the ack wait: a delivery that was not settled would be back.
    tokio::time::sleep(seconds(4)).await;
    assert_eq!(endpoint.received().len(), 2);
}

#[tokio::test]
async fn an_endpoint_that_fails_for_long_is_disabled_until_it_is_enabled() {
    let nerve = Nerve::up().await;
    let (cli, endpoint) = (nerve.cli(), Receiver::start([]).await);
    let streams = Streams::connect(&nerve.nats).await;
    endpoint.from_now_on(Reply::Status(500));
    let lines = "disable_after = \"1s\"\nretry = { attempts = 50, backoff = [\"400ms\"] }";
    cli.deploy(sink(&endpoint.url, lines).path()).await;
    post_event(&nerve, "a", "1", "{}").await;
    streams.reaches("EVENTS", "events.sink.disabled", 1, seconds(40)).await;
    let event = &streams.read("EVENTS", "events.sink.disabled").await[0];
    let data: Value = serde_json::from_slice(&event.data).unwrap();
    assert_eq!((&data["sink"], &data["host"]), (&json!("crm"), &json!("127.0.0.1")), "{data}");
    assert!(data["reason"].as_str().unwrap().contains("500"), "{data}");
    let listed = eventually("the list says so", seconds(20), || async {
        let listed = call(&cli, &["list"]).await;
        listed[0]["state"]["disabled"].is_object().then_some(listed)
    })
    .await;
    assert!(listed[0]["state"]["failing_since"].is_string(), "{listed}");
    let refused = cli.run(&["sink", "test", "crm"]).await.failed(1);
    assert!(refused.stderr.contains("disabled"), "{refused:?}");
    // Nothing is posted any more, neither what is new nor what is due.
    post_event(&nerve, "a", "2", "{}").await;
    tokio::time::sleep(seconds(1)).await;
    let before = endpoint.received().len();
    tokio::time::sleep(seconds(2)).await;
    assert_eq!(endpoint.received().len(), before);

    endpoint.from_now_on(Reply::Status(204));
    call(&cli, &["enable", "crm"]).await;
    let received = endpoint.reaches(before + 2, seconds(40)).await;
    assert_eq!(ids(&received[before..]).len(), 2, "what has waited is posted");
    eventually("its endpoint is well", seconds(20), || async {
        (call(&cli, &["list"]).await[0]["state"] == json!({})).then_some(())
    })
    .await;

    // One that says that it is gone is disabled at once, and by hand it is, too.
    endpoint.from_now_on(Reply::Status(410));
    post_event(&nerve, "a", "3", "{}").await;
    streams.reaches("EVENTS", "events.sink.disabled", 2, seconds(40)).await;
    endpoint.from_now_on(Reply::Status(204));
    eventually("it is enabled again", seconds(20), || async {
        (call(&cli, &["enable", "crm"]).await["changed"] == true).then_some(())
    })
    .await;
    let disabled = call(&cli, &["disable", "crm"]).await;
    assert_eq!(disabled["changed"], true);
    let reasons = streams.read("EVENTS", "events.sink.disabled").await;
    let reason = |at: usize| serde_json::from_slice::<Value>(&reasons[at].data).unwrap()["reason"].to_string();
    assert!(reason(1).contains("410") && reason(reasons.len() - 1).contains("by hand"));
    streams.reaches("EVENTS", "events.sink.enabled", 2, seconds(10)).await;
}

#[tokio::test]
async fn in_order_an_event_waits_for_the_one_before_it() {
    let nerve = Nerve::up().await;
    let (cli, endpoint) = (nerve.cli(), Receiver::start([Reply::Status(500), Reply::Status(500)]).await);
    let lines = "order = true\nretry = { attempts = 5, backoff = [\"300ms\"] }";
    cli.deploy(sink(&endpoint.url, lines).path()).await;
    for n in 1..=5 {
        post_event(&nerve, "a", &n.to_string(), &json!({"n": n}).to_string()).await;
    }
    let received = endpoint.reaches(7, seconds(60)).await;
    let order: Vec<u64> = received.iter().map(|one| one.json()["data"]["n"].as_u64().unwrap()).collect();
    assert_eq!(order, [1, 1, 1, 2, 3, 4, 5]);
    let attempts = attempts(&cli, 7).await;
    let numbers: Vec<u64> = attempts.iter().map(|attempt| attempt["attempt"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3, 1, 1, 1, 1]);
}

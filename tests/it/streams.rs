//! The streams that functions are bound to: which one, what its retention means, and EVENTS at its bounds.

use crate::post_event;
use async_nats::jetstream::{
    consumer::{AckPolicy, pull},
    stream::{Config, DiscardPolicy, RetentionPolicy},
};
use futures::TryStreamExt;
use nerve_tests::{Folder, Nerve, Streams, eventually, guest, nerve::Options, seconds};
use serde_json::Value;
use std::{collections::BTreeSet, path::Path};

/// A stream of the user's own.
async fn make(streams: &Streams, name: &str, subjects: &[&str], retention: RetentionPolicy) {
    let subjects = subjects.iter().map(|subject| (*subject).to_owned()).collect();
    let config = Config { name: name.into(), subjects, retention, ..Config::default() };
    streams.jetstream.create_stream(config).await.expect("a stream of the user's own");
}

async fn send(streams: &Streams, subject: &str, body: &str) {
    let sent = streams.jetstream.publish(subject.to_owned(), body.to_owned().into()).await;
    sent.expect("a publish").await.expect("an acknowledgement");
}

fn echo(name: &str, on: &str, extra: &str) -> Folder {
    guest::wasm(name, on, "done", extra, &guest::echo("done"))
}

/// Deploys what must be refused, and returns the reason.
async fn refused(nerve: &Nerve, folder: &Folder) -> String {
    let path = folder.path().display().to_string();
    nerve.cli().run(&["deploy", &path]).await.failed(1).stderr
}

/// `nerve up` with EVENTS bounded to so many bytes.
async fn bounded(bytes: u64, envs: &[(&str, &str)]) -> Nerve {
    let envs = envs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let bound = ("NERVE_STREAMS_EVENTS_MAX_BYTES".to_owned(), bytes.to_string());
    Nerve::up_with(Options { envs: envs.chain([bound]).collect(), ..Options::default() }).await
}

/// Posts an event; the status, the header Retry-After, and the body.
async fn post(nerve: &Nerve, ty: &str, id: &str, data: &str) -> (u16, Option<String>, Value) {
    let request = reqwest::Client::new().post(nerve.url("/v1/events")).header("ce-specversion", "1.0");
    let request = request.header("ce-id", id).header("ce-source", "/test").header("ce-type", ty);
    let answer = request.header("content-type", "application/json").body(data.to_owned()).send().await;
    let answer = answer.expect("an answer");
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let retry = headers.get("retry-after").map(|value| value.to_str().expect("text").to_owned());
    (status, retry, answer.json().await.expect("JSON"))
}

async fn metric(nerve: &Nerve, name: &str) -> u64 {
    let text = reqwest::get(nerve.url("/metrics")).await.expect("an answer").text().await.expect("text");
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn subjects_in_several_streams_are_refused_until_one_is_named() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    make(&streams, "OA", &["orders.a.>"], RetentionPolicy::Limits).await;
    make(&streams, "OB", &["orders.b.>"], RetentionPolicy::Limits).await;
    for (on, extra, said) in [
        ("orders.>", "", &["OA (`orders.a.>`), OB (`orders.b.>`)", "stream = \"OA\"", "one function per stream"][..]),
        ("*.a.x", "", &["in 2 streams, and a function reads one: EVENTS (`events.>`), OA (`orders.a.>`)"]),
        ("empty.f", "", &["no stream has the subject `empty.f`"]),
        ("empty.f", "stream = \"EVENTS\"", &["EVENTS has no subject that matches `empty.f`"]),
        ("timers.>", "", &["no stream has the subject `timers.>`"]),
        ("timers.>", "stream = \"TIMERS\"", &["TIMERS", "Nerve's own"]),
        ("$KV.functions.>", "stream = \"KV_functions\"", &["KV_functions", "Nerve's own"]),
        ("orders.a.x", "stream = \"OB\"", &["OB has no subject that matches `orders.a.x`"]),
        ("orders.a.x", "stream = \"NONE\"", &["NONE cannot be used"]),
    ] {
        let why = refused(&nerve, &echo("f", on, extra)).await;
        assert!(said.iter().all(|said| why.contains(said)), "{on} {extra}: {why}");
    }
    let sink = Folder::new("[sink.crm]\nurl = \"https://hooks.example.com/\"\non = [\"orders.>\"]\n");
    let why = refused(&nerve, &sink).await;
    assert!(why.contains("OA (`orders.a.>`), OB (`orders.b.>`)"), "{why}");
    for name in ["EVENTS", "OA", "OB", "TIMERS"] {
        assert_eq!(streams.functions(name).await, Vec::<String>::new(), "{name}");
    }

    nerve.cli().deploy(echo("f", "orders.>", "stream = \"OA\"").path()).await;
    send(&streams, "orders.b.x", "\"b\"").await;
    send(&streams, "orders.a.x", "\"a\"").await;
    streams.reaches("EVENTS", "events.done", 1, seconds(20)).await;
    let done = streams.read("EVENTS", "events.done").await;
    assert_eq!((done.len(), &done[0].data[..]), (1, &b"\"a\""[..]));
}

#[tokio::test]
async fn function_is_bound_to_no_stream_of_nerves_own_but_events() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let names: Vec<String> = streams.jetstream.stream_names().try_collect().await.unwrap();
    assert!(names.len() > 10, "{names:?}");
    for name in names.iter().filter(|name| *name != "EVENTS") {
        let why = refused(&nerve, &echo("f", "orders.>", &format!("stream = \"{name}\""))).await;
        assert!(why.contains("is one of Nerve's own streams"), "{name}: {why}");
    }
}

#[tokio::test]
async fn a_mirror_takes_functions_when_it_is_named() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    make(&streams, "ORDERS", &["orders.>"], RetentionPolicy::Limits).await;
    let origin = async_nats::jetstream::stream::Source { name: "ORDERS".into(), ..Default::default() };
    let mirror = Config { name: "COPY".into(), mirror: Some(origin), ..Config::default() };
    streams.jetstream.create_stream(mirror).await.expect("a mirror");
    nerve.cli().deploy(echo("f", "orders.>", "stream = \"COPY\"").path()).await;
    send(&streams, "orders.x", "\"a\"").await;
    streams.reaches("EVENTS", "events.done", 1, seconds(20)).await;
}

#[tokio::test]
async fn a_work_queue_gives_its_backlog_and_keeps_nothing() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    make(&streams, "JOBS", &["jobs.>"], RetentionPolicy::WorkQueue).await;
    for n in 0..5 {
        send(&streams, "jobs.resize", &format!("\"{n}\"")).await;
    }
    nerve.cli().deploy(echo("work", "jobs.resize", "").path()).await;
    streams.reaches("EVENTS", "events.done", 5, seconds(20)).await;
    eventually("the jobs are removed", seconds(20), || async { (streams.count("JOBS", ">").await == 0).then_some(()) })
        .await;
    let done = streams.read("EVENTS", "events.done").await;
    let bodies: BTreeSet<_> = done.iter().map(|done| done.data.clone()).collect();
    assert_eq!((done.len(), bodies.len()), (5, 5));

    let replay = nerve.cli().run(&["replay", "work", "--since", "first"]).await.failed(1);
    for said in ["cannot replay `work`", "JOBS is a work queue", "publish the messages again"] {
        assert!(replay.stderr.contains(said), "{replay:?}");
    }
    // The same function again changes nothing; another one would share its messages.
    nerve.cli().deploy(echo("work", "jobs.resize", "").path()).await;
    let why = refused(&nerve, &echo("other", "jobs.>", "")).await;
    for said in ["JOBS is a work queue", "`work` takes `jobs.resize`", "do not overlap"] {
        assert!(why.contains(said), "{why}");
    }
    assert_eq!(streams.functions("JOBS").await, ["work"]);
    nerve.cli().deploy(echo("other", "jobs.print", "").path()).await;
}

#[tokio::test]
async fn an_interest_stream_gives_what_it_still_has() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    make(&streams, "NEWS", &["news.>"], RetentionPolicy::Interest).await;
    let slow = pull::Config { durable_name: Some("slow".into()), ..Default::default() };
    streams.stream("NEWS").await.create_consumer(slow).await.expect("another consumer");
    send(&streams, "news.a", "\"1\"").await;
    nerve.cli().deploy(echo("read", "news.>", "").path()).await;
    send(&streams, "news.a", "\"2\"").await;
    streams.reaches("EVENTS", "events.done", 2, seconds(20)).await;
    let replay = nerve.cli().run(&["replay", "read", "--since", "first"]).await.failed(1);
    assert!(replay.stderr.contains("NEWS has the retention `interest`"), "{replay:?}");
}

/// A process that takes 10 ms for an event, and appends its id to a file. It begins once there is a file `start` beside that.
fn slow(file: &Path) -> Folder {
    let script = format!(
        "import json, os, sys, time\n\
         for line in sys.stdin:\n    \
             call = json.loads(line)\n    \
             while not os.path.exists({:?}): time.sleep(0.01)\n    \
             time.sleep(0.01)\n    \
             with open({:?}, 'a') as file: file.write(call['event']['id'] + '\\n')\n    \
             print(json.dumps({{'id': call['id'], 'events': [{{'type': 'done', 'data': 1}}]}}), flush=True)\n",
        file.with_file_name("start").display().to_string(),
        file.display().to_string()
    );
    guest::python("slow", "events.a", "done", "", &script)
}

#[tokio::test]
async fn each_acknowledged_event_is_run_when_the_log_is_full() {
    let nerve = bounded(100_000, &[]).await;
    let streams = Streams::connect(&nerve.nats).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("ran");
    nerve.cli().deploy(slow(&file).path()).await;
    let mut refusals = 0;
    let mut left: BTreeSet<String> = (0..1000).map(|n| n.to_string()).collect();
    let deadline = std::time::Instant::now() + seconds(100);
    while !left.is_empty() && std::time::Instant::now() < deadline {
        let mut again = BTreeSet::new();
        for id in left {
            match post(&nerve, "a", &id, "{}").await {
                (202, _, receipt) => assert_eq!(receipt["duplicate"], false, "{receipt}"),
                (503, Some(_), problem) => {
                    let detail = problem["detail"].as_str().expect("a detail");
                    assert!(detail.contains("EVENTS is full: `streams.events_max_bytes`"), "{detail}");
                    refusals += 1;
                    std::fs::write(file.with_file_name("start"), "").expect("the function starts");
                    again.insert(id);
                }
                other => panic!("{other:?}"),
            }
        }
        left = again;
    }
    assert!(left.is_empty() && refusals > 0, "{refusals} refusals, {} left", left.len());
    let stream = streams.stream("EVENTS").await;
    eventually("the function has finished", seconds(60), || async {
        let info = stream.consumer_info("nerve-slow").await.ok()?;
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    })
    .await;
    let ran = std::fs::read_to_string(&file).expect("what has run");
    assert_eq!(ran.lines().collect::<BTreeSet<_>>().len(), 1000);
    assert_eq!(streams.count("DEAD", ">").await, 0);
    assert!(metric(&nerve, "nerve_events_trimmed_total").await > 0);
}

#[tokio::test]
async fn a_full_log_without_functions_goes_on_with_the_newest() {
    let nerve = bounded(100_000, &[]).await;
    let streams = Streams::connect(&nerve.nats).await;
    let data = serde_json::json!("x".repeat(1000)).to_string();
    for n in 0..500 {
        assert_eq!(post(&nerve, "a", &n.to_string(), &data).await.0, 202, "{n}");
    }
    let left = streams.read("EVENTS", "events.a").await;
    assert_eq!(left.last().expect("events").header("ce-id"), "499");
    assert!(left.len() < 100, "{}", left.len());
    assert!(metric(&nerve, "nerve_events_trimmed_total").await >= 400);
}

#[tokio::test]
async fn a_consumer_that_holds_the_log_is_named_until_it_goes_on() {
    let nerve = bounded(100_000, &[]).await;
    let streams = Streams::connect(&nerve.nats).await;
    let audit = pull::Config {
        durable_name: Some("audit".into()),
        ack_policy: AckPolicy::All,
        filter_subject: "events.a".into(),
        ..Default::default()
    };
    let stream = streams.stream("EVENTS").await;
    let audit = stream.create_consumer(audit).await.expect("a consumer of another system");
    let data = serde_json::json!("x".repeat(1000)).to_string();
    assert_eq!(post(&nerve, "other", "first", &data).await.0, 202);
    let mut taken = 0;
    let problem = loop {
        match post(&nerve, "a", &taken.to_string(), &data).await {
            (202, ..) => taken += 1,
            (503, Some(_), problem) => break problem,
            other => panic!("{other:?}"),
        }
    };
    let detail = problem["detail"].as_str().expect("a detail");
    assert!((50..100).contains(&taken), "{taken}");
    for said in
        ["limits it to 100000 bytes", "the consumer `audit`", &format!("{taken} unfinished events"), "the first at 2"]
    {
        assert!(detail.contains(said), "{said}: {detail}");
    }
    // Nothing that it has not acknowledged is gone, and what it has nothing to do with does not stay for it.
    assert_eq!(streams.count("EVENTS", "events.a").await, taken);
    assert_eq!(streams.count("EVENTS", "events.other").await, 0);
    let ready: Value = reqwest::get(nerve.url("/readyz")).await.expect("an answer").json().await.expect("JSON");
    let checks = ready["checks"].as_array().expect("checks");
    assert!(checks.iter().any(|check| check["name"] == "events"), "{ready}");

    use futures::StreamExt;
    let messages = audit.fetch().max_messages(taken).messages().await.expect("messages");
    let last = messages.collect::<Vec<_>>().await.pop().expect("a message").expect("a message");
    last.ack().await.expect("an acknowledgement");
    eventually("intake goes on", seconds(20), || async {
        (post(&nerve, "a", "more", "{}").await.0 == 202).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_log_that_refuses_removes_nothing() {
    let nerve = bounded(100_000, &[("NERVE_STREAMS_EVENTS_FULL", "refuse")]).await;
    let streams = Streams::connect(&nerve.nats).await;
    let data = serde_json::json!("x".repeat(1000)).to_string();
    let mut taken = 0;
    let problem = loop {
        match post(&nerve, "a", &taken.to_string(), &data).await {
            (202, ..) => taken += 1,
            (503, _, problem) => break problem,
            other => panic!("{other:?}"),
        }
    };
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("streams.events_full")), "{problem}");
    assert_eq!(streams.count("EVENTS", "events.a").await, taken);
    let config = streams.stream("EVENTS").await.cached_info().config.clone();
    assert_eq!((config.discard, config.max_bytes), (DiscardPolicy::New, 100_000));
}

#[tokio::test]
async fn an_event_that_expires_before_its_function_is_counted() {
    let envs = [("NERVE_STREAMS_EVENTS_MAX_AGE", "10s"), ("NERVE_STREAMS_DEDUPE_WINDOW", "10s")];
    let nerve = bounded(10_000_000, &envs).await;
    let streams = Streams::connect(&nerve.nats).await;
    // Without its secret it is never started, and takes nothing.
    nerve.cli().deploy(echo("late", "events.a", "secrets = [\"NEVER_SET\"]").path()).await;
    for n in 0..7 {
        assert_eq!(post_event(&nerve, "a", &n.to_string(), "{}").await / 100, 2);
        assert_eq!(post_event(&nerve, "other", &n.to_string(), "{}").await / 100, 2);
    }
    eventually("the events have expired", seconds(30), || async {
        (streams.count("EVENTS", "events.a").await == 0).then_some(())
    })
    .await;
    eventually("they are counted", seconds(20), || async {
        (metric(&nerve, "nerve_events_expired_total{function=\"late\"}").await == 7).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_log_of_before_keeps_its_bound_and_loses_nothing() {
    for schedules in [true, false] {
        let nats = nerve_tests::Nats::start().await;
        let streams = Streams::connect(&nats.url()).await;
        let before = Config {
            name: "EVENTS".into(),
            subjects: vec!["events.>".into()],
            max_bytes: 100_000,
            allow_message_schedules: schedules,
            ..Config::default()
        };
        streams.jetstream.create_stream(before).await.expect("a stream as an older Nerve made it");
        let audit = pull::Config { durable_name: Some("audit".into()), ..Default::default() };
        streams.stream("EVENTS").await.create_consumer(audit).await.expect("a consumer of another system");
        send(&streams, "events.a", "{}").await;
        let bound = ("NERVE_STREAMS_EVENTS_MAX_BYTES".to_owned(), "100000".to_owned());
        let nerve = Nerve::up_with(Options { nats: Some(nats.url()), envs: vec![bound], ..Options::default() }).await;
        let config = streams.stream("EVENTS").await.cached_info().config.clone();
        assert_eq!(config.max_bytes, -1, "the broker would drop what nobody has finished");
        let data = serde_json::json!("x".repeat(1000)).to_string();
        let mut taken = 1;
        while post(&nerve, "a", &taken.to_string(), &data).await.0 == 202 {
            taken += 1;
        }
        assert!((50..100).contains(&taken), "{taken}");
        assert_eq!(streams.count("EVENTS", "events.a").await, taken);
    }
}

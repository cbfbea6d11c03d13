//! The streams that functions are bound to: which one, and what its retention means.

use async_nats::jetstream::{
    consumer::pull,
    stream::{Config, RetentionPolicy},
};
use nerve_tests::{Folder, Nerve, Streams, eventually, guest, seconds};
use std::collections::BTreeSet;

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

#[tokio::test]
async fn subjects_in_several_streams_are_refused_until_one_is_named() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    make(&streams, "OA", &["orders.a.>"], RetentionPolicy::Limits).await;
    make(&streams, "OB", &["orders.b.>"], RetentionPolicy::Limits).await;
    for (on, extra, said) in [
        ("orders.>", "", &["OA (`orders.a.>`), OB (`orders.b.>`)", "stream = \"OA\"", "one function per stream"][..]),
        ("*.a.x", "", &["EVENTS (`events.>`), OA (`orders.a.>`)"]),
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

//! `nerve up`: one machine, one command, and what happens around its start and end.

use crate::post_event;
use nerve_tests::{Nats, Nerve, Streams, guest, nerve, nerve::Options, seconds};

#[tokio::test]
async fn a_second_nerve_up_on_the_same_data_says_so() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().to_owned();
    let first = Nerve::up_with(Options { data: Some(folder.clone()), ..Options::default() }).await;
    let mut command = nerve::command(["up", "--listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0", "--data"]);
    command.arg(&folder);
    let refused = nerve::call(command, "").await.failed(1);
    assert!(refused.stderr.contains(&folder.display().to_string()), "{refused:?}");
    assert!(
        refused.stderr.contains(&first.daemon.pid().to_string()) || refused.stderr.contains("already"),
        "{refused:?}"
    );
    assert_eq!(reqwest::get(first.url("/readyz")).await.unwrap().status(), 200, "the first one goes on");
}

#[tokio::test]
async fn a_restart_finds_functions_secrets_and_events() {
    let mut nerve = crate::up_with_github().await;
    nerve.cli().deploy(crate::digesting_github().path()).await;
    let url = nerve.url("/hooks/github");
    let send = |id: &str, body: &str| nerve_tests::github::delivery(&url, "ping", id, body.to_owned()).send();
    assert!(send("before", r#"{"n":1}"#).await.unwrap().status().is_success());
    Streams::connect(&nerve.nats).await.reaches("EVENTS", "events.digest.made", 1, seconds(20)).await;
    let status = nerve.sigterm(seconds(30)).await;
    assert!(status.success(), "SIGTERM is a normal end: {status}");
    nerve.restart().await;
    let streams = Streams::connect(&nerve.nats).await;
    assert_eq!(streams.count("EVENTS", ">").await, 2);
    crate::source_is_served(&nerve, "github").await;
    assert!(send("after", r#"{"n":2}"#).await.unwrap().status().is_success());
    streams.reaches("EVENTS", "events.digest.made", 2, seconds(20)).await;
    assert_eq!(streams.count("EVENTS", ">").await, 4);
}

#[tokio::test]
async fn sigterm_lets_work_in_flight_finish() {
    let nats = Nats::start().await;
    let options = Options { nats: Some(nats.url()), ..Options::default() };
    let mut nerve = Nerve::up_with(options).await;
    let script = "import json, sys, time\n\
                  for line in sys.stdin:\n    \
                      call = json.loads(line)\n    \
                      print('started', file=sys.stderr, flush=True)\n    \
                      time.sleep(2)\n    \
                      print(json.dumps({'id': call['id'], 'events': [{'type': 'b', 'data': 1}]}), flush=True)\n";
    nerve.cli().deploy(guest::python("slow", "events.a", "b", "", script).path()).await;
    let streams = Streams::connect(&nats.url()).await;
    post_event(&nerve, "a", "1", "{}").await;
    streams.reaches("LOGS", "logs.slow", 1, seconds(20)).await;
    let status = nerve.sigterm(seconds(30)).await;
    assert!(status.success(), "{status}");
    assert_eq!(streams.count("EVENTS", "events.b").await, 1, "the event in flight was finished before the end");
    assert_eq!(streams.functions("EVENTS").await, ["slow"], "the function's consumer stays");
}

#[tokio::test]
async fn sigterm_gives_back_what_outlasts_the_grace() {
    let nats = Nats::start().await;
    // An ack wait that the test would not live to see: the event comes again because it was given back.
    let envs = [("NERVE_WORKER_GRACE", "1s"), ("NERVE_WORKER_ACK_WAIT", "120s")];
    let envs = envs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let options = Options { nats: Some(nats.url()), envs, ..Options::default() };
    let mut nerve = Nerve::up_with(options).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flag = folder.path().join("seen");
    let script = format!(
        "import json, os, sys, time\n\
         for line in sys.stdin:\n    \
             call = json.loads(line)\n    \
             if not os.path.exists({flag:?}):\n        \
                 open({flag:?}, 'w').close()\n        \
                 time.sleep(100)\n    \
             print(json.dumps({{'id': call['id'], 'events': [{{'type': 'b', 'data': 1}}]}}), flush=True)\n"
    );
    nerve.cli().deploy(guest::python("long", "events.a", "b", "timeout = \"200s\"", &script).path()).await;
    let streams = Streams::connect(&nats.url()).await;
    post_event(&nerve, "a", "1", "{}").await;
    nerve_tests::eventually("the first try has begun", seconds(20), || async { flag.exists().then_some(()) }).await;
    let status = nerve.sigterm(seconds(30)).await;
    assert!(status.success(), "{status}");
    nerve.restart().await;
    streams.reaches("EVENTS", "events.b", 1, seconds(20)).await;
    assert_eq!(streams.count("DEAD", ">").await, 0);
}

#[tokio::test]
async fn what_a_process_says_on_stderr_is_in_its_logs() {
    let nerve = Nerve::up().await;
    let script = "import json, sys\n\
                  for line in sys.stdin:\n    \
                      call = json.loads(line)\n    \
                      print('heard ' + call['event']['id'], file=sys.stderr, flush=True)\n    \
                      print(json.dumps({'id': call['id'], 'events': []}), flush=True)\n";
    nerve.cli().deploy(guest::python("ear", "events.a", "b", "", script).path()).await;
    post_event(&nerve, "a", "the-sound", "{}").await;
    let streams = Streams::connect(&nerve.nats).await;
    streams.reaches("LOGS", "logs.ear", 1, seconds(20)).await;
    let logs = nerve.cli().run(&["logs", "ear"]).await.ok();
    assert!(logs.stdout.contains("heard the-sound"), "{logs:?}");
}

#[tokio::test]
async fn wrong_usage_exits_with_2_and_a_server_that_is_away_with_1() {
    let usage = nerve::call(nerve::command(["deploy", "--no-such-flag"]), "").await.failed(2);
    assert!(usage.stderr.contains("no-such-flag"), "{usage:?}");
    let away = format!("nats://127.0.0.1:{}", nerve_tests::nats::free_port());
    let refused = nerve_tests::Cli::new(&away).run(&["list"]).await.failed(1);
    assert!(refused.stderr.contains(&away), "{refused:?}");
}

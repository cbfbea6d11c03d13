//! `kill -9` in the middle of a run: nothing is lost, nothing comes twice.

use crate::{
    digesting_github,
    github::{PAYLOADS, each_once_with_one_result},
    source_is_served, up_with_github,
};
use nerve_tests::{
    Folder, Nats, Nerve, Script, Streams, daemon::command_name, eventually, github, guest, nerve, seconds,
};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use std::collections::BTreeSet;

/// So slow that a run takes some seconds and is surely cut in the middle.
const PACE_MS: &str = "250";

fn start_sending(nerve: &Nerve) -> Script {
    Script::node("github.mjs", &[&nerve.url("/hooks/github"), github::SECRET, PACE_MS])
}

async fn finish_sending(sender: Script) {
    let (sent, accepted) = sender.finish(seconds(180)).await;
    assert!(accepted, "{sent}");
}

#[tokio::test]
async fn nerve_up_killed_in_the_middle_of_a_run_and_started_again() {
    let mut nerve = up_with_github().await;
    nerve.cli().deploy(digesting_github().path()).await;
    let sender = start_sending(&nerve);
    let streams = Streams::connect(&nerve.nats).await;
    streams.reaches("EVENTS", "events.github.>", PAYLOADS / 3, seconds(60)).await;
    nerve.kill9();
    nerve.restart().await;
    finish_sending(sender).await;
    each_once_with_one_result(&Streams::connect(&nerve.nats).await).await;
}

#[tokio::test]
async fn the_nats_server_child_killed_in_the_middle_of_a_run() {
    let mut nerve = up_with_github().await;
    nerve.cli().deploy(digesting_github().path()).await;
    let sender = start_sending(&nerve);
    let streams = Streams::connect(&nerve.nats).await;
    streams.reaches("EVENTS", "events.github.>", PAYLOADS / 3, seconds(60)).await;
    let child = nerve.nats_child();
    kill(child, Signal::SIGKILL).unwrap();
    eventually("the child is gone", seconds(5), || async { command_name(child).is_none().then_some(()) }).await;
    // `nerve up` either starts another child or ends, to be restarted by its service manager.
    let client = reqwest::Client::new();
    let ready = nerve.url("/readyz");
    let ended = eventually("nerve up recovers or ends", seconds(30), || {
        let ended = nerve.daemon.exited().is_some();
        let probe = client.get(&ready).send();
        async move { if ended { Some(true) } else { probe.await.ok()?.status().is_success().then_some(false) } }
    });
    if ended.await {
        nerve.restart().await;
    }
    finish_sending(sender).await;
    each_once_with_one_result(&Streams::connect(&nerve.nats).await).await;
}

/// A source and a worker's function that takes 10 ms an event, one at a time: a kill always finds it at work.
fn slow_digest() -> Folder {
    let script = "import json, sys, time\n\
                  for line in sys.stdin:\n    \
                      call = json.loads(line)\n    \
                      time.sleep(0.01)\n    \
                      event = {'type': 'digest.made', 'data': {'of': call['event']['id']}}\n    \
                      print(json.dumps({'id': call['id'], 'events': [event]}), flush=True)\n";
    let function = "[function.digest]\nruntime = \"process\"\ncommand = [\"python3\", \"digest.py\"]\n\
                    on = [\"events.github.>\"]\nemits = [\"digest.made\"]\nconcurrency = 8\n";
    Folder::new(&format!("{}{function}", github::SOURCE)).with("digest.py", script)
}

#[tokio::test]
async fn a_separate_worker_killed_in_the_middle_of_a_run_and_started_again() {
    let nats = Nats::start().await;
    let data = tempfile::tempdir().unwrap();
    let gateway = Nerve::gateway(&nats.url()).await;
    let mut worker = nerve::worker(&nats.url(), data.path()).await;
    gateway.cli().secret("GITHUB_WEBHOOK_SECRET", github::SECRET).await;
    gateway.cli().deploy(slow_digest().path()).await;
    source_is_served(&gateway, "github").await;
    let sender = start_sending(&gateway);
    let streams = Streams::connect(&nats.url()).await;
    streams.reaches("EVENTS", "events.digest.made", PAYLOADS / 3, seconds(60)).await;
    worker.kill9();
    let _worker = nerve::worker(&nats.url(), data.path()).await;
    finish_sending(sender).await;
    each_once_with_one_result(&streams).await;
}

#[tokio::test]
async fn the_nats_server_killed_under_separate_roles_and_started_again() {
    let mut nats = Nats::start().await;
    let data = tempfile::tempdir().unwrap();
    let gateway = Nerve::gateway(&nats.url()).await;
    let _worker = nerve::worker(&nats.url(), data.path()).await;
    gateway.cli().secret("GITHUB_WEBHOOK_SECRET", github::SECRET).await;
    gateway.cli().deploy(slow_digest().path()).await;
    source_is_served(&gateway, "github").await;
    let sender = start_sending(&gateway);
    let streams = Streams::connect(&nats.url()).await;
    streams.reaches("EVENTS", "events.digest.made", PAYLOADS / 3, seconds(60)).await;
    nats.kill9();
    nats.restart().await;
    finish_sending(sender).await;
    each_once_with_one_result(&Streams::connect(&nats.url()).await).await;
}

#[tokio::test]
async fn killing_nerve_up_takes_its_nats_server_with_it() {
    let mut nerve = Nerve::up().await;
    let child = nerve.nats_child();
    nerve.kill9();
    eventually("the nats-server child ends", seconds(5), || async { command_name(child).is_none().then_some(()) })
        .await;
}

#[tokio::test]
async fn two_workers_share_the_work_and_one_killed_loses_nothing() {
    let nats = Nats::start().await;
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let gateway = Nerve::gateway(&nats.url()).await;
    let mut first = nerve::worker(&nats.url(), folders[0].path()).await;
    let _second = nerve::worker(&nats.url(), folders[1].path()).await;
    // Each process says which it is.
    let script = "import json, os, sys, time\n\
                  for line in sys.stdin:\n    \
                      call = json.loads(line)\n    \
                      time.sleep(0.01)\n    \
                      event = {'type': 'task.done', 'data': {'by': os.getpid()}}\n    \
                      print(json.dumps({'id': call['id'], 'events': [event]}), flush=True)\n";
    let folder = guest::python("share", "events.task.new", "task.done", "concurrency = 4", script);
    gateway.cli().deploy(folder.path()).await;
    let streams = Streams::connect(&nats.url()).await;
    let tasks = 400;
    for n in 0..tasks {
        assert_eq!(crate::post_event(&gateway, "task.new", &n.to_string(), "{}").await / 100, 2);
    }
    streams.reaches("EVENTS", "events.task.done", tasks / 4, seconds(30)).await;
    first.kill9();
    streams.reaches("EVENTS", "events.task.done", tasks, seconds(60)).await;
    let done = streams.read("EVENTS", "events.task.done").await;
    let causes: std::collections::BTreeSet<_> = done.iter().map(|event| event.header("ce-causationid")).collect();
    assert_eq!((done.len(), causes.len()), (tasks, tasks), "each task is done once");
    let workers: std::collections::BTreeSet<_> = done.iter().map(|event| event.data.clone()).collect();
    assert!(workers.len() >= 2, "both workers had some: {workers:?}");
}

#[tokio::test]
async fn what_a_gateway_took_in_before_it_was_killed_is_stored_once_when_it_comes_again() {
    const DELIVERIES: usize = 40;
    let nats = Nats::start().await;
    let mut gateway = Nerve::gateway(&nats.url()).await;
    gateway.cli().secret("GITHUB_WEBHOOK_SECRET", github::SECRET).await;
    let manifest = format!("{}dedupe = \"signed\"\n", github::SOURCE);
    gateway.cli().deploy(Folder::new(&manifest).path()).await;
    source_is_served(&gateway, "github").await;
    let hook = gateway.url("/hooks/github");
    let send = |number: usize, id: &str| {
        github::delivery(&hook, "ping", &format!("{id}-{number}"), format!(r#"{{"zen":{number}}}"#)).send()
    };
    let sent = futures::future::join_all((0..DELIVERIES).map(|number| send(number, "d"))).await;
    gateway.kill9();
    assert!(sent.into_iter().all(|answer| answer.unwrap().status() == 202));
    let streams = Streams::connect(&nats.url()).await;
    let stored = streams.read("EVENTS", "events.github.>").await;
    let sequences: BTreeSet<u64> = stored.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences.len(), DELIVERIES);

    // Of the last marks some were written and some were not: now none is, so that JetStream alone remembers.
    streams.stream("SEEN").await.purge().await.unwrap();
    gateway.restart().await;
    source_is_served(&gateway, "github").await;
    for number in 0..DELIVERIES {
        let again = send(number, "d").await.unwrap();
        assert_eq!(again.status(), 202);
        let told: Value = again.json().await.unwrap();
        assert_eq!(told["duplicate"], true, "{told}");
        assert!(sequences.contains(&told["sequence"].as_u64().unwrap()), "{told}");
    }
    // It has the marks again: what is signed is known, whatever id it comes under.
    for number in 0..DELIVERIES {
        assert_eq!(send(number, "other").await.unwrap().status(), 409);
    }
    assert_eq!(streams.count("EVENTS", "events.github.>").await, DELIVERIES);
}

//! Once means once: generations, sets of results, places that outlive consumers, and attempts that count failures.

use crate::{crashes::SHORT_WINDOW, post_event};
use nerve_tests::{Folder, Nats, Nerve, Proxy, Streams, eventually, nerve, seconds};
use serde_json::{Value, json};
use std::path::Path;

/// A process function `f` on `events.in`, whose body handles one event as `handle`, with the variables `id` and `say`.
pub(crate) fn function(emits: &str, extra: &str, handle: &str) -> Folder {
    let body: String = handle.lines().map(|line| format!("    {line}\n")).collect();
    let script = format!(
        "import json, os, sys, time\n\
         def say(call, **answer): print(json.dumps({{'id': call['id'], **answer}}), flush=True)\n\
         def results(*types): return [{{'type': ty, 'data': 1}} for ty in types]\n\
         for line in sys.stdin:\n    \
             call = json.loads(line)\n    \
             id = call['event']['id']\n{body}"
    );
    let manifest = format!(
        "[function.f]\nruntime = \"process\"\ncommand = [\"python3\", \"f.py\"]\non = [\"events.in\"]\n\
         emits = [{emits}]\n{extra}\n"
    );
    Folder::new(&manifest).with("f.py", &script)
}

async fn dead(nerve: &Nerve) -> Vec<Value> {
    let listed = nerve.cli().run(&["dlq", "list", "--output", "json"]).await.ok().json();
    listed.as_array().cloned().unwrap_or_default()
}

/// Waits for so many dead letters, in the state `dead`.
async fn reaches_dead(nerve: &Nerve, count: usize) -> Vec<Value> {
    eventually("the dead letters", seconds(30), || async {
        let dead = dead(nerve).await;
        (dead.iter().filter(|letter| letter["state"] == "dead").count() == count).then_some(dead)
    })
    .await
}

const FAIL: &str = "say(call, error={'kind': 'invalid', 'message': 'no'})";

#[tokio::test]
async fn redriven_event_publishes_the_results_of_a_fixed_function() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let broken = format!("say(call, emit={{'type': 'c.started', 'data': 1}})\n{FAIL}");
    nerve.cli().deploy(function("\"c.*\"", "", &broken).path()).await;
    post_event(&nerve, "in", "1", "{}").await;
    let letter = reaches_dead(&nerve, 1).await[0]["id"].to_string();
    nerve.cli().deploy(function("\"c.*\"", "", "say(call, events=results('c.out'))").path()).await;
    nerve.cli().run(&["dlq", "redrive", &letter]).await.ok();
    streams.reaches("EVENTS", "events.c.out", 1, seconds(30)).await;
    eventually("nothing is listed any more", seconds(20), || async { dead(&nerve).await.is_empty().then_some(()) })
        .await;
    assert_eq!(streams.count("EVENTS", "events.c.>").await, 2);
}

#[tokio::test]
async fn retry_that_takes_another_branch_publishes_its_events() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let handle = "first = not os.path.exists('tried')\nopen('tried', 'w').close()\n\
                  say(call, emit={'type': 'c.first' if first else 'c.second', 'data': 1})\n\
                  if first: say(call, error={'kind': 'retry', 'message': 'again'})\n\
                  else: say(call, events=results('c.out'))";
    let retry = "retry = { attempts = 2, backoff = [\"10ms\"] }";
    nerve.cli().deploy(function("\"c.*\"", retry, handle).path()).await;
    post_event(&nerve, "in", "1", "{}").await;
    streams.reaches("EVENTS", "events.c.out", 1, seconds(30)).await;
    assert_eq!(streams.count("EVENTS", "events.c.>").await, 3, "both branches, and the result");
}

#[tokio::test]
async fn event_that_fails_after_drop_and_replay_is_a_dead_letter_again() {
    let nerve = Nerve::up().await;
    nerve.cli().deploy(function("\"c.*\"", "", FAIL).path()).await;
    post_event(&nerve, "in", "1", "{}").await;
    for _ in 0..2 {
        let letter = reaches_dead(&nerve, 1).await[0]["id"].to_string();
        nerve.cli().run(&["dlq", "drop", &letter]).await.ok();
        assert!(dead(&nerve).await.is_empty());
        nerve.cli().run(&["replay", "f", "--since", "first"]).await.ok();
    }
    let letter = reaches_dead(&nerve, 1).await[0]["id"].to_string();
    nerve.cli().run(&["dlq", "redrive", &letter]).await.ok();
    let again = reaches_dead(&nerve, 1).await;
    assert_ne!(again[0]["id"].to_string(), letter);
}

#[tokio::test]
async fn redrive_without_its_function_is_refused_and_stays_in_sight() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(function("\"c.*\"", "", FAIL).path()).await;
    post_event(&nerve, "in", "1", "{}").await;
    let letter = reaches_dead(&nerve, 1).await[0]["id"].to_string();
    nerve.cli().run(&["remove", "f"]).await.ok();
    let refused = nerve.cli().run(&["dlq", "redrive", &letter]).await.failed(1);
    assert!(refused.stderr.contains("no function or sink `f` is deployed"), "{refused:?}");
    assert_eq!(dead(&nerve).await.len(), 1);
    // One that is on its way when its function is removed is listed, and is delivered to the next deployment.
    nerve.cli().deploy(function("\"c.*\"", "", "time.sleep(60)").path()).await;
    nerve.cli().run(&["dlq", "redrive", &letter]).await.ok();
    assert_eq!(dead(&nerve).await[0]["state"], "redriven");
    nerve.cli().run(&["remove", "f"]).await.ok();
    assert_eq!(dead(&nerve).await[0]["state"], "redriven");
    nerve.cli().deploy(function("\"c.*\"", "", "say(call, events=results('c.out'))").path()).await;
    streams.reaches("EVENTS", "events.c.out", 1, seconds(40)).await;
    eventually("nothing is listed", seconds(20), || async { dead(&nerve).await.is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn deleted_consumer_goes_on_from_the_last_known_place() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let slow = function("\"c.*\"", "concurrency = 1", "time.sleep(0.05)\nsay(call, events=results('c.out'))");
    nerve.cli().deploy(slow.path()).await;
    for n in 0..60 {
        post_event(&nerve, "in", &n.to_string(), "{}").await;
    }
    streams.reaches("EVENTS", "events.c.out", 5, seconds(30)).await;
    streams.stream("EVENTS").await.delete_consumer("nerve-f").await.unwrap();
    streams.reaches("EVENTS", "events.c.out", 60, seconds(60)).await;
    eventually("all is done", seconds(30), || async {
        let info = streams.consumer("EVENTS", "f").await?;
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    })
    .await;
    assert_eq!(streams.count("EVENTS", "events.c.out").await, 60, "none lost, none twice");
}

#[tokio::test]
async fn stream_that_is_made_again_is_read_from_its_beginning() {
    let nats = Nats::start().await;
    let streams = Streams::connect(&nats.url()).await;
    let orders = || async_nats::jetstream::stream::Config {
        name: "ORDERS".to_owned(),
        subjects: vec!["orders.>".to_owned()],
        ..Default::default()
    };
    streams.jetstream.create_stream(orders()).await.unwrap();
    let nerve = Nerve::up_with(nerve::Options { nats: Some(nats.url()), ..Default::default() }).await;
    let script = "import json, sys\n\
                  for line in sys.stdin:\n    \
                      call = json.loads(line)\n    \
                      print(json.dumps({'id': call['id'], 'events': [{'type': 'c.out', 'data': 1}]}), flush=True)\n";
    let manifest = "[function.f]\nruntime = \"process\"\ncommand = [\"python3\", \"f.py\"]\non = [\"orders.new\"]\n\
                    emits = [\"c.out\"]\n";
    nerve.cli().deploy(Folder::new(manifest).with("f.py", script).path()).await;
    let order = async || drop(streams.jetstream.publish("orders.new", "1".into()).await.unwrap().await.unwrap());
    order().await;
    streams.reaches("EVENTS", "events.c.out", 1, seconds(30)).await;
    streams.delete("ORDERS").await;
    streams.jetstream.create_stream(orders()).await.unwrap();
    order().await;
    order().await;
    streams.reaches("EVENTS", "events.c.out", 3, seconds(60)).await;
}

#[tokio::test]
async fn results_of_one_event_are_stored_together_once() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let handle = "say(call, events=results(*(['c.many'] * 1001 if id == 'many' else ['c.a', 'c.b', 'c.c'] * 3)))";
    nerve.cli().deploy(function("\"c.*\"", "", handle).path()).await;
    for n in 0..20 {
        post_event(&nerve, "in", &n.to_string(), "{}").await;
    }
    streams.reaches("EVENTS", "events.c.>", 180, seconds(60)).await;
    let results = streams.read("EVENTS", "events.c.>").await;
    assert_eq!(results.len(), 180);
    for set in results.chunks(9) {
        let cause = set[0].header("ce-causationid");
        assert!(set.iter().all(|result| result.header("ce-causationid") == cause), "a set has nothing in between");
        assert_eq!(set.last().unwrap().sequence - set[0].sequence, 8);
    }
    post_event(&nerve, "in", "many", "{}").await;
    let dead = reaches_dead(&nerve, 1).await;
    assert!(dead[0].to_string().contains("the maximum is 1000"), "{dead:?}");
    assert_eq!(streams.count("EVENTS", "events.c.many").await, 0);
}

#[tokio::test]
async fn second_run_after_a_lost_ack_adds_nothing() {
    let nats = Nats::start().await;
    let data = tempfile::tempdir().unwrap();
    let gateway = Nerve::gateway(&nats.url()).await;
    let mut worker = nerve::worker(&nats.url(), data.path()).await;
    let streams = Streams::connect(&nats.url()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("runs");
    // Each run returns as many results as there were runs; the worker is killed while it does.
    let handle = format!(
        "with open({:?}, 'a') as file: file.write(id + '\\n')\n\
         runs = open({:?}).read().split().count(id)\n\
         say(call, events=results(*['c.out'] * (1 + runs)))",
        file.display().to_string(),
        file.display().to_string()
    );
    gateway.cli().deploy(function("\"c.*\"", "concurrency = 32", &handle).path()).await;
    let ids: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    for id in &ids {
        post_event(&gateway, "in", id, "{}").await;
    }
    for done in [20, 80, 150] {
        streams.reaches("EVENTS", "events.c.out", done, seconds(60)).await;
        worker.kill9();
        worker = nerve::worker(&nats.url(), data.path()).await;
    }
    eventually("all is done", seconds(90), || async {
        let info = streams.consumer("EVENTS", "f").await?;
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    })
    .await;
    let results = streams.read("EVENTS", "events.c.out").await;
    for id in &ids {
        let of = results.iter().filter(|result| result.header("ce-causationid") == id).collect::<Vec<_>>();
        // The set of one run: run n returns n + 1 results, stored without anything in between.
        assert!(of.len() >= 2, "{id} is lost");
        assert_eq!(of[of.len() - 1].sequence - of[0].sequence, of.len() as u64 - 1, "{id} is of two runs");
    }
    assert!(runs(&file) >= 200);
    drop(worker);
}

fn runs(file: &Path) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn event_given_back_at_shutdown_keeps_its_attempts() {
    let nats = Nats::start().await;
    let data = tempfile::tempdir().unwrap();
    let gateway = Nerve::gateway(&nats.url()).await;
    let streams = Streams::connect(&nats.url()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("runs");
    // It takes longer than the grace, twice; the third time it is quick.
    let handle = format!(
        "with open({:?}, 'a') as file: file.write(id + '\\n')\n\
         if len(open({:?}).read().split()) <= 2: time.sleep(30)\n\
         say(call, events=results('c.out'))",
        file.display().to_string(),
        file.display().to_string()
    );
    let worker = async || {
        let envs = [("NERVE_WORKER_GRACE", "500ms")];
        nerve::worker_with(&nats.url(), data.path(), &envs).await
    };
    let mut running = worker().await;
    let extra = "timeout = \"60s\"\nretry = { attempts = 1 }";
    gateway.cli().deploy(function("\"c.*\"", extra, &handle).path()).await;
    post_event(&gateway, "in", "1", "{}").await;
    for started in [1, 2] {
        eventually("it has started", seconds(30), || async { (runs(&file) == started).then_some(()) }).await;
        running.signal(nix::sys::signal::Signal::SIGTERM);
        running.exit(seconds(20)).await;
        running = worker().await;
    }
    streams.reaches("EVENTS", "events.c.out", 1, seconds(40)).await;
    assert_eq!(streams.count("DEAD", "dead.>").await, 0, "nothing has failed");
    assert_eq!(json!(runs(&file)), json!(3));
}

#[tokio::test]
async fn results_stand_through_a_run_that_is_longer_than_the_dedupe_window() {
    let nats = Nats::start().await;
    let streams = Streams::connect(&nats.url()).await;
    let (data, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = folder.path().join("runs");
    let gateway = Nerve::gateway_with(&nats.url(), &SHORT_WINDOW).await;
    let proxy = Proxy::start(nats.url().trim_start_matches("nats://").to_owned()).await;
    let mut worker = nerve::worker_with(&format!("nats://{}", proxy.address), data.path(), &SHORT_WINDOW).await;
    let handle = format!(
        "with open({:?}, 'a') as file: file.write(id + '\\n')\n\
         time.sleep(1 if len(open({:?}).read().split()) == 1 else 12)\n\
         say(call, events=results('c.out'))",
        file.display().to_string(),
        file.display().to_string()
    );
    gateway.cli().deploy(function("\"c.*\"", "", &handle).path()).await;
    post_event(&gateway, "in", "1", "{}").await;
    eventually("it has started", seconds(30), || async { (runs(&file) == 1).then_some(()) }).await;
    // Its result is stored, and the worker is not told so before it is killed.
    proxy.mute(true);
    streams.reaches("EVENTS", "events.c.out", 1, seconds(30)).await;
    worker.kill9();
    let worker = nerve::worker_with(&nats.url(), data.path(), &SHORT_WINDOW).await;
    eventually("it is done", seconds(60), || async {
        let info = streams.consumer("EVENTS", "f").await?;
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    })
    .await;
    assert_eq!(streams.count("EVENTS", "events.c.out").await, 1);
    drop(worker);
}

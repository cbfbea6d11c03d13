//! Functions that fail in every way: only the event that did it pays, its neighbors go on.

use crate::post_event;
use nerve_tests::{Folder, Nerve, Streams, guest, seconds};

/// Three quick tries.
const RETRY: &str = "retry = { attempts = 3, backoff = [\"100ms\"] }\ntimeout = \"1s\"";

/// Posts neighbors around one bad event, and waits until they are through and the bad one is dead.
async fn one_bad_among_neighbors(nerve: &Nerve, streams: &Streams, ty: &str, bad: &str) {
    for n in 0..10 {
        let (id, body) = if n == 4 { ("bad".to_owned(), bad) } else { (n.to_string(), "\"fine\"") };
        assert_eq!(post_event(nerve, ty, &id, body).await / 100, 2);
    }
    streams.reaches("EVENTS", "events.mood.done", 9, seconds(30)).await;
    streams.reaches("DEAD", "dead.moody", 1, seconds(30)).await;
}

/// The one dead letter is the bad event, whole, with `attempts` tries whose errors say `said`.
async fn is_dead_lettered(nerve: &Nerve, streams: &Streams, body: &str, attempts: usize, said: &[&str]) {
    let dead = streams.read("DEAD", "dead.moody").await;
    assert_eq!(dead.len(), 1, "{dead:#?}");
    assert_eq!(dead[0].data, body, "the body is copied whole");
    assert_eq!((dead[0].header("ce-id"), dead[0].header("ce-type")), ("bad", "mood.new"));
    let listed = nerve.cli().run(&["dlq", "list", "--output", "json"]).await.ok();
    assert!(listed.stdout.contains("moody") && listed.stdout.contains("bad"), "{listed:?}");
    let sequence = dead[0].sequence.to_string();
    let shown = nerve.cli().run(&["dlq", "show", &sequence, "--output", "json"]).await.ok();
    let errors = shown.stdout.to_lowercase();
    assert!(said.iter().any(|word| errors.contains(word)), "none of {said:?} in {errors}");
    let tries = shown.json();
    let tries = find_attempts(&tries).unwrap_or_else(|| panic!("no list of attempts in {tries:#}"));
    assert_eq!(tries, attempts, "{errors}");
    // The neighbors had no part in it.
    assert_eq!(streams.count("EVENTS", "events.mood.done").await, 9);
}

/// How many entries the list of attempts (or errors) has, wherever it stands in the document.
fn find_attempts(value: &serde_json::Value) -> Option<usize> {
    match value {
        serde_json::Value::Object(map) => {
            let here = ["attempts", "errors"].iter().find_map(|key| map.get(*key)?.as_array());
            here.map(Vec::len).or_else(|| map.values().find_map(find_attempts))
        }
        serde_json::Value::Array(list) => list.iter().find_map(find_attempts),
        _ => None,
    }
}

/// A bad event is retried, dead-lettered with its errors, and delivered once a fixed function is deployed.
async fn retried_then_dead_then_redriven(folder: &Folder, bad: &str, said: &[&str]) {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(folder.path()).await;
    one_bad_among_neighbors(&nerve, &streams, "mood.new", bad).await;
    is_dead_lettered(&nerve, &streams, bad, 3, said).await;

    let fixed = guest::wasm("moody", "events.mood.new", "mood.done", RETRY, &guest::echo("mood.done"));
    nerve.cli().deploy(fixed.path()).await;
    nerve.cli().run(&["dlq", "redrive", "--function", "moody"]).await.ok();
    streams.reaches("EVENTS", "events.mood.done", 10, seconds(20)).await;
    let done = streams.read("EVENTS", "events.mood.done").await;
    assert_eq!(done[9].header("ce-causationid"), "bad");
    assert_eq!(streams.count("DEAD", "dead.>").await, 0, "a letter that is delivered is dead no more");
    assert_eq!(streams.count("EVENTS", "events.mood.new").await, 10, "the log holds the event once");
}

fn moody(extra: &str) -> Folder {
    let extra = format!("{RETRY}\n{extra}");
    guest::wasm("moody", "events.mood.new", "mood.done", &extra, &guest::moody("mood.done"))
}

#[tokio::test]
async fn a_component_that_traps() {
    retried_then_dead_then_redriven(&moody(""), "\"trap\"", &["unreachable", "trap"]).await;
}

#[tokio::test]
async fn a_component_that_loops_for_ever() {
    retried_then_dead_then_redriven(&moody(""), "\"loop\"", &["timeout", "1s", "did not"]).await;
}

#[tokio::test]
async fn a_component_that_takes_all_memory() {
    let folder = moody("memory = \"8MiB\"");
    retried_then_dead_then_redriven(&folder, "\"memory\"", &["memory"]).await;
}

#[tokio::test]
async fn a_component_that_asks_for_another_try_each_time() {
    retried_then_dead_then_redriven(&moody(""), "\"retry\"", &["said no"]).await;
}

/// Does what the event's body says; anything else is answered.
const MOODY_PROCESS: &str = r#"import json, os, sys, time
for line in sys.stdin:
    call = json.loads(line)
    mood = call["event"].get("data")
    if mood == "exit":
        print("about to leave", file=sys.stderr, flush=True)
        os._exit(7)
    if mood == "loop":
        while True: time.sleep(1)
    if mood == "invalid":
        print(json.dumps({"id": call["id"], "error": {"kind": "invalid", "message": "said no"}}), flush=True)
    else:
        event = {"type": "mood.done", "data": mood}
        print(json.dumps({"id": call["id"], "events": [event]}), flush=True)
"#;

fn moody_process(extra: &str) -> Folder {
    let extra = format!("{RETRY}\n{extra}");
    guest::python("moody", "events.mood.new", "mood.done", &extra, MOODY_PROCESS)
}

#[tokio::test]
async fn a_process_that_exits() {
    let folder = moody_process("concurrency = 1");
    retried_then_dead_then_redriven(&folder, "\"exit\"", &["exit", "7"]).await;
}

#[tokio::test]
async fn a_process_that_hangs() {
    let folder = moody_process("concurrency = 1");
    retried_then_dead_then_redriven(&folder, "\"loop\"", &["timeout", "1s", "did not"]).await;
}

#[tokio::test]
async fn what_a_function_calls_invalid_is_not_tried_again() {
    for folder in [moody(""), moody_process("")] {
        let nerve = Nerve::up().await;
        let streams = Streams::connect(&nerve.nats).await;
        nerve.cli().deploy(folder.path()).await;
        one_bad_among_neighbors(&nerve, &streams, "mood.new", "\"invalid\"").await;
        is_dead_lettered(&nerve, &streams, "\"invalid\"", 1, &["said no"]).await;
    }
}

#[tokio::test]
async fn a_dead_letter_that_is_dropped_is_gone() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(moody("").path()).await;
    one_bad_among_neighbors(&nerve, &streams, "mood.new", "\"invalid\"").await;
    let sequence = streams.read("DEAD", "dead.moody").await[0].sequence.to_string();
    nerve.cli().run(&["dlq", "drop", &sequence]).await.ok();
    assert_eq!(streams.count("DEAD", "dead.>").await, 0);
    let gone = nerve.cli().run(&["dlq", "show", &sequence]).await.failed(1);
    assert!(gone.stderr.contains(&sequence), "{gone:?}");
}

#[tokio::test]
async fn a_letter_that_fails_again_after_a_redrive_is_a_letter_again() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(moody("").path()).await;
    one_bad_among_neighbors(&nerve, &streams, "mood.new", "\"invalid\"").await;
    let first = streams.read("DEAD", "dead.moody").await[0].sequence;
    nerve.cli().run(&["dlq", "redrive", "--function", "moody"]).await.ok();
    nerve_tests::eventually("it is dead again", seconds(20), || async {
        let dead = streams.read("DEAD", "dead.moody").await;
        (dead.len() == 1 && dead[0].sequence > first && dead[0].header("ce-id") == "bad").then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_emission_that_the_manifest_does_not_cover_is_refused() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let folder = guest::wasm("liar", "events.mood.new", "mood.done", RETRY, &guest::echo("something.else"));
    nerve.cli().deploy(folder.path()).await;
    assert_eq!(post_event(&nerve, "mood.new", "1", "{}").await / 100, 2);
    streams.reaches("DEAD", "dead.liar", 1, seconds(20)).await;
    let dead = streams.read("DEAD", "dead.liar").await;
    let shown = nerve.cli().run(&["dlq", "show", &dead[0].sequence.to_string()]).await.ok();
    assert!(shown.stdout.contains("something.else") && shown.stdout.contains("emits"), "{}", shown.stdout);
    assert_eq!(streams.count("EVENTS", ">").await, 1, "only the input is in the log");
}

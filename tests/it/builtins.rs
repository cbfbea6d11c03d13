//! `onnx/embed` and `onnx/score` in a worker: events in, events out, and whatever goes wrong between.

use crate::post_event;
use nerve_tests::{
    Folder, Nerve, Streams,
    models::{copy_folder, fixture},
    nerve::Options,
    seconds,
};
use serde_json::{Value, json};

/// `onnx/embed` on the default model.
fn embed(extra: &str) -> Folder {
    Folder::new(&format!(
        "[function.embed]\nruntime = \"builtin\"\nuse = \"onnx/embed\"\non = [\"events.doc\"]\nemits = [\"doc.embedded\"]\n\
         retry = {{ attempts = 3, backoff = [\"100ms\"] }}\n{extra}\n"
    ))
}

async fn read(streams: &Streams, subject: &str) -> Vec<Value> {
    let stored = streams.read("EVENTS", subject).await;
    stored.iter().map(|event| serde_json::from_slice(&event.data).unwrap()).collect()
}

#[tokio::test]
async fn a_document_becomes_its_embedding_and_poison_costs_itself_alone() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(embed("with = { carry = [\"id\"] }").path()).await;
    let words = "word ".repeat(100_000);
    let bodies = [
        json!({"id": 1, "text": "This is an example sentence"}).to_string(),
        r#"{"id": 2, "text": "a lone \ud800 surrogate"}"#.to_owned(),
        json!({"id": 3, "text": words}).to_string(),
        json!({"id": 4, "text": "\0\0NULs\0"}).to_string(),
        json!({"id": 5, "body": "no text"}).to_string(),
        json!({"id": 6, "text": ""}).to_string(),
    ];
    for (index, body) in bodies.iter().enumerate() {
        assert_eq!(post_event(&nerve, "doc", &index.to_string(), body).await / 100, 2);
    }
    streams.reaches("EVENTS", "events.doc.embedded", 4, seconds(30)).await;
    streams.reaches("DEAD", "dead.embed", 2, seconds(30)).await;
    let made = read(&streams, "events.doc.embedded").await;
    let of = |id: u64| made.iter().find(|event| event["id"] == id).unwrap_or_else(|| panic!("{id} in {made:?}"));
    let first: Vec<f64> = of(1)["embedding"].as_array().unwrap()[..3].iter().map(|x| x.as_f64().unwrap()).collect();
    assert!((first[0] - 0.06766).abs() < 1e-4 && (first[1] - 0.0635).abs() < 1e-4, "{first:?}");
    assert_eq!((&of(3)["truncated"], &of(3)["tokens"]), (&json!(true), &json!(256)));
    assert_eq!(of(4)["truncated"], false);
    assert_eq!(of(6)["tokens"], 2);
    let dead = streams.read("DEAD", "dead.embed").await;
    assert!(dead.iter().all(|letter| ["1", "4"].contains(&letter.header("ce-id"))), "{dead:?}");
}

#[tokio::test]
async fn a_model_beside_the_manifest_scores_by_its_mapping() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let folder = Folder::new(
        r#"
[function.triage]
runtime = "builtin"
use = "onnx/score"
model = "./models/triage"
on = ["events.order.placed"]
emits = ["order.triaged"]

[function.triage.with]
inputs = { amount = "/total", country = "/customer/country" }
outputs = { verdict = "output_label", risk = "output_probability/review" }
carry = ["number"]
"#,
    );
    copy_folder(&fixture("mixed"), &folder.file("models/triage"));
    nerve.cli().deploy(folder.path()).await;
    let body = json!({"number": 7, "total": 319.2, "customer": {"country": "it"}}).to_string();
    post_event(&nerve, "order.placed", "1", &body).await;
    streams.reaches("EVENTS", "events.order.triaged", 1, seconds(20)).await;
    let made = read(&streams, "events.order.triaged").await.remove(0);
    assert_eq!((&made["verdict"], &made["number"]), (&json!("review"), &json!(7)), "{made}");
    assert!(made["risk"].as_f64().unwrap() > 0.9, "{made}");
    let again = nerve.cli().deploy(folder.path()).await;
    assert!(again.stdout.contains("nothing changed"), "{again:?}");
    let described = nerve.cli().run(&["describe", "triage"]).await.ok();
    assert!(described.stdout.contains("onnx/score"), "{described:?}");
    let invoked = nerve.cli().run(&["invoke", "triage", "--data", &body]).await.ok();
    assert!(invoked.stdout.contains("review"), "{invoked:?}");
}

/// Deploys `onnx/embed` and posts `count` long documents.
async fn flood(nerve: &Nerve, count: usize) {
    nerve.cli().deploy(embed("timeout = \"2m\"").path()).await;
    for index in 0..count {
        let body = json!({"text": format!("{index} {}", "word ".repeat(200))}).to_string();
        assert_eq!(post_event(nerve, "doc", &index.to_string(), &body).await / 100, 2);
    }
}

/// Every document was embedded, and once.
async fn is_embedded_once(streams: &Streams, count: usize) {
    streams.reaches("EVENTS", "events.doc.embedded", count, seconds(60)).await;
    let stored = streams.read("EVENTS", "events.doc.embedded").await;
    let causes: std::collections::BTreeSet<&str> = stored.iter().map(|event| event.header("ce-causationid")).collect();
    assert_eq!((stored.len(), causes.len()), (count, count));
    assert_eq!(streams.count("DEAD", "dead.>").await, 0);
}

#[tokio::test]
async fn a_kill_amid_embedding_loses_nothing() {
    let data = tempfile::tempdir().unwrap();
    let mut nerve = Nerve::up_with(Options { data: Some(data.path().to_owned()), ..Options::default() }).await;
    flood(&nerve, 300).await;
    let streams = Streams::connect(&nerve.nats).await;
    streams.reaches("EVENTS", "events.doc.embedded", 1, seconds(30)).await;
    nerve.kill9();
    nerve.restart().await;
    is_embedded_once(&Streams::connect(&nerve.nats).await, 300).await;
}

#[tokio::test]
async fn a_shutdown_amid_embedding_is_soon_and_loses_nothing() {
    let data = tempfile::tempdir().unwrap();
    let mut nerve = Nerve::up_with(Options { data: Some(data.path().to_owned()), ..Options::default() }).await;
    flood(&nerve, 300).await;
    Streams::connect(&nerve.nats).await.reaches("EVENTS", "events.doc.embedded", 1, seconds(30)).await;
    assert!(nerve.sigterm(seconds(20)).await.success());
    nerve.restart().await;
    is_embedded_once(&Streams::connect(&nerve.nats).await, 300).await;
}

#[tokio::test]
async fn a_full_queue_holds_events_back_in_the_stream() {
    let envs = vec![("NERVE_ONNX_QUEUE".to_owned(), "4".to_owned())];
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    flood(&nerve, 120).await;
    // More are asked for at once than the queue holds: they wait, none is refused or tried twice.
    is_embedded_once(&Streams::connect(&nerve.nats).await, 120).await;
    let logs = nerve.cli().run(&["logs", "embed"]).await.ok();
    assert!(!logs.stdout.contains("failed"), "{logs:?}");
}

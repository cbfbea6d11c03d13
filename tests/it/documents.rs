//! Documents by events: uploaded, chunked, embedded, indexed, and retrieved for a question.

use crate::post_event;
use nerve_tests::{Nerve, Streams, checkout, eventually, nerve::Options, seconds};
use serde_json::{Value, json};
use std::fs;

/// Real pages: this project's own.
const PAGES: [&str; 4] = ["README.md", "platform/README.md", "functions/README.md", "functions/onnx/README.md"];

async fn up(data: &std::path::Path) -> Nerve {
    let nerve = Nerve::up_with(Options { data: Some(data.to_owned()), ..Options::default() }).await;
    nerve.cli().deploy(&checkout().join("functions/rag")).await;
    nerve
}

pub(crate) async fn upload(nerve: &Nerve, id: &str, document: Value) {
    assert_eq!(post_event(nerve, "document.uploaded", id, &document.to_string()).await / 100, 2);
}

fn page(name: &str) -> Value {
    json!({"document": name, "name": name, "text": fs::read_to_string(checkout().join(name)).unwrap()})
}

pub(crate) async fn indexed(streams: &Streams, count: usize) -> Vec<Value> {
    streams.reaches("EVENTS", "events.document.indexed", count, seconds(60)).await;
    let stored = streams.read("EVENTS", "events.document.indexed").await;
    stored.iter().map(|event| serde_json::from_slice(&event.data).unwrap()).collect()
}

/// What is retrieved for a question.
pub(crate) async fn ask(nerve: &Nerve, streams: &Streams, id: &str, prompt: Value) -> Vec<Value> {
    assert_eq!(post_event(nerve, "prompt.received", id, &prompt.to_string()).await / 100, 2);
    let retrieved = eventually("documents are retrieved", seconds(20), || async {
        let stored = streams.read("EVENTS", "events.documents.retrieved").await;
        stored.into_iter().find(|event| event.header("ce-causationid") == id)
    });
    let retrieved: Value = serde_json::from_slice(&retrieved.await.data).unwrap();
    assert_eq!(retrieved["question"], prompt["question"]);
    retrieved["documents"].as_array().unwrap().clone()
}

#[tokio::test]
async fn what_was_uploaded_is_found_by_questions_and_cited_where_it_stands() {
    let data = tempfile::tempdir().unwrap();
    let nerve = up(data.path()).await;
    let streams = Streams::connect(&nerve.nats).await;
    for name in PAGES {
        upload(&nerve, name, page(name)).await;
    }
    let made = indexed(&streams, PAGES.len()).await;
    assert!(made.iter().all(|one| one["chunks"].as_u64().unwrap() > 3 && one["replaced"] == false), "{made:?}");
    // Five functions fetched one model of 86 MiB, at once, over one connection.
    assert!(!nerve.daemon.stderr().contains("connection to NATS is lost"), "{}", nerve.daemon.stderr());
    for (id, question, document, said) in [
        ("q1", "Which port of a nats-server does JetStream's ack wait have?", "platform/README.md", "ack"),
        ("q2", "What happens when a process writes an error of the kind retry?", "functions/README.md", "retry"),
        ("q3", "How are cross-encoders used to score documents?", "functions/onnx/README.md", "rerank"),
        ("q4", "What do I need to install before make demo?", "README.md", "Rust"),
    ] {
        let found = ask(&nerve, &streams, id, json!({"question": question, "limit": 5})).await;
        assert_eq!(found.len(), 5);
        let one =
            found.iter().find(|hit| hit["document"] == document).unwrap_or_else(|| panic!("{question}: {found:#?}"));
        assert!(found.iter().any(|hit| hit["text"].as_str().unwrap().contains(said)), "{question}: {found:#?}");
        let text = fs::read_to_string(checkout().join(document)).unwrap();
        let (start, end) = (one["start"].as_u64().unwrap() as usize, one["end"].as_u64().unwrap() as usize);
        assert_eq!(&text[start..end], one["text"].as_str().unwrap(), "a chunk stands where it says");
    }
}

#[tokio::test]
async fn an_upload_replaces_and_a_deletion_removes() {
    let data = tempfile::tempdir().unwrap();
    let nerve = up(data.path()).await;
    let streams = Streams::connect(&nerve.nats).await;
    upload(&nerve, "1", json!({"document": "fees", "text": "Late invoices cost ten percent more."})).await;
    indexed(&streams, 1).await;
    upload(&nerve, "2", json!({"document": "fees", "text": "Late invoices cost nothing."})).await;
    assert_eq!(indexed(&streams, 2).await[1]["replaced"], true);
    let question = json!({"question": "What do late invoices cost?"});
    let found = ask(&nerve, &streams, "q1", question.clone()).await;
    assert_eq!((found.len(), &found[0]["text"]), (1, &json!("Late invoices cost nothing.")));
    post_event(&nerve, "document.deleted", "3", r#"{"document": "fees"}"#).await;
    assert_eq!(indexed(&streams, 3).await[2]["removed"], true);
    assert!(ask(&nerve, &streams, "q2", question).await.is_empty());
    // Each question was answered too, the second by saying that nothing answers it.
    streams.reaches("EVENTS", "events.answer.generated", 2, seconds(20)).await;
    let answers = streams.read("EVENTS", "events.answer.generated").await;
    let answers: Vec<Value> = answers.iter().map(|event| serde_json::from_slice(&event.data).unwrap()).collect();
    assert_eq!(
        (&answers[0]["answer"], &answers[1]["answered"]),
        (&json!("Late invoices cost nothing."), &json!(false))
    );
    assert_eq!(answers[0]["citations"][0]["source"], "fees");
    // What is no document is dead at once, and nothing waits for it.
    upload(&nerve, "4", json!({"document": "broken"})).await;
    streams.reaches("DEAD", "dead.chunk", 1, seconds(20)).await;
}

#[tokio::test]
async fn collections_are_apart_and_filters_narrow() {
    let data = tempfile::tempdir().unwrap();
    let nerve = up(data.path()).await;
    let streams = Streams::connect(&nerve.nats).await;
    let text = "Refunds are paid within a week.";
    upload(&nerve, "1", json!({"document": "a", "text": text, "metadata": {"country": "de"}})).await;
    upload(&nerve, "2", json!({"document": "b", "text": text, "metadata": {"country": "fr"}})).await;
    upload(&nerve, "3", json!({"document": "c", "text": text, "collection": "other"})).await;
    indexed(&streams, 3).await;
    let names = |found: Vec<Value>| {
        let mut names: Vec<String> = found.iter().map(|hit| hit["document"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names.join(",")
    };
    let question = "When are refunds paid?";
    assert_eq!(names(ask(&nerve, &streams, "q1", json!({"question": question})).await), "a,b");
    assert_eq!(
        names(ask(&nerve, &streams, "q2", json!({"question": question, "filter": {"country": "fr"}})).await),
        "b"
    );
    assert_eq!(names(ask(&nerve, &streams, "q3", json!({"question": question, "collection": "other"})).await), "c");
}

#[tokio::test]
async fn a_kill_amid_indexing_loses_no_document() {
    let data = tempfile::tempdir().unwrap();
    let mut nerve = up(data.path()).await;
    let count = 150;
    for n in 0..count {
        let text = format!("Order number {n} is paid in {n} days.");
        upload(&nerve, &n.to_string(), json!({"document": format!("order-{n}"), "text": text})).await;
    }
    let streams = Streams::connect(&nerve.nats).await;
    streams.reaches("EVENTS", "events.document.indexed", 5, seconds(60)).await;
    nerve.kill9();
    nerve.restart().await;
    let streams = Streams::connect(&nerve.nats).await;
    indexed(&streams, count).await;
    for n in [0, 77, 149] {
        let prompt = json!({"question": format!("In how many days is order number {n} paid?"), "limit": 3});
        let found = ask(&nerve, &streams, &format!("q{n}"), prompt).await;
        assert!(found.iter().any(|hit| hit["document"] == format!("order-{n}")), "{n}: {found:#?}");
    }
    assert_eq!(streams.count("DEAD", "dead.>").await, 0);
}

#[tokio::test]
async fn a_folder_is_ingested_with_a_summary_and_the_pipeline_deploys_itself() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let folder = tempfile::tempdir().unwrap();
    for name in PAGES {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::copy(checkout().join(name), file).unwrap();
    }
    // Of something that no other page asks: README.md has a question to documents of its own.
    fs::write(folder.path().join("page.html"), "<h1>Fees</h1><p>Parking tickets cost forty euros.</p>").unwrap();
    fs::write(folder.path().join("broken.pdf"), "%PDF-1.4 nothing").unwrap();
    fs::write(folder.path().join("picture.png"), b"\x89PNG\0").unwrap();
    let path = folder.path().display().to_string();
    let ingested = nerve.cli().run(&["ingest", &path]).await.failed(1);
    assert!(ingested.stdout.contains("indexed 5 of 6 documents"), "{ingested:?}");
    assert!(ingested.stdout.contains("failed: ") && ingested.stdout.contains("broken.pdf"), "{ingested:?}");
    assert!(ingested.stdout.contains("1 file is no text and no PDF, or too large, and was skipped"), "{ingested:?}");
    fs::remove_file(folder.path().join("broken.pdf")).unwrap();
    let again = nerve.cli().run(&["ingest", &path, "--output", "json"]).await.ok().json();
    assert_eq!((&again["documents"], &again["unchanged"], &again["indexed"]), (&json!(5), &json!(5), &json!(0)));
    let found = ask(&nerve, &streams, "q", json!({"question": "What do parking tickets cost?", "limit": 1})).await;
    let hit = &found[0];
    assert!(hit["document"].as_str().unwrap().ends_with("page.html"), "{hit}");
    assert_eq!((&hit["heading"], &hit["metadata"]["path"]), (&json!(["Fees"]), &hit["document"]));
    nerve.cli().run(&["ingest", "/no/such/folder"]).await.failed(1);
    let asked = nerve.cli().run(&["ask", "What do parking tickets cost?"]).await.ok();
    assert!(asked.stdout.starts_with("Parking tickets cost forty euros.\n\n  [1] "), "{asked:?}");
    assert!(asked.stdout.contains("page.html › Fees: “Parking tickets cost forty euros.”"), "{asked:?}");
    let asked = nerve.cli().run(&["ask", "Who was the first king of Portugal?", "--output", "json"]).await.ok().json();
    assert_eq!((&asked["answered"], &asked["citations"]), (&json!(false), &json!([])), "{asked}");
    let narrowed = ["ask", "What do parking tickets cost?", "--filter", "path=nowhere", "--output", "json"];
    assert_eq!(nerve.cli().run(&narrowed).await.ok().json()["answered"], false);
}

//! Documents by events: uploaded, chunked, embedded, indexed, and retrieved for a question.

use crate::post_event;
use nerve_tests::{
    Cli, Nats, Nerve, Streams, checkout, eventually,
    nerve::{self, Options},
    seconds,
};
use serde_json::{Value, json};
use std::fs;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Real pages: this project's own.
const PAGES: [&str; 4] = [
    "README.md",
    "platform/architecture.md",
    "functions/reference/process.md",
    "functions/onnx/reference/functions.md",
];

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
    assert!(!nerve.daemon.stderr().contains("connection to NATS lost"), "{}", nerve.daemon.stderr());
    for (id, question, document, said) in [
        ("q1", "Which port of a nats-server does JetStream's ack wait have?", "platform/architecture.md", "ack"),
        (
            "q2",
            "What happens when a process writes an error of the kind retry?",
            "functions/reference/process.md",
            "retry",
        ),
        ("q3", "How are cross-encoders used to score documents?", "functions/onnx/reference/functions.md", "rerank"),
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
    upload(&nerve, "4", json!({"document": "broken", "data": "%"})).await;
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
    // A function that takes documents and indexes none is no reason to wait for another one.
    nerve.cli().deploy(&checkout().join("functions/examples/document-embed")).await;
    let ingested = nerve.cli().run(&["ingest", &path]).await.failed(1);
    assert!(ingested.stdout.contains("indexed 5 of 6 documents"), "{ingested:?}");
    assert!(ingested.stdout.contains("failed: ") && ingested.stdout.contains("broken.pdf"), "{ingested:?}");
    assert!(ingested.stdout.contains("skipped 1 file that is neither text nor PDF, or too large"), "{ingested:?}");
    fs::remove_file(folder.path().join("broken.pdf")).unwrap();
    let again = nerve.cli().run(&["ingest", &path, "--output", "json"]).await.ok().json();
    assert_eq!((&again["documents"], &again["unchanged"], &again["uploaded"]), (&json!(5), &json!(5), &json!(0)));
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

/// A: what a file says first. B: what it says later.
const A: &str = "Late invoices cost ten percent more.";
const B: &str = "Late invoices cost nothing.";

/// One file that is ingested over and over, into the index of this server.
struct OneFile<'n> {
    nerve: &'n Nerve,
    streams: Streams,
    folder: tempfile::TempDir,
}

impl<'n> OneFile<'n> {
    async fn new(nerve: &'n Nerve) -> Self {
        Self { nerve, streams: Streams::connect(&nerve.nats).await, folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> String {
        self.folder.path().join("fees.txt").display().to_string()
    }

    /// Ingests the file with this text; the documents that were uploaded, indexed, unchanged and superseded.
    async fn ingest(&self, text: &str, options: &[&str]) -> [u64; 4] {
        fs::write(self.path(), text).unwrap();
        let path = self.path();
        let args = [&["ingest", path.as_str(), "--output", "json"], options].concat();
        let summary: Value = serde_json::from_str(&self.nerve.cli().run(&args).await.stdout).unwrap();
        assert_eq!((&summary["documents"], &summary["failed"]), (&json!(1), &json!({})), "{summary}");
        let superseded = summary["superseded"].as_array().unwrap().len() as u64;
        let count = |what: &str| summary[what].as_u64().unwrap();
        [count("uploaded"), count("indexed"), count("unchanged"), superseded]
    }

    /// An upload with this text by the HTTP API, made at that time.
    async fn upload_at(&self, time: OffsetDateTime, text: &str) {
        let data = json!({"document": self.path(), "name": self.path(), "text": text});
        let event = json!({"specversion": "1.0", "id": time.to_string(), "source": "/tests", "type": "document.uploaded",
                           "time": time.format(&Rfc3339).unwrap(), "data": data});
        let request = reqwest::Client::new().post(self.nerve.url("/v1/events")).body(event.to_string());
        let sent = request.header("content-type", "application/cloudevents+json").send().await.unwrap();
        assert_eq!(sent.status().as_u16() / 100, 2);
    }

    /// What the index has of the file, once it has done with so many uploads and deletions.
    async fn found(&self, changes: usize) -> Vec<String> {
        let made = indexed(&self.streams, changes).await;
        assert_eq!(made.len(), changes, "{made:#?}");
        let id = format!("question-{}", self.streams.count("EVENTS", "events.prompt.received").await);
        let found = ask(self.nerve, &self.streams, &id, json!({"question": "What do late invoices cost?"})).await;
        found.iter().map(|hit| hit["text"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test]
async fn ingest_of_a_then_b_then_a_leaves_a_in_the_index() {
    let nerve = Nerve::up().await;
    let file = OneFile::new(&nerve).await;
    assert_eq!(file.ingest(A, &[]).await, [1, 1, 0, 0]);
    assert_eq!(file.ingest(B, &[]).await, [1, 1, 0, 0]);
    assert_eq!(file.found(2).await, [B]);
    assert_eq!(file.ingest(A, &[]).await, [1, 1, 0, 0], "that A was uploaded before says nothing of the index");
    assert_eq!(file.found(3).await, [A]);
    // Unchanged: nothing is uploaded, or where it is, the index finds out by itself.
    assert_eq!(file.ingest(A, &[]).await, [0, 0, 1, 0]);
    assert_eq!(file.ingest(A, &["--force"]).await, [1, 0, 1, 0]);
    let made = indexed(&file.streams, 4).await;
    assert_eq!((&made[3]["unchanged"], &made[3]["chunks"]), (&json!(true), &json!(1)));
    // At once, without waiting for what came before.
    let mut uploaded = 4;
    for text in [B, A, B, A] {
        uploaded += file.ingest(text, &["--no-wait"]).await[0];
    }
    assert_eq!(file.found(usize::try_from(uploaded).unwrap()).await, [A]);
}

#[tokio::test]
async fn unchanged_document_is_later_than_an_upload_on_its_way() {
    let nerve = Nerve::up().await;
    let file = OneFile::new(&nerve).await;
    file.ingest(A, &[]).await;
    let between = OffsetDateTime::now_utc();
    assert_eq!(file.ingest(A, &[]).await, [0, 0, 1, 0]);
    // B was uploaded before, and comes to the index after.
    file.upload_at(between, B).await;
    assert_eq!(indexed(&file.streams, 2).await[1]["stale"], true);
    assert_eq!(file.found(2).await, [A]);
    // The clock of the uploader of B is ahead; A is ingested later.
    file.upload_at(between + time::Duration::hours(1), B).await;
    assert_eq!(file.found(3).await, [B]);
    assert_eq!(file.ingest(A, &["--force"]).await, [1, 0, 0, 1], "nobody asked the index");
    assert_eq!(file.ingest(A, &[]).await, [1, 1, 0, 0]);
    assert_eq!(file.found(5).await, [A]);
}

#[tokio::test]
async fn deleted_document_is_indexed_again_by_the_next_ingest() {
    let nerve = Nerve::up().await;
    let file = OneFile::new(&nerve).await;
    assert_eq!(file.ingest(A, &[]).await, [1, 1, 0, 0]);
    for changes in [2, 4] {
        let data = json!({"document": file.path()}).to_string();
        nerve.cli().run(&["publish", "document.deleted", "--data", &data]).await.ok();
        assert!(file.found(changes).await.is_empty());
        assert_eq!(file.ingest(A, &[]).await, [1, 1, 0, 0]);
        assert_eq!(file.found(changes + 1).await, [A]);
    }
}

#[tokio::test]
async fn failed_document_is_tried_again_by_each_ingest() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let folder = tempfile::tempdir().unwrap();
    let (good, broken) = (folder.path().join("good.txt"), folder.path().join("broken.pdf"));
    fs::write(&good, A).unwrap();
    fs::write(&broken, "%PDF-1.4 nothing").unwrap();
    let path = folder.path().display().to_string();
    for time in 1..3 {
        let ingested = nerve.cli().run(&["ingest", &path]).await.failed(1);
        let reason = format!("failed: {}: chunk: its PDF", broken.display());
        assert!(ingested.stdout.contains(&reason), "{ingested:?}");
        assert!(ingested.stderr.contains("1 failed"), "{ingested:?}");
        assert_eq!(streams.count("DEAD", "dead.chunk").await, time);
        assert_eq!(ingested.stdout.contains("1 is unchanged"), time > 1, "{ingested:?}");
    }
    assert_eq!(streams.count("EVENTS", "events.document.uploaded").await, 3);
}

#[tokio::test]
async fn everything_is_uploaded_while_the_worker_of_the_index_is_down() {
    let (nats, data, folder) = (Nats::start().await, tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let _gateway = Nerve::gateway(&nats.url()).await;
    let mut worker = nerve::worker(&nats.url(), data.path()).await;
    let (streams, cli) = (Streams::connect(&nats.url()).await, Cli::new(&nats.url()));
    fs::write(folder.path().join("fees.txt"), A).unwrap();
    let path = folder.path().display().to_string();
    let ingested = cli.run(&["ingest", &path, "--output", "json"]).await.ok().json();
    assert_eq!(ingested["indexed"], 1, "{ingested}");
    worker.kill9();
    let ingested = cli.run(&["ingest", &path, "--no-wait"]).await.ok();
    assert!(ingested.stdout.contains("uploaded 1 of 1 documents"), "{ingested:?}");
    assert!(ingested.stderr.contains("no worker is running the function `index`"), "{ingested:?}");
    let _worker = nerve::worker(&nats.url(), data.path()).await;
    assert_eq!(indexed(&streams, 2).await[1]["unchanged"], true);
    let again = cli.run(&["ingest", &path, "--output", "json"]).await.ok().json();
    assert_eq!((&again["uploaded"], &again["unchanged"]), (&json!(0), &json!(1)), "{again}");
}

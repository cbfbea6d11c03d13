//! The example pipelines, deployed as their READMEs say.

use crate::post_event;
use nerve_tests::{
    Folder, Nerve, Streams, checkout, eventually,
    nerve::Options,
    seconds,
    sse::{Frame, Reader},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

fn example(name: &str) -> PathBuf {
    checkout().join("functions/examples").join(name)
}

/// A `nerve up` with this example.
async fn up(name: &str) -> (Nerve, Streams) {
    let nerve = Nerve::up().await;
    nerve.cli().deploy(&example(name)).await;
    let streams = Streams::connect(&nerve.nats).await;
    (nerve, streams)
}

/// A copy of an example whose manifest says `to` where the original says `from`.
fn changed(name: &str, script: &str, from: &str, to: &str) -> Folder {
    let read = |file: &str| fs::read_to_string(example(name).join(file)).unwrap();
    let manifest = read("nerve.toml");
    assert!(manifest.contains(from), "`{from}` in {manifest}");
    Folder::new(&manifest.replace(from, to)).with(script, read(script))
}

/// The data of the events of a type, once there are as many.
async fn made(streams: &Streams, ty: &str, count: usize) -> Vec<Value> {
    let subject = format!("events.{ty}");
    streams.reaches("EVENTS", &subject, count, seconds(30)).await;
    let stored = streams.read("EVENTS", &subject).await;
    assert_eq!(stored.len(), count, "{ty}");
    stored.iter().map(|event| serde_json::from_slice(&event.data).unwrap()).collect()
}

async fn publish(nerve: &Nerve, ty: &str, id: &str, data: Value) {
    assert_eq!(post_event(nerve, ty, id, &data.to_string()).await / 100, 2);
}

/// Asks with these fields, as soon as a function takes questions.
async fn ask(nerve: &Nerve, asked: Value) -> Reader {
    let url = nerve.url("/v1/answers");
    let response = eventually("questions are taken", seconds(20), || async {
        let response = reqwest::Client::new().post(&url).json(&asked).send().await.ok()?;
        (response.status() == 200).then_some(response)
    });
    Reader::new(response.await)
}

/// The names of an answer's parts, repetitions left out.
fn names(parts: &[Frame]) -> Vec<&str> {
    let mut names: Vec<_> = parts.iter().map(|part| part.name.as_str()).collect();
    names.dedup();
    names
}

/// What the tokens of an answer say together.
fn said(parts: &[Frame]) -> String {
    let tokens = parts.iter().filter(|part| part.name == "token");
    tokens.map(|part| part.data["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_smallest_pipeline_answers_with_no_model_and_is_shown_whole() {
    let envs = vec![("NERVE_ONNX_LIBRARY".to_owned(), "/nowhere".to_owned())];
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(&example("pipeline")).await;
    let asked = nerve.cli().run(&["ask", "What does a late invoice cost?"]).await.ok().stdout;
    assert!(asked.contains("A late invoice costs ten percent more") && asked.contains("[1] fees.md"), "{asked}");
    let parts = ask(&nerve, json!({"question": "How long do refunds take?", "conversation": "ada"})).await.rest().await;
    assert_eq!(names(&parts), ["retrieved", "token", "done"]);
    let done = &parts.last().unwrap().data;
    assert_eq!((said(&parts), &done["answered"]), (done["answer"].as_str().unwrap().to_owned(), &json!(true)));
    assert!(said(&parts).starts_with("Refunds take five working days") && parts.len() > 10, "{parts:?}");
    let remembered = made(&streams, "memory.updated", 2).await;
    assert_eq!((&remembered[1]["conversation"], &remembered[1]["answer"]), (&json!("ada"), &done["answer"]));
    let asked = nerve.cli().run(&["ask", "Xyzzy?"]).await.ok().stdout;
    assert!(asked.contains("The texts do not say."), "{asked}");
    assert_eq!(streams.count("EVENTS", "events.answer.token").await, 0, "tokens are no steps");

    // The manual shows what is deployed, to the letter.
    let manual = fs::read_to_string(checkout().join("functions/guides/pipeline.md")).unwrap();
    for file in ["nerve.toml", "retriever.py", "generator.py", "memory.py"] {
        let shown = fs::read_to_string(example("pipeline").join(file)).unwrap();
        assert!(manual.contains(shown.trim_end()), "functions/guides/pipeline.md does not show {file} as it is");
    }
}

#[tokio::test]
async fn a_question_that_breaks_a_function_ends_for_its_reader() {
    let (nerve, streams) = up("agentic").await;
    let asked = nerve.cli().run(&["ask", "What do 3 ropes cost?"]).await.ok().stdout;
    assert!(asked.contains("43.50 EUR"), "{asked}");
    let parts = ask(&nerve, json!({"question": "What do 3 ropes cost?", "steps": "many"})).await.rest().await;
    let failed = parts.last().unwrap();
    assert_eq!((failed.name.as_str(), &failed.data["function"]), ("error", &json!("observer")), "{failed:?}");
    streams.reaches("DEAD", "dead.observer", 1, seconds(20)).await;
}

#[tokio::test]
async fn reactive_a_document_is_classified_and_an_urgent_one_raises_an_alert() {
    let (nerve, streams) = up("reactive").await;
    let documents = [
        ("monday.txt", "The gauge was down, and unreachable for an hour."),
        ("bill.txt", "Invoice 7: the amount due is 12 euros."),
        ("poem.txt", "The tide goes out, the tide comes in."),
    ];
    for (name, text) in documents {
        publish(&nerve, "document.uploaded", name, json!({"document": name, "text": text})).await;
    }
    let mut classified = made(&streams, "document.classified", 3).await;
    classified.sort_by_key(|data| data["document"].to_string());
    let classes: Vec<_> = classified.iter().map(|data| &data["classes"]).collect();
    let words = json!({"incident": ["down", "unreachable"]});
    assert_eq!(classes, [&json!({"invoice": ["invoice", "amount due"]}), &words, &json!({})]);
    publish(&nerve, "document.uploaded", "bad", json!({"document": "scan.pdf", "data": "JVBERg=="})).await;
    streams.reaches("DEAD", "dead.classifier", 1, seconds(20)).await;
    let alerts = made(&streams, "alert.raised", 1).await;
    assert_eq!(alerts, [json!({"document": "monday.txt", "because": words})]);
}

#[tokio::test]
async fn streaming_remarks_are_read_while_the_review_goes_on() {
    let envs = vec![("NERVE_GATEWAY_MAX_API_BODY".to_owned(), "8000000".to_owned())];
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(&example("streaming")).await;
    let draft = format!("The the tide is out. {}. It (soon turns.", ["word", "other"].repeat(20).join(" "));
    let asked = json!({"question": "What is wrong?", "text": draft});
    let parts = ask(&nerve, asked).await.rest().await;
    let remarks =
        ["Sentence 1 says “The” twice.", "Sentence 2 has 40 words: make two of it.", "Sentence 3 has a bracket"];
    let tokens: Vec<_> = parts.iter().filter(|part| part.name == "token").collect();
    assert_eq!(tokens.len(), 3, "{parts:?}");
    for (token, remark) in tokens.iter().zip(remarks) {
        assert!(token.data["text"].as_str().unwrap().starts_with(remark), "{token:?}");
    }
    let done = parts.last().unwrap();
    assert_eq!((&done.data["remarks"], &done.data["answer"]), (&json!(3), &json!(said(&parts))));
    let asked = nerve.cli().run(&["ask", "All is well here."]).await.ok().stdout;
    assert!(asked.contains("There is nothing to remark."), "{asked}");

    // A draft that takes a while: its first remark is there before it is done.
    let long = format!("It it begins. {}", "The harbour is calm tonight. ".repeat(200_000));
    let asked = json!({"question": "And now?", "text": long});
    let first = ask(&nerve, asked).await.next().await.expect("a remark");
    assert!(first.name == "token" && said(&[first]).contains("says “It” twice"));
    assert_eq!(streams.count("EVENTS", "events.answer.generated").await, 2, "it goes on");
    made(&streams, "answer.generated", 3).await;
}

#[tokio::test]
async fn agentic_a_loop_of_events_calls_tools_until_the_answer_is_known() {
    let (nerve, streams) = up("agentic").await;
    let parts = ask(&nerve, json!({"question": "What do 3 ropes and 2 anchors cost in dollars?"})).await.rest().await;
    let done = &parts.last().unwrap().data;
    // (3 × 14.5 + 2 × 89.9) × 1.09
    assert_eq!((&done["answer"], &done["answered"]), (&json!("243.40 USD"), &json!(true)), "{done}");
    let found: Vec<_> = done["steps"].as_array().unwrap().iter().map(|step| step["finds"].as_str().unwrap()).collect();
    assert_eq!(found, ["rope", "anchor", "total", "USD", "converted"]);
    made(&streams, "tool.called.lookup", 3).await;
    made(&streams, "tool.called.calculate", 2).await;
    assert_eq!(made(&streams, "agent.step", 6).await[5]["left"], 3);
    let loops = streams.read("EVENTS", ">").await;
    let conversations: std::collections::BTreeSet<_> =
        loops.iter().map(|event| event.header("ce-correlationid")).collect();
    assert_eq!((loops.len(), conversations.len()), (18, 1), "one workflow");
}

#[tokio::test]
async fn agentic_a_loop_ends_with_its_steps_and_without_what_no_tool_finds() {
    let (nerve, streams) = up("agentic").await;
    let asked = json!({"question": "What do 3 ropes and 2 anchors cost in dollars?", "steps": 2});
    let parts = ask(&nerve, asked).await.rest().await;
    let done = &parts.last().unwrap().data;
    assert_eq!(done["answer"], "After 2 steps this is still missing: total.");
    assert_eq!((&done["answered"], made(&streams, "tool.returned", 2).await.len()), (&json!(false), 2));
    let asked = nerve.cli().run(&["ask", "What do 7 whales cost?"]).await.ok().stdout;
    assert!(asked.contains("There is no price for: whale."), "{asked}");
    assert_eq!(streams.count("DEAD", ">").await, 0);
}

fn ranking(nerve: &Nerve) -> Folder {
    changed("feedback", "ranking.py", "http://127.0.0.1:8080", nerve.gateway.trim_end_matches('/'))
}

#[tokio::test]
async fn feedback_moves_weights_that_are_rebuilt_from_the_log() {
    let data = tempfile::tempdir().unwrap();
    let mut nerve = Nerve::up_with(Options { data: Some(data.path().to_owned()), ..Options::default() }).await;
    let folder = ranking(&nerve);
    nerve.cli().deploy(folder.path()).await;
    let feedback = [("fees.md", 1.0), ("fees.md", 1.0), ("tides.md", -1.0)];
    for (number, (document, rating)) in feedback.into_iter().enumerate() {
        let data = json!({"answer": "7", "rating": rating, "document": document});
        publish(&nerve, "feedback.submitted", &number.to_string(), data).await;
    }
    let streams = Streams::connect(&nerve.nats).await;
    publish(&nerve, "feedback.submitted", "other", json!({"answer": "7", "correction": "It is Tuesday."})).await;
    let updated = made(&streams, "ranking.updated", 3).await;
    let last = updated.iter().max_by_key(|data| data["feedbacks"].as_u64()).unwrap();
    assert_eq!(last, &json!({"weights": {"fees.md": 1.5, "tides.md": 0.667}, "feedbacks": 3}));

    // Nothing that was counted is lost with the process.
    assert!(nerve.sigterm(seconds(20)).await.success());
    nerve.restart().await;
    publish(&nerve, "feedback.submitted", "later", json!({"answer": "7", "rating": 1, "document": "tides.md"})).await;
    let streams = Streams::connect(&nerve.nats).await;
    let updated = made(&streams, "ranking.updated", 4).await;
    assert_eq!(updated[3], json!({"weights": {"fees.md": 1.5, "tides.md": 1.0}, "feedbacks": 4}));
}

/// What the library's table holds, by the Python that filled it.
fn table(database: &Path) -> Value {
    let script = "import json, sqlite3, sys\n\
                  rows = sqlite3.connect(sys.argv[1]).execute('SELECT document, words FROM documents')\n\
                  print(json.dumps(dict(rows.fetchall())))";
    let read = std::process::Command::new("python3").args(["-c", script]).arg(database).output().expect("python3");
    serde_json::from_slice(&read.stdout).unwrap_or_else(|error| panic!("{error}: {read:?}"))
}

#[tokio::test]
async fn hybrid_a_folder_goes_in_by_batches_and_what_comes_later_at_once() {
    const FILES: usize = 300;
    let (nerve, place) = (Nerve::up().await, tempfile::tempdir().unwrap());
    let database = place.path().join("library.db");
    let at = database.display().to_string();
    nerve.cli().deploy(changed("hybrid", "library.py", "/var/tmp/nerve-library.db", &at).path()).await;
    let docs = place.path().join("docs");
    fs::create_dir(&docs).unwrap();
    for number in 0..FILES {
        fs::write(docs.join(format!("{number}.txt")), "word ".repeat(number + 1)).unwrap();
    }
    let docs = docs.display().to_string();
    let ingested = nerve.cli().run(&["ingest", &docs, "--output", "json"]).await.ok().json();
    assert_eq!((&ingested["indexed"], &ingested["failed"]), (&json!(FILES), &json!({})), "{ingested}");
    let streams = Streams::connect(&nerve.nats).await;
    let indexed = made(&streams, "document.indexed", FILES).await;
    let together = indexed.iter().map(|data| data["together"].as_u64().unwrap()).max().unwrap();
    assert!((10..=64).contains(&together), "the folder went in by batches: {together} at most");

    // Live: alone, soon, and by the same function; what is no document costs itself alone.
    publish(&nerve, "document.uploaded", "bad", json!({"document": "scan.pdf", "data": "JVBERg=="})).await;
    publish(&nerve, "document.uploaded", "note", json!({"document": "note.txt", "text": "The lamp is mended."})).await;
    made(&streams, "document.indexed", FILES + 1).await;
    streams.reaches("DEAD", "dead.library", 1, seconds(20)).await;
    let stored = table(&database);
    assert_eq!(stored.as_object().unwrap().len(), FILES + 1);
    assert_eq!((&stored["note.txt"], &stored[format!("{docs}/299.txt")]), (&json!(4), &json!(300)));

    // A later upload replaces; an earlier one that comes after it does not.
    for (id, time, text) in [("new", "2031-01-02T00:00:00Z", "one two three"), ("old", "2031-01-01T00:00:00Z", "one")] {
        let event = json!({"specversion": "1.0", "id": id, "source": "/tests", "type": "document.uploaded", "time": time,
                           "data": {"document": "note.txt", "text": text}});
        let request = reqwest::Client::new().post(nerve.url("/v1/events")).body(event.to_string());
        let sent = request.header("content-type", "application/cloudevents+json").send().await.unwrap();
        assert_eq!(sent.status().as_u16() / 100, 2);
    }
    made(&streams, "document.indexed", FILES + 3).await;
    assert_eq!(table(&database)["note.txt"], 3, "the later upload stays");
}

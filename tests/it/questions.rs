//! Answers as their operator sees them: measured over a file of questions, traced, and made by functions of one's own.

use crate::documents::{ask, indexed, upload};
use nerve_tests::{Nerve, Streams, checkout, eventually, guest, seconds};
use serde_json::{Value, json};
use std::fs;

/// Real pages: this project's own.
const PAGES: [&str; 6] = [
    "README.md",
    "platform/reference/streams.md",
    "functions/reference/process.md",
    "functions/onnx/reference/functions.md",
    "functions/onnx/reference/running.md",
    "functions/rag/reference/functions.md",
];
/// Questions that these pages answer, each with the page.
const QUESTIONS: [(&str, &str); 6] = [
    ("Which execution providers can ONNX Runtime use?", "functions/onnx/reference/running.md"),
    ("How is a SPLADE model's sparse vector written as JSON?", "functions/onnx/reference/functions.md"),
    ("What is in the stream DEAD?", "platform/reference/streams.md"),
    ("What does rag/remember keep of a conversation?", "functions/rag/reference/functions.md"),
    ("How does rag/rerank order the documents?", "functions/rag/reference/functions.md"),
    ("What does a process write when an event can never succeed?", "functions/reference/process.md"),
];

async fn with_pages() -> (Nerve, Streams) {
    let nerve = Nerve::up().await;
    let files = PAGES.map(|page| checkout().join(page).display().to_string());
    let mut args = vec!["ingest"];
    args.extend(files.iter().map(String::as_str));
    nerve.cli().run(&args).await.ok();
    let streams = Streams::connect(&nerve.nats).await;
    (nerve, streams)
}

async fn events(streams: &Streams, ty: &str) -> Vec<Value> {
    let stored = streams.read("EVENTS", &format!("events.{ty}")).await;
    stored.iter().map(|event| serde_json::from_slice(&event.data).unwrap()).collect()
}

#[tokio::test]
async fn nerve_eval_measures_the_answers_and_compares_them_with_the_last_run() {
    let (nerve, streams) = with_pages().await;
    let lines = QUESTIONS.map(|(question, source)| json!({"question": question, "source": source}).to_string());
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, lines.join("\n")).unwrap();
    let file = file.path().display().to_string();
    let first = nerve.cli().run(&["eval", &file, "--output", "json"]).await.ok().json();
    assert_eq!((&first["questions"], &first["failed"], &first["before"]), (&json!(6), &json!(0), &Value::Null));
    for (measure, least) in [("recall_at_5", 0.8), ("recall_at_10", 0.8), ("cited", 0.6), ("groundedness", 0.95)] {
        assert!(first[measure].as_f64().unwrap() >= least, "{measure}: {first:#}");
    }
    assert!(first["latency_p50_ms"].as_f64().unwrap() > 0.0, "{first:#}");
    // What an answer cites stands where it says, word for word.
    let mut cited = 0;
    for answer in events(&streams, "answer.generated").await {
        for citation in answer["citations"].as_array().unwrap() {
            let page = fs::read_to_string(citation["source"].as_str().unwrap()).unwrap();
            let (start, end) =
                (citation["start"].as_u64().unwrap() as usize, citation["end"].as_u64().unwrap() as usize);
            assert_eq!(&page[start..end], citation["text"].as_str().unwrap(), "{citation}");
            cited += 1;
        }
    }
    assert!(cited >= 6, "{cited} citations");
    let second = nerve.cli().run(&["eval", &file]).await.ok();
    assert!(second.stdout.contains("last run") && second.stdout.contains("recall@5"), "{second:#?}");
    // Without its pages nothing is found, and that is a worse run.
    for page in PAGES {
        let name = checkout().join(page).display().to_string();
        let (id, data) = (format!("gone-{page}"), json!({"document": name}).to_string());
        assert_eq!(crate::post_event(&nerve, "document.deleted", &id, &data).await / 100, 2);
    }
    indexed(&streams, 2 * PAGES.len()).await;
    let third = nerve.cli().run(&["eval", &file, "--output", "json"]).await.ok().json();
    assert_eq!((&third["recall_at_5"], &third["answered"]), (&json!(0.0), &json!(0)), "{third:#}");
    assert_eq!(third["before"]["recall_at_5"], first["recall_at_5"], "{third:#}");
    assert_eq!(third["missed"].as_array().unwrap().len(), 6, "{third:#}");
}

#[tokio::test]
async fn nerve_trace_shows_the_whole_tree_of_an_answer() {
    let (nerve, streams) = with_pages().await;
    let response = reqwest::Client::new().post(nerve.url("/v1/answers"));
    let body = json!({"question": QUESTIONS[0].0, "conversation": "tracing", "stream": false});
    let answer: Value = response.json(&body).send().await.unwrap().json().await.unwrap();
    let id = answer["id"].as_str().unwrap();
    streams.reaches("EVENTS", "events.notification.sent", 1, seconds(30)).await;
    let steps = [
        "prompt.received",
        "documents.retrieved",
        "documents.reranked",
        "answer.generated",
        "answer.evaluated",
        "memory.updated",
        "notification.sent",
    ];
    let traced = nerve.cli().run(&["trace", id, "--output", "json"]).await.ok().json();
    let mut level = &traced["events"];
    for step in steps {
        let event = level.as_array().unwrap().iter().find(|event| event["type"] == step);
        level = &event.unwrap_or_else(|| panic!("no {step} in {traced:#}"))["led_to"];
    }
    let text = nerve.cli().run(&["trace", id]).await.ok().stdout;
    let places: Vec<usize> = steps.iter().map(|step| text.find(step).unwrap_or_else(|| panic!("{text}"))).collect();
    assert!(places.is_sorted(), "each below what led to it:\n{text}");
    assert!(text.contains("parts streamed"), "{text}");
    // The same over HTTP.
    let over_http = reqwest::get(nerve.url(&format!("/v1/traces/{id}"))).await.unwrap().json::<Value>().await.unwrap();
    assert_eq!(over_http["events"], traced["events"]);
    let unknown = nerve.cli().run(&["trace", "nobody"]).await.failed(1);
    assert!(unknown.stderr.contains("nerve tail"), "{unknown:#?}");
}

#[tokio::test]
async fn rerank_is_replaced_by_a_component_with_one_table() {
    let (nerve, streams) = with_pages().await;
    let before = ask(&nerve, &streams, "before", json!({"question": QUESTIONS[3].0})).await.len();
    streams.reaches("EVENTS", "events.documents.reranked", 1, seconds(30)).await;
    // The component passes on what it is given: all ten, in the order of retrieval and without a relevance.
    let echo = guest::echo("documents.reranked");
    let own = guest::wasm("rerank", "events.documents.retrieved", "documents.reranked", "", &echo);
    nerve.cli().deploy(own.path()).await;
    let mut asked = 0;
    let reranked = eventually("the component reranks", seconds(30), || {
        asked += 1;
        let (id, nerve, streams) = (format!("after-{asked}"), &nerve, &streams);
        async move {
            ask(nerve, streams, &id, json!({"question": QUESTIONS[3].0})).await;
            streams.reaches("EVENTS", "events.documents.reranked", asked + 1, seconds(30)).await;
            let last = events(streams, "documents.reranked").await.pop().unwrap();
            (last["documents"].as_array().unwrap().len() == before).then_some(last)
        }
    });
    let reranked = reranked.await;
    assert!(reranked["documents"][0].get("relevance").is_none(), "{reranked:#}");
    streams.reaches("EVENTS", "events.answer.generated", asked + 1, seconds(30)).await;
    let answers = events(&streams, "answer.generated").await;
    let (first, last) = (&answers[0], answers.last().unwrap());
    assert_eq!((first["answered"].clone(), last["answered"].clone()), (json!(true), json!(true)), "{last:#}");
    let citations = last["citations"].as_array().unwrap();
    assert!(!citations.is_empty(), "an answer made from what the component gave cites it: {last:#}");
}

#[tokio::test]
async fn a_question_that_no_page_answers_is_said_to_have_no_answer() {
    let (nerve, streams) = with_pages().await;
    upload(&nerve, "poem", json!({"document": "poem", "text": "The owl and the pussycat went to sea in a boat."}))
        .await;
    indexed(&streams, PAGES.len() + 1).await;
    let body = json!({"question": "Which horse won the Derby of 1894?", "stream": false});
    let answer: Value =
        reqwest::Client::new().post(nerve.url("/v1/answers")).json(&body).send().await.unwrap().json().await.unwrap();
    assert_eq!((&answer["answered"], &answer["citations"]), (&json!(false), &json!([])), "{answer:#}");
}

//! A language model on this machine: answers of the pipeline, streamed, and gone on with after a crash.

use crate::{
    documents::{indexed, upload},
    templates::{CONTAIN_ITSELF, NEST},
};
use nerve_tests::{
    Folder, Nats, Nerve, Streams, checkout,
    models::{copy_folder, fixture},
    nerve, seconds,
    sse::{Frame, Reader},
};
use serde_json::{Value, json};
use std::{fs, path::Path};

/// What transformers wrote for the question below (make_writers.py).
fn expected() -> Value {
    let file = fixture("writer").join("expected.json");
    let expected: Value = serde_json::from_slice(&fs::read(file).expect("what is expected")).expect("JSON");
    expected["pipeline"].clone()
}

/// The project's own pipeline, its generation by the model `writer`.
fn pipeline(expected: &Value) -> Folder {
    let text = fs::read_to_string(checkout().join("functions/rag/nerve.toml")).expect("the pipeline's manifest");
    let (before, rest) = text.split_once("[function.generate]").expect("it generates");
    let (_, after) = rest.split_once("\n\n").expect("more follows");
    let generate = format!(
        "[function.generate]\nruntime = \"builtin\"\nuse = \"rag/generate\"\nmodel = \"writer\"\n\
         on = [\"events.documents.reranked\"]\nemits = [\"answer.generated\", \"answer.token\", \"answer.citation\"]\n\
         with = {{ system = {}, max_tokens = {} }}\ntimeout = \"2m\"",
        expected["system"], expected["max_tokens"]
    );
    Folder::new(&format!("{before}{generate}\n\n{after}"))
}

async fn add_model_and_document(gateway: &Nerve, model: &Path, expected: &Value) {
    let folder = model.display().to_string();
    let added = gateway.cli().run(&["models", "add", &folder, "--name", "writer"]).await.ok();
    assert!(added.stdout.contains("added writer: generate, 1024 tokens"), "{added:?}");
    gateway.cli().deploy(pipeline(expected).path()).await;
    let document = json!({"document": expected["document"], "name": expected["document"], "text": expected["says"]});
    upload(gateway, "1", document).await;
    indexed(&Streams::connect(&gateway.nats).await, 1).await;
}

async fn ask(gateway: &Nerve, prompt: Value) -> Reader {
    let request = reqwest::Client::new().post(gateway.url("/v1/answers"));
    let response = request.json(&prompt).send().await.expect("the gateway answers");
    assert_eq!(response.status(), 200);
    Reader::new(response)
}

fn texts(frames: &[Frame]) -> Vec<&str> {
    let tokens = frames.iter().filter(|frame| frame.name == "token");
    tokens.map(|frame| frame.data["text"].as_str().expect("a token has a text")).collect()
}

/// The whole answer is what transformers wrote.
fn assert_whole(frames: &[Frame], expected: &Value) {
    let last = frames.last().expect("a part");
    assert_eq!(last.name, "done", "{last:?}");
    assert_eq!(texts(frames).concat(), expected["text"]);
    let done = &last.data;
    assert_eq!((&done["answer"], &done["finish"]), (&expected["text"], &expected["finish"]));
    assert_eq!(done["generator"], "writer");
    let tokens = expected["tokens"].as_array().unwrap().len();
    assert_eq!(done["usage"], json!({"prompt_tokens": expected["prompt_tokens"], "completion_tokens": tokens}));
}

#[tokio::test]
async fn a_model_on_this_machine_writes_token_by_token_and_goes_on_after_kill_9() {
    let expected = expected();
    let nats = Nats::start().await;
    let data = tempfile::tempdir().unwrap();
    let gateway = Nerve::gateway(&nats.url()).await;
    let mut worker = nerve::worker(&nats.url(), data.path()).await;
    add_model_and_document(&gateway, &fixture("writer"), &expected).await;
    let prompt = json!({"question": expected["question"]});

    let frames = ask(&gateway, prompt.clone()).await.rest().await;
    assert_whole(&frames, &expected);
    assert_eq!(frames[0].name, "retrieved");
    let pieces = texts(&frames);
    assert!(pieces.len() > 200 && pieces.iter().all(|piece| piece.chars().count() < 20), "{pieces:?}");

    let short = json!({"question": expected["question"], "options": {"max_tokens": 7}});
    let frames = ask(&gateway, short).await.rest().await;
    let done = &frames.last().unwrap().data;
    assert_eq!((&done["finish"], &done["usage"]["completion_tokens"]), (&json!("length"), &json!(7)));
    assert!(expected["text"].as_str().unwrap().starts_with(done["answer"].as_str().unwrap()), "{done}");

    // A worker that was done already was not cut: then another answer is.
    let streams = Streams::connect(&nats.url()).await;
    for attempt in 0..5 {
        let mut reader = ask(&gateway, prompt.clone()).await;
        let mut frames = Vec::new();
        while texts(&frames).len() < 20 {
            frames.push(reader.next().await.expect("the answer goes on"));
        }
        worker.kill9();
        let was_cut = streams.count("EVENTS", "events.answer.generated").await == 2 + attempt;
        worker = nerve::worker(&nats.url(), data.path()).await;
        frames.extend(reader.rest().await);
        assert_whole(&frames, &expected);
        streams.reaches("EVENTS", "events.answer.generated", 3 + attempt, seconds(20)).await;
        if was_cut {
            return;
        }
    }
    panic!("no answer was cut in the middle");
}

#[tokio::test]
async fn a_model_that_cannot_write_is_refused() {
    let nerve = Nerve::up().await;
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&fixture("writer"), folder.path());
    fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    let path = folder.path().display().to_string();
    let refused = nerve.cli().run(&["models", "add", &path, "--name", "mute"]).await.failed(1);
    assert!(
        refused.stderr.contains("no chat template") && refused.stderr.contains("chat_template.jinja"),
        "{refused:?}"
    );
    let ranks = fixture("cross-encoder").display().to_string();
    nerve.cli().run(&["models", "add", &ranks, "--name", "judge"]).await.ok();
    let table = "[function.generate]\nruntime = \"builtin\"\nuse = \"rag/generate\"\nmodel = \"judge\"\n\
                 on = [\"events.a\"]\nemits = [\"answer.generated\"]\n";
    let folder = Folder::new(table);
    let deployed = folder.path().display().to_string();
    let refused = nerve.cli().run(&["deploy", &deployed]).await.failed(1);
    assert!(refused.stderr.contains("is rerank"), "{refused:?}");
}

/// One text of gigabytes.
const PAD: &str = "{{ '{:>2000000000}'.format(1) }}";

#[tokio::test]
async fn chat_template_that_spoils_one_conversation_costs_that_answer() {
    let (nerve, expected) = (Nerve::up().await, expected());
    let server = nerve.server();
    let model = tempfile::tempdir().unwrap();
    copy_folder(&fixture("writer"), model.path());
    let file = model.path().join("chat_template.jinja");
    let template = fs::read_to_string(&file).unwrap();
    // It stands its trial, which asks no such question.
    let hostile = format!(
        "{{% if 'nest' in messages[-1].content %}}{NEST}{{% elif 'itself' in messages[-1].content %}}{CONTAIN_ITSELF}\
         {{% elif 'pad' in messages[-1].content %}}{PAD}{{% endif %}}"
    );
    fs::write(file, format!("{hostile}{template}")).unwrap();
    add_model_and_document(&nerve, model.path(), &expected).await;
    for (said, told) in [("nest", "nested too deeply"), ("itself", "nested too deeply"), ("pad", "MiB of memory")] {
        let question = format!("{} {said}", expected["question"].as_str().unwrap());
        let frames = ask(&nerve, json!({"question": question})).await.rest().await;
        let last = frames.last().unwrap();
        assert!(last.name == "error" && last.data.to_string().contains(told), "{said}: {frames:?}");
    }
    assert_whole(&ask(&nerve, json!({"question": expected["question"]})).await.rest().await, &expected);
    assert_eq!(nerve.server(), server, "the server process is the same");
}

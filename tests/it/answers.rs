//! Answers while they are made: streamed, resumed, cancelled, remembered, of collections apart, and over OpenAI's API.

use crate::{post_event, problem};
use nerve_tests::{
    Folder, Nerve, Streams, checkout, eventually,
    models::python,
    nerve::Options,
    seconds,
    sse::{Frame, Reader},
};
use serde_json::{Value, json};
use std::fs;

/// Tells `{"tokens": N, "pace": seconds}` as N numbered tokens, several stories side by side. With `pad` each token is
/// as many bytes longer.
const STORYTELLER: &str = r#"
import json, sys, threading, time
lock = threading.Lock()
def say(id, **what):
    with lock:
        print(json.dumps({"id": id, **what}), flush=True)
def tell(call):
    data = call["event"]["data"]
    for n in range(data["tokens"]):
        say(call["id"], emit={"type": "answer.token", "data": {"text": f"{n} " + " " * data.get("pad", 0)}})
        time.sleep(data.get("pace", 0))
    whole = "".join(f"{n} " for n in range(data["tokens"]))
    say(call["id"], events=[{"type": "answer.generated", "data": {"question": data["question"], "answer": whole}}])
for line in sys.stdin:
    threading.Thread(target=tell, args=(json.loads(line),)).start()
"#;

pub(crate) fn storyteller() -> Folder {
    let emits = "answer.token\", \"answer.generated";
    nerve_tests::guest::python("story", "events.prompt.received", emits, "timeout = \"1m\"", STORYTELLER)
}

async fn ask(nerve: &Nerve, body: Value, headers: &[(&str, &str)]) -> reqwest::Response {
    let request = reqwest::Client::new().post(nerve.url("/v1/answers")).json(&body);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.send().await.expect("the gateway answers")
}

/// Asks until a function takes questions.
pub(crate) async fn ask_story(nerve: &Nerve, tokens: usize, pace: f64) -> reqwest::Response {
    let body = json!({"question": "tell", "tokens": tokens, "pace": pace});
    eventually("questions are taken", seconds(20), || async {
        let response = ask(nerve, body.clone(), &[]).await;
        (response.status() == 200).then_some(response)
    })
    .await
}

pub(crate) fn id_of(response: &reqwest::Response) -> String {
    let location = response.headers()["location"].to_str().unwrap();
    location.strip_prefix("/v1/answers/").unwrap().to_owned()
}

pub(crate) async fn resume(nerve: &Nerve, id: &str, after: Option<u64>) -> reqwest::Response {
    let request = reqwest::Client::new().get(nerve.url(&format!("/v1/answers/{id}")));
    let request = match after {
        Some(after) => request.header("Last-Event-ID", after.to_string()),
        None => request,
    };
    request.send().await.expect("the gateway answers")
}

pub(crate) fn names(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| frame.name.as_str()).collect()
}

pub(crate) fn text(frames: &[Frame]) -> String {
    frames.iter().filter(|frame| frame.name == "token").map(|frame| frame.data["text"].as_str().unwrap()).collect()
}

pub(crate) fn story(tokens: usize) -> String {
    (0..tokens).map(|n| format!("{n} ")).collect()
}

async fn with_documents() -> Nerve {
    let nerve = Nerve::up().await;
    nerve.cli().deploy(&checkout().join("functions/rag")).await;
    let streams = Streams::connect(&nerve.nats).await;
    for (id, said) in [("fees", "Late invoices cost ten percent more."), ("refunds", "Refunds are paid within a week.")]
    {
        let document = json!({"document": id, "name": id, "text": said}).to_string();
        assert_eq!(post_event(&nerve, "document.uploaded", id, &document).await / 100, 2);
    }
    streams.reaches("EVENTS", "events.document.indexed", 2, seconds(60)).await;
    nerve
}

#[tokio::test]
async fn an_answer_is_streamed_in_its_order_and_resumed_after_any_part() {
    let nerve = with_documents().await;
    let response = ask(&nerve, json!({"question": "What do late invoices cost?"}), &[]).await;
    let id = id_of(&response);
    let frames = Reader::new(response).rest().await;
    assert_eq!(names(&frames), ["retrieved", "token", "citation", "done"], "{frames:#?}");
    assert_eq!(frames[0].data["documents"].as_array().unwrap().len(), 2);
    assert_eq!(text(&frames), "Late invoices cost ten percent more.");
    let (citation, done) = (&frames[2].data, &frames[3].data);
    assert_eq!((&citation["source"], &citation["text"]), (&json!("fees"), &frames[1].data["text"]));
    assert_eq!((&done["id"], &done["answer"], &done["answered"]), (&json!(id), &frames[1].data["text"], &json!(true)));
    assert_eq!((&done["citations"][0], &done["context"][0]["source"]), (citation, &json!("fees")));
    // From the beginning, and after each part: what follows it, and nothing else.
    assert_eq!(Reader::new(resume(&nerve, &id, None).await).rest().await, frames);
    for (place, frame) in frames.iter().enumerate().take(frames.len() - 1) {
        assert_eq!(Reader::new(resume(&nerve, &id, frame.id).await).rest().await, frames[place + 1..]);
    }
    assert_eq!(resume(&nerve, &id, frames[3].id).await.status(), 204, "a browser stops coming back");
    // Whole, as JSON.
    let whole = reqwest::Client::new().get(nerve.url(&format!("/v1/answers/{id}")));
    let whole: Value = whole.header("accept", "application/json").send().await.unwrap().json().await.unwrap();
    assert_eq!(&whole, done);
    let body = json!({"question": "What do late invoices cost?", "stream": false});
    let asked: Value = ask(&nerve, body, &[]).await.json().await.unwrap();
    assert_eq!(asked["answer"], whole["answer"]);
    // The whole pipeline ran by events.
    let streams = Streams::connect(&nerve.nats).await;
    streams.reaches("EVENTS", "events.memory.updated", 2, seconds(20)).await;
    let evaluated = streams.read("EVENTS", "events.answer.evaluated").await;
    let evaluated: Value = serde_json::from_slice(&evaluated[0].data).unwrap();
    assert!(evaluated["evaluation"]["groundedness"].as_f64().unwrap() > 0.99, "{evaluated}");
    assert!(evaluated["evaluation"]["latency_ms"].as_u64().unwrap() < 10_000, "{evaluated}");
    assert_eq!((&evaluated["evaluation"]["context_precision"], &evaluated["flags"]), (&json!(1.0), &json!([])));
}

#[tokio::test]
async fn a_question_is_asked_once_by_its_key_and_what_is_wrong_is_refused() {
    let nerve = Nerve::up().await;
    let (status, told) = problem(ask(&nerve, json!({"question": "?"}), &[]).await).await;
    assert!(status == 503 && told["detail"].as_str().unwrap().contains("nerve ingest"), "{told}");
    nerve.cli().deploy(storyteller().path()).await;
    let first = Reader::new(ask_story(&nerve, 3, 0.0).await).rest().await;
    assert_eq!((text(&first), names(&first)), (story(3), vec!["token", "token", "token", "done"]));
    let body = json!({"question": "tell", "tokens": 5});
    let key = [("Idempotency-Key", "my own key/1")];
    let one = ask(&nerve, body.clone(), &key).await;
    let id = id_of(&one);
    assert_ne!(id, "my own key/1", "a key is no id");
    let one = Reader::new(one).rest().await;
    let again = ask(&nerve, body, &key).await;
    assert_eq!(id_of(&again), id);
    assert_eq!(Reader::new(again).rest().await, one, "the same answer, not another");
    assert_eq!(Reader::new(resume(&nerve, &id, one[2].id).await).rest().await, one[3..]);
    for (body, status) in [(json!({}), 400), (json!({"question": "  "}), 400), (json!([]), 400)] {
        assert_eq!(problem(ask(&nerve, body, &[]).await).await.0, status);
    }
    assert_eq!(problem(resume(&nerve, "nobody-asked", None).await).await.0, 404);
    let response = reqwest::Client::new().get(nerve.url("/v1/answers/x")).header("Last-Event-ID", "soon").send().await;
    assert_eq!(problem(response.unwrap()).await.0, 400);
}

#[tokio::test]
async fn a_cancelled_answer_stops_and_its_readers_are_told() {
    let nerve = Nerve::up().await;
    nerve.cli().deploy(storyteller().path()).await;
    let response = ask_story(&nerve, 1000, 0.05).await;
    let id = id_of(&response);
    let mut reader = Reader::new(response);
    for _ in 0..5 {
        reader.next().await.unwrap();
    }
    let url = nerve.url(&format!("/v1/answers/{id}"));
    let cancelled = reqwest::Client::new().delete(&url).send().await.unwrap();
    assert_eq!(cancelled.status(), 204);
    let rest = reader.rest().await;
    let last = rest.last().unwrap();
    assert_eq!((last.name.as_str(), &last.data["kind"]), ("error", &json!("cancelled")));
    let streams = Streams::connect(&nerve.nats).await;
    assert_eq!(streams.count("EVENTS", "events.control.cancelled").await, 1);
    // Nothing is told any more, and the event is settled: it is not tried again.
    let mut told = streams.count("ANSWERS", "answers.>").await;
    eventually("the story stops", seconds(20), || {
        let before = told;
        let streams = &streams;
        async move {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            Some(streams.count("ANSWERS", "answers.>").await).filter(|now| *now == before).ok_or(before).ok()
        }
    })
    .await;
    told = streams.count("ANSWERS", "answers.>").await;
    assert!(told < 200, "{told} parts");
    assert_eq!(streams.count("EVENTS", "events.answer.generated").await, 0);
    assert_eq!(reqwest::Client::new().delete(&url).send().await.unwrap().status(), 204, "twice is once");
    assert_eq!(
        problem(reqwest::Client::new().delete(nerve.url("/v1/answers/nobody")).send().await.unwrap()).await.0,
        404
    );
}

#[tokio::test]
async fn an_answer_that_fails_or_takes_too_long_ends_with_an_error() {
    let envs = vec![("NERVE_GATEWAY_ANSWER_TIMEOUT".to_owned(), "2s".to_owned())];
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    nerve.cli().deploy(storyteller().path()).await;
    let slow = Reader::new(ask_story(&nerve, 1000, 0.05).await).rest().await;
    let last = slow.last().unwrap();
    assert_eq!((last.name.as_str(), &last.data["kind"]), ("error", &json!("timeout")));
    let streams = Streams::connect(&nerve.nats).await;
    assert_eq!(streams.count("EVENTS", "events.control.timeout").await, 1);
    // A story without a length fails its function, and so the answer, at its last attempt.
    let broken = "import json, sys\nfor line in sys.stdin:\n    call = json.loads(line)\n    print(json.dumps({\"id\":                   call[\"id\"], \"error\": {\"kind\": \"invalid\", \"message\": \"no story\"}}), flush=True)\n";
    let emits = "answer.token\", \"answer.generated";
    let folder = nerve_tests::guest::python("story", "events.prompt.received", emits, "", broken);
    nerve.cli().deploy(folder.path()).await;
    eventually("the new function answers", seconds(20), || async {
        let frames = Reader::new(ask_story(&nerve, 1, 0.0).await).rest().await;
        let last = frames.last().unwrap().clone();
        (last.name == "error").then_some(last)
    })
    .await;
    let body = json!({"question": "tell", "tokens": 1, "stream": false});
    let (status, told) = problem(ask(&nerve, body, &[]).await).await;
    assert!(status == 502 && told["detail"].as_str().unwrap().contains("`story` failed: no story"), "{told}");
}

#[tokio::test]
async fn the_official_openai_client_chats() {
    let nerve = with_documents().await;
    let said = python("openai_chat.py", &[&nerve.gateway]).await;
    let text = "Late invoices cost ten percent more.";
    assert_eq!((&said["whole"], &said["streamed"], &said["async"]), (&json!(text), &json!(text), &json!(text)));
    assert_eq!((&said["finish"], &said["object"]), (&json!("stop"), &json!("chat.completion")));
    assert_eq!(said["citation"], json!("fees"));
    assert_eq!(said["usage"], json!({"completion_tokens": 0, "prompt_tokens": 0, "total_tokens": 0}));
    assert_eq!(said["errors"], json!([400]));
    let streams = Streams::connect(&nerve.nats).await;
    let prompts = streams.read("EVENTS", "events.prompt.received").await;
    let prompts: Vec<Value> = prompts.iter().map(|event| serde_json::from_slice(&event.data).unwrap()).collect();
    let with_history = prompts.iter().find(|prompt| prompt["messages"].is_array()).unwrap();
    assert_eq!(with_history["messages"][1]["content"], "Hello there.");
    assert_eq!(with_history["options"], json!({"temperature": 0.5, "max_tokens": 9}));
}

#[tokio::test]
async fn a_conversation_is_remembered_and_its_earlier_answers_are_found() {
    let nerve = with_documents().await;
    let asked = async |question: &str, conversation: &str| -> Value {
        let body = json!({"question": question, "conversation": conversation, "stream": false});
        let answer: Value = ask(&nerve, body, &[]).await.json().await.unwrap();
        let streams = Streams::connect(&nerve.nats).await;
        // The next question may lean on this answer once it is remembered.
        eventually("it is remembered", seconds(20), || async {
            let stored = streams.read("EVENTS", "events.memory.updated").await;
            stored.iter().any(|event| event.header("ce-correlationid") == answer["id"]).then_some(())
        })
        .await;
        answer
    };
    asked("What do late invoices cost?", "ada").await;
    let follow = asked("And refunds?", "ada").await;
    assert!(follow["answer"].as_str().unwrap().contains("within a week"), "{follow}");
    for n in 0..6 {
        asked(&format!("When are refunds number {n} paid?"), "ada").await;
    }
    let streams = Streams::connect(&nerve.nats).await;
    // Two have left the window of six, and are documents of the conversation's own.
    streams.reaches("EVENTS", "events.document.indexed", 4, seconds(30)).await;
    asked("What do late invoices cost me, again?", "ada").await;
    let retrieved = streams.read("EVENTS", "events.documents.retrieved").await;
    let last: Value = serde_json::from_slice(&retrieved.last().unwrap().data).unwrap();
    assert_eq!(last["history"]["turns"].as_array().unwrap().len(), 6, "{last}");
    assert!(last["history"]["summary"].as_str().unwrap().contains("ten percent"), "{last}");
    assert!(last["recalled"][0]["text"].as_str().unwrap().contains("ten percent"), "{last}");
    // Another conversation, and another collection, know nothing of it.
    asked("Who are you?", "grace").await;
    let retrieved = streams.read("EVENTS", "events.documents.retrieved").await;
    let other: Value = serde_json::from_slice(&retrieved.last().unwrap().data).unwrap();
    assert!(other.get("history").is_none() && other.get("recalled").is_none(), "{other}");
}

#[tokio::test]
async fn a_key_of_a_collection_sees_its_own_documents_answers_and_memory_only() {
    let data = tempfile::tempdir().unwrap();
    let settings = data.path().join("nerve-server.toml");
    fs::write(
        &settings,
        "[gateway]\nkeys = [\"operator-operator\"]\n[gateway.collection_keys]\nred = [\"red-red-red-red-red\"]\n\
         Blue = [\"blue-blue-blue-blue\"]\n",
    )
    .unwrap();
    let nerve = Nerve::up_configured(&settings).await;
    nerve.cli().deploy(&checkout().join("functions/rag")).await;
    let client = reqwest::Client::new();
    let call = |method: reqwest::Method, path: &str, key: &str| {
        client.request(method, nerve.url(path)).bearer_auth(key.to_owned()).header("accept", "application/json")
    };
    let (red, blue, operator) = ("red-red-red-red-red", "blue-blue-blue-blue", "operator-operator");
    for (key, said) in [(red, "The red code is seven hundred."), (blue, "The blue code is nine hundred.")] {
        let document = json!({"document": "code", "text": said});
        let posted = call(reqwest::Method::POST, "/v1/documents", key).json(&document).send().await.unwrap();
        assert_eq!(posted.status(), 202, "{}", posted.text().await.unwrap());
    }
    let streams = Streams::connect(&nerve.nats).await;
    streams.reaches("EVENTS", "events.document.indexed", 2, seconds(60)).await;
    let asked = async |key: &str, body: Value| {
        let response = call(reqwest::Method::POST, "/v1/answers", key).json(&body).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    let question = json!({"question": "What is the code?", "conversation": "c"});
    let (status, of_red) = asked(red, question.clone()).await;
    assert_eq!((status, &of_red["answer"]), (200, &json!("The red code is seven hundred.")));
    let (_, of_blue) = asked(blue, question).await;
    assert_eq!(of_blue["answer"], "The blue code is nine hundred.");
    assert_eq!(asked(red, json!({"question": "?", "collection": "Blue"})).await.0, 403);
    let path = format!("/v1/answers/{}", of_red["id"].as_str().unwrap());
    for (key, status) in [(red, 200), (blue, 404), (operator, 200), ("wrong-wrong-wrong-wrong", 401)] {
        assert_eq!(call(reqwest::Method::GET, &path, key).send().await.unwrap().status(), status, "{key}");
    }
    assert_eq!(call(reqwest::Method::DELETE, &path, blue).send().await.unwrap().status(), 404);
    assert_eq!(call(reqwest::Method::GET, "/v1/events", red).send().await.unwrap().status(), 403);
    // The same words of another collection's conversation are not remembered here.
    let (_, again) = asked(blue, json!({"question": "Which?", "conversation": "c"})).await;
    assert!(!again.to_string().contains("seven hundred"), "{again}");
}

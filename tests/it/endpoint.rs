//! A language model behind an endpoint with OpenAI's chat completions: llama.cpp's own server, with a small model.

use crate::{answers::id_of, post_event, problem};
use futures::TryStreamExt;
use nerve_tests::{
    Folder, Nerve, Streams, checkout, eventually,
    openai::{Endpoint, LlamaServer, MODEL, RecordedRequest, Reply},
    seconds,
};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use std::{fs, time::Duration};

const KEY: &str = "sk-thirty-two-bears-and-a-rabbit";
/// Where the function's failed attempts are logged.
const RETRIES: &str = "logs.generate";
const QUESTION: &str = "What do late invoices cost?";
const DOCUMENTS: [(&str, &str); 2] = [
    ("fees", "Late invoices cost ten percent more. A reminder is sent after a week."),
    ("refunds", "Refunds are paid within five days. They go to the account that paid."),
];

/// The project's own pipeline, its generation by the model of this endpoint; it tries again soon.
fn pipeline(endpoint: &str, attempts: u32) -> Folder {
    let text = fs::read_to_string(checkout().join("functions/rag/nerve.toml")).expect("the pipeline's manifest");
    let (before, rest) = text.split_once("[function.generate]").expect("it generates");
    let (_, after) = rest.split_once("\n\n").expect("more follows");
    let generate = format!(
        "[function.generate]\nruntime = \"builtin\"\nuse = \"rag/generate\"\non = [\"events.documents.reranked\"]\n\
         emits = [\"answer.generated\", \"answer.token\", \"answer.citation\"]\nsecrets = [\"LLM_KEY\"]\n\
         with = {{ endpoint = \"{endpoint}\", chat_model = \"{MODEL}\", max_tokens = 64 }}\n\
         retry = {{ attempts = {attempts}, backoff = [\"200ms\"] }}\ntimeout = \"30s\""
    );
    Folder::new(&format!("{before}{generate}\n\n{after}"))
}

/// A pipeline with documents.
struct Asking {
    nerve: Nerve,
    streams: Streams,
}

impl Asking {
    async fn up(key: &str, endpoint: &str, attempts: u32) -> Self {
        let nerve = Nerve::up().await;
        nerve.cli().secret("LLM_KEY", key).await;
        nerve.cli().deploy(pipeline(endpoint, attempts).path()).await;
        let streams = Streams::connect(&nerve.nats).await;
        for (document, text) in DOCUMENTS {
            let uploaded = json!({"document": document, "text": text}).to_string();
            assert_eq!(post_event(&nerve, "document.uploaded", document, &uploaded).await / 100, 2);
        }
        streams.reaches("EVENTS", "events.document.indexed", DOCUMENTS.len(), seconds(60)).await;
        Self { nerve, streams }
    }

    async fn post(&self, prompt: Value) -> Response {
        let request = Client::new().post(self.nerve.url("/v1/answers"));
        let sent = request.header("accept", "application/json").json(&prompt).send().await;
        sent.expect("the gateway answers")
    }

    /// The answer, whole.
    async fn ask(&self, prompt: Value) -> Value {
        let response = self.post(prompt).await;
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        let id = id_of(&response);
        let answer: Value = response.json().await.expect("an answer is JSON");
        assert_eq!(answer["id"], id);
        answer
    }

    /// The same answer as its readers see it: names and data of what is sent, to the end.
    async fn parts(&self, id: impl AsRef<str>) -> Vec<(String, Value)> {
        let response = Client::new().get(self.nerve.url(&format!("/v1/answers/{}", id.as_ref()))).send().await.unwrap();
        parts_of(response).await
    }

    /// What the function's log says of attempts that failed and are tried again, oldest first.
    async fn log(&self) -> Vec<Value> {
        let records = self.streams.read("LOGS", RETRIES).await;
        records.iter().map(|record| serde_json::from_slice(&record.data).unwrap()).collect()
    }

    /// The key is in no stream, nor in what the server writes.
    async fn tells_nobody(&self, key: &str) {
        let described = self.nerve.cli().run(&["describe", "generate"]).await.ok().text();
        let written = format!("{}{}{described}", self.nerve.daemon.stdout(), self.nerve.daemon.stderr());
        assert!(!written.contains(key), "{written}");
        let mut names = self.streams.jetstream.stream_names();
        while let Some(name) = names.try_next().await.unwrap() {
            // Models, as they were deployed.
            if name == "OBJ_artifacts" {
                continue;
            }
            for message in self.streams.read(&name, ">").await {
                let shown = format!("{:?} {}", message.headers, String::from_utf8_lossy(&message.data));
                assert!(!shown.contains(key), "in {name}: {} {shown}", message.subject);
            }
        }
    }
}

/// Names and data of an answer's parts, to its end.
async fn parts_of(response: Response) -> Vec<(String, Value)> {
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.expect("the stream ends with the answer");
    let field = |frame: &str, name: &str| frame.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
    let frames = text.split("\n\n").filter_map(|frame| Some((field(frame, "event: ")?, field(frame, "data: ")?)));
    frames.map(|(name, data)| (name, serde_json::from_str(&data).expect("data is JSON"))).collect()
}

/// The text of the tokens, joined, once it is sure that the answer ends with them.
fn text_of(parts: &[(String, Value)]) -> String {
    let (last, done) = parts.last().expect("a part");
    assert_eq!((last.as_str(), &done["generator"]), ("done", &json!(MODEL)), "{parts:#?}");
    parts.iter().filter(|(name, _)| name == "token").map(|(_, data)| data["text"].as_str().unwrap()).collect()
}

/// The one request that came.
fn only(endpoint: &Endpoint) -> RecordedRequest {
    let asked = endpoint.take_asked();
    assert_eq!(asked.len(), 1, "{asked:#?}");
    asked.into_iter().next().unwrap()
}

fn refuse(status: u16, retry_after: Option<&'static str>, body: &str) -> Reply {
    Reply::Refuse { status, retry_after, body: body.to_owned() }
}

#[tokio::test]
async fn a_model_at_an_endpoint_writes_what_it_would_say_itself() {
    let server = LlamaServer::start(KEY).await;
    let endpoint = Endpoint::before(&server, []).await;
    let asking = Asking::up(KEY, &endpoint.url, 5).await;
    let mut answers = Vec::new();
    for question in [QUESTION, "When are refunds paid?"] {
        let answer = asking.ask(json!({"question": question, "stream": false})).await;
        let asked = only(&endpoint);
        assert_eq!(asked.authorization.as_deref(), Some(format!("Bearer {KEY}").as_str()));
        let last = asked.body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned();
        assert!(last.contains("[1] ") && last.contains("[2] ") && last.ends_with(question), "{last}");
        assert_eq!((&asked.body["temperature"], &asked.body["stream"]), (&json!(0.0), &json!(true)));

        let itself = server.complete(&asked.body).await;
        let choice = &itself["choices"][0];
        assert_eq!(answer["answer"], choice["message"]["content"]);
        assert_eq!((&answer["generator"], &answer["finish"]), (&json!(MODEL), &choice["finish_reason"]));
        for count in ["prompt_tokens", "completion_tokens"] {
            assert_eq!(answer["usage"][count], itself["usage"][count], "{count}");
        }
        assert!(answer["usage"]["completion_tokens"].as_u64() > Some(1), "{answer}");
        assert_eq!(answer["question"], question);

        let parts = asking.parts(answer["id"].as_str().unwrap()).await;
        assert_eq!(answer["answer"], text_of(&parts));
        assert_eq!(parts[0].0, "retrieved");
        let cited: Vec<&Value> = parts.iter().filter(|(name, _)| name == "citation").map(|(_, data)| data).collect();
        assert_eq!(json!(cited), answer["citations"]);
        answers.push(answer["answer"].clone());
    }
    assert_ne!(answers[0], answers[1], "the model reads what it is asked");
    let prompt = json!({"question": QUESTION, "stream": false, "options": {"max_tokens": 3}});
    let short = asking.ask(prompt).await;
    assert_eq!((&short["finish"], &short["usage"]["completion_tokens"]), (&json!("length"), &json!(3)));
    asking.tells_nobody(KEY).await;
}

#[tokio::test]
async fn an_endpoint_that_is_away_is_waited_for() {
    let mut server = LlamaServer::start(KEY).await;
    let asking = Asking::up(KEY, &server.url, 50).await;
    server.kill9();
    let answer = asking.ask(json!({"question": QUESTION, "stream": false}));
    let story = async {
        asking.streams.reaches("LOGS", RETRIES, 2, seconds(60)).await;
        let log = asking.log().await;
        let said = log[0].to_string();
        assert!(said.contains("attempt 1 of 50 failed (next attempt in 200ms)") && said.contains("refused"), "{said}");
        server.restart().await;
    };
    let (answer, ()) = tokio::join!(answer, story);
    assert_eq!(answer["answer"], text_of(&asking.parts(answer["id"].as_str().unwrap()).await));
    assert!(answer["usage"]["completion_tokens"].as_u64() > Some(1), "{answer}");
    assert_eq!(asking.streams.count("DEAD", ">").await, 0);
}

#[tokio::test]
async fn what_an_endpoint_refuses_is_dead_and_its_readers_are_told() {
    let server = LlamaServer::start(KEY).await;
    let endpoint = Endpoint::before(&server, []).await;
    let wrong = "sk-of-somebody-else";
    let asking = Asking::up(wrong, &endpoint.url, 5).await;
    // Some endpoints repeat the key that they refuse.
    let told = format!("{{\"error\": {{\"message\": \"Incorrect API key provided: {wrong}\"}}}}");
    let cases = [
        (Reply::Forward, "401", "Invalid API Key"),
        (refuse(401, None, &told), "401", "Incorrect API key"),
        (refuse(400, None, "no such model"), "400", "no such model"),
        (refuse(404, None, &"ü".repeat(100_000)), "404", "üü"),
    ];
    for (n, (reply, status, said)) in cases.into_iter().enumerate() {
        endpoint.then([reply]);
        let refused = asking.post(json!({"question": QUESTION, "stream": false})).await;
        let id = id_of(&refused);
        let (code, document) = problem(refused).await;
        let detail = document["detail"].as_str().unwrap();
        assert_eq!(code, 502, "{document}");
        for part in ["`generate` failed", status, said] {
            assert!(detail.contains(part), "{part}: {detail}");
        }
        only(&endpoint);
        let parts = asking.parts(id).await;
        let (name, error) = parts.last().unwrap();
        assert_eq!((name.as_str(), &error["function"]), ("error", &json!("generate")), "{parts:?}");
        assert!(error["message"].as_str().unwrap().contains(said), "{error}");
        assert!(parts.iter().all(|(name, _)| name != "token"), "{parts:?}");
        asking.streams.reaches("DEAD", "dead.generate", n + 1, seconds(20)).await;
    }
    asking.tells_nobody(wrong).await;

    // With the right key it is the server itself that refuses a question too long for the model.
    asking.nerve.cli().secret("LLM_KEY", KEY).await;
    eventually("the function has the new key", seconds(20), || async {
        let response = asking.post(json!({"question": QUESTION, "stream": false})).await;
        response.status().is_success().then_some(())
    })
    .await;
    endpoint.take_asked();
    let long = "why ".repeat(5000);
    let (code, document) = problem(asking.post(json!({"question": long, "stream": false})).await).await;
    let detail = document["detail"].as_str().unwrap();
    assert!(code == 502 && detail.contains("400") && detail.contains("exceeds the available context size"), "{detail}");
    only(&endpoint);
    asking.tells_nobody(KEY).await;
}

#[tokio::test]
async fn an_endpoint_that_is_busy_or_failing_is_asked_again() {
    let server = LlamaServer::start(KEY).await;
    let endpoint = Endpoint::before(&server, []).await;
    let asking = Asking::up(KEY, &endpoint.url, 5).await;
    let ask = async |replies: Vec<Reply>| {
        endpoint.then(replies);
        let answer = asking.ask(json!({"question": QUESTION, "stream": false})).await;
        assert_eq!(answer["answer"], text_of(&asking.parts(answer["id"].as_str().unwrap()).await));
        let asked = endpoint.take_asked();
        assert!(asked.iter().all(|one| one.body == asked[0].body), "{asked:#?}");
        asked
    };
    // It says how long to wait: the function's own schedule would be sooner.
    let asked = ask(vec![refuse(429, Some("2"), "slow down")]).await;
    assert_eq!(asked.len(), 2);
    assert!(asked[1].at - asked[0].at >= Duration::from_secs(2), "{:?}", asked[1].at - asked[0].at);
    assert!(asking.log().await[0].to_string().contains("(next attempt in 2s)"));
    // It does not say: soon, within the same attempt.
    let asked = ask(vec![refuse(429, None, ""), refuse(500, None, "oops")]).await;
    assert_eq!((asked.len(), asking.log().await.len()), (3, 1));
    // For longer than that: by the function's schedule.
    let asked = ask((0..4).map(|_| refuse(503, None, "loading")).collect()).await;
    assert_eq!((asked.len(), asking.log().await.len()), (5, 2));
    assert!(asking.log().await[1].to_string().contains("loading"));
    assert_eq!(asking.streams.count("DEAD", ">").await, 0);
    asking.tells_nobody(KEY).await;
}

#[tokio::test]
async fn an_answer_that_was_cut_off_goes_on_and_no_token_is_lost_or_doubled() {
    let server = LlamaServer::start(KEY).await;
    let endpoint = Endpoint::before(&server, []).await;
    let asking = Asking::up(KEY, &endpoint.url, 5).await;
    endpoint.then([Reply::BreakAfter(4), Reply::BreakAfter(2)]);
    // An early reader and a late reader see the same.
    let request = Client::new().post(asking.nerve.url("/v1/answers"));
    let live = request.json(&json!({"question": QUESTION})).send().await.unwrap();
    let id = id_of(&live);
    let live = parts_of(live).await;
    assert_eq!(live, asking.parts(&id).await);

    let asked = endpoint.take_asked();
    assert_eq!(asked.len(), 3, "{asked:#?}");
    let mut written = String::new();
    for (n, one) in asked.iter().enumerate() {
        let messages = one.body["messages"].as_array().unwrap();
        if n > 0 {
            assert_eq!(messages[2], json!({"role": "assistant", "content": written}));
            assert_eq!((messages.len(), &messages[3]["role"]), (4, &json!("user")));
        }
        assert_eq!(one.body["max_tokens"], 64 - written.split_whitespace().count());
        let itself = server.complete(&one.body).await;
        let said = itself["choices"][0]["message"]["content"].as_str().unwrap();
        let pieces = [4, 2, usize::MAX][n];
        written.extend(said.split_inclusive(' ').skip(1).take(pieces).map(|word| format!(" {}", word.trim_end())));
    }
    assert_eq!(text_of(&live), written);
    let answer = &live.last().unwrap().1;
    assert_eq!(answer["answer"], written);
    let tokens = live.iter().filter(|(name, _)| name == "token").count();
    assert_eq!(tokens, written.split_whitespace().count(), "each once");
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() as usize >= tokens, "{answer}");
    assert_eq!(asking.streams.count("DEAD", ">").await, 0);
}

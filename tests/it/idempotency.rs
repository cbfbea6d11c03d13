//! Requests with an `Idempotency-Key`, and answers, of collections apart: past every window, and after a kill.

use crate::{answers::storyteller, problem};
use async_nats::jetstream::kv;
use futures::{StreamExt, TryStreamExt, future::join_all};
use nerve_tests::{Nats, Nerve, Streams, eventually, nerve::Options, seconds};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs};

const OPERATOR: &str = "operator-operator";
const ALPHA: &str = "alpha-alpha-alpha";
const BETA: &str = "beta-beta-beta-beta";

/// `nerve up` with a key for everything and one for each of two collections, and its shortest dedupe window.
struct Tenants {
    nerve: Nerve,
    streams: Streams,
    _folder: tempfile::TempDir,
}

impl Tenants {
    async fn up() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = folder.path().join("nerve-server.toml");
        let keys = format!("[gateway.keys]\nops = \"{OPERATOR}\"\n");
        let collections = format!("[gateway.collection_keys]\nalpha = \"{ALPHA}\"\nbeta = [\"{BETA}\"]\n");
        fs::write(&settings, format!("[streams]\ndedupe_window = \"10s\"\n{keys}{collections}")).unwrap();
        let nerve = Nerve::up_configured(&settings).await;
        nerve.cli().deploy(storyteller().path()).await;
        let streams = Streams::connect(&nerve.nats).await;
        Self { nerve, streams, _folder: folder }
    }

    fn call(&self, method: Method, path: &str, key: &str) -> RequestBuilder {
        Client::new().request(method, self.nerve.url(path)).bearer_auth(key)
    }

    /// Sends a request under an `Idempotency-Key`; its status and body.
    async fn send(&self, route: (Method, &str), caller: &str, key: &str, body: &Value) -> (u16, Value) {
        let request = self.call(route.0, route.1, caller).header("idempotency-key", key).json(body);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn ask(&self, caller: &str, key: &str, body: &Value) -> (u16, Value) {
        eventually("questions are taken", seconds(20), || async {
            let (status, answer) = self.send((Method::POST, "/v1/answers"), caller, key, body).await;
            (status != 503).then_some((status, answer))
        })
        .await
    }

    async fn get(&self, id: &str, caller: &str) -> u16 {
        let request = self.call(Method::GET, &format!("/v1/answers/{id}"), caller);
        request.header("accept", "application/json").send().await.unwrap().status().as_u16()
    }

    /// The owner of this key cannot see, end, retry or rate the answer.
    async fn is_hidden(&self, id: &str, caller: &str) {
        let path = format!("/v1/answers/{id}");
        let feedback = json!({"answer": id, "rating": 1});
        let requests = [
            self.call(Method::GET, &path, caller),
            self.call(Method::DELETE, &path, caller),
            self.call(Method::POST, &format!("{path}/retry"), caller),
            self.call(Method::POST, "/v1/feedback", caller).json(&feedback),
        ];
        for request in requests {
            assert_eq!(problem(request.send().await.unwrap()).await.0, 404);
        }
    }

    async fn event(&self, ty: &str, id: &str, answer: &str, data: &Value) {
        let request = self.call(Method::POST, "/v1/events", OPERATOR).header("ce-specversion", "1.0");
        let request = request.header("ce-type", ty).header("ce-id", id).header("ce-source", "/outside");
        assert_eq!(request.header("ce-correlationid", answer).json(data).send().await.unwrap().status(), 202);
    }
}

/// Takes the receipts out of all records, as if the gateway had been killed before it wrote them.
async fn forget_receipts(streams: &Streams) {
    let records = streams.jetstream.get_key_value("requests").await.unwrap();
    for key in records.keys().await.unwrap().try_collect::<Vec<_>>().await.unwrap() {
        let mut record: Value = serde_json::from_slice(&records.get(&key).await.unwrap().unwrap()).unwrap();
        assert!(record.as_object_mut().unwrap().remove("receipt").is_some(), "{record}");
        records.put(&key, record.to_string().into()).await.unwrap();
    }
}

#[tokio::test]
async fn key_of_one_collection_is_nothing_to_another_past_the_dedupe_window() {
    let tenants = Tenants::up().await;
    let question = json!({"question": "tell", "tokens": 3, "stream": false});
    let (status, of_alpha) = tenants.ask(ALPHA, "key", &question).await;
    assert_eq!(status, 200, "{of_alpha}");
    let (_, of_beta) = tenants.ask(BETA, "key", &question).await;
    assert_ne!(of_beta["id"], of_alpha["id"]);
    let id = of_alpha["id"].as_str().unwrap();
    tenants.is_hidden(id, BETA).await;

    tenants.streams.dedupe_window_passes().await;
    assert_eq!(tenants.ask(ALPHA, "key", &question).await, (200, of_alpha.clone()));
    assert_eq!(tenants.ask(BETA, "key", &question).await, (200, of_beta));
    tenants.is_hidden(id, BETA).await;
    assert_eq!(tenants.streams.count("EVENTS", "events.prompt.received").await, 2);
    let (status, refused) = tenants.ask(ALPHA, "key", &json!({"question": "another", "tokens": 1})).await;
    assert!(status == 422 && refused["detail"].as_str().unwrap().contains("new key"), "{refused}");
    let chat = json!({"messages": [{"role": "user", "content": "tell"}], "stream": true});
    let chat = tenants.call(Method::POST, "/v1/chat/completions", ALPHA).header("idempotency-key", "key").json(&chat);
    let first = chat.send().await.unwrap().chunk().await.unwrap().expect("a chunk");
    let first = String::from_utf8_lossy(&first);
    assert!(first.contains("chatcmpl-") && !first.contains(id), "another route is another request: {first}");
}

#[tokio::test]
async fn answer_that_expired_belongs_to_nobody_else() {
    let tenants = Tenants::up().await;
    let question = json!({"question": "tell", "tokens": 1, "stream": false});
    let (status, answer) = tenants.ask(ALPHA, "key", &question).await;
    assert_eq!(status, 200, "{answer}");
    let id = answer["id"].as_str().unwrap();
    // Parts that others publish to it change nothing.
    let data = json!({"question": "?", "collection": "beta", "documents": []});
    tenants.event("documents.retrieved", "1", id, &data).await;
    tenants.is_hidden(id, BETA).await;
    assert_eq!((tenants.get(id, ALPHA).await, tenants.get(id, OPERATOR).await), (200, 200));

    tenants.streams.stream("ANSWERS").await.purge().await.unwrap();
    tenants.is_hidden(id, ALPHA).await;
    let (status, gone) = tenants.ask(ALPHA, "key", &question).await;
    assert!(status == 410 && gone["detail"].as_str().unwrap().contains("answers_max_age"), "{gone}");
    tenants.event("documents.retrieved", "2", id, &data).await;
    tenants.streams.reaches("ANSWERS", &format!("answers.{id}"), 1, seconds(10)).await;
    for caller in [ALPHA, BETA] {
        tenants.is_hidden(id, caller).await;
    }

    // What was not asked over HTTP has no owner.
    tenants
        .event("prompt.received", "asked", "asked", &json!({"question": "?", "tokens": 1, "collection": "beta"}))
        .await;
    tenants.streams.reaches("EVENTS", "events.answer.generated", 2, seconds(20)).await;
    tenants.is_hidden("asked", BETA).await;
    assert_eq!(tenants.get("asked", OPERATOR).await, 200);
}

#[tokio::test]
async fn key_is_bound_to_its_route_its_caller_and_its_body() {
    let tenants = Tenants::up().await;
    let (upload, delete) = ((Method::POST, "/v1/documents"), (Method::DELETE, "/v1/documents/fees"));
    let document = json!({"document": "fees", "text": "Late invoices cost ten percent."});
    let sent = async |route: &(Method, &str), caller: &str, body: &Value| {
        tenants.send((route.0.clone(), route.1), caller, "key", body).await
    };
    let (status, first) = sent(&upload, ALPHA, &document).await;
    assert_eq!((status, &first["duplicate"]), (202, &json!(false)), "{first}");
    let (status, again) = sent(&upload, ALPHA, &document).await;
    assert_eq!((status, &again["duplicate"], &again["id"]), (202, &json!(true), &first["id"]));
    assert_eq!(again["sequence"], first["sequence"]);
    for (route, caller) in [(&delete, ALPHA), (&upload, BETA)] {
        let (status, other) = sent(route, caller, &document).await;
        assert_eq!((status, &other["duplicate"]), (202, &json!(false)), "{other}");
    }
    assert_eq!(sent(&upload, ALPHA, &json!({"document": "fees", "text": "Nothing."})).await.0, 422);
    assert_eq!(sent(&(Method::DELETE, "/v1/documents/refunds"), ALPHA, &document).await.0, 422);

    // What was refused is bound to nothing: it can be corrected under its key.
    let feedback = (Method::POST, "/v1/feedback");
    assert_eq!(sent(&feedback, ALPHA, &json!({"answer": "nobody-asked", "rating": 1})).await.0, 404);
    let (_, answer) = tenants.ask(ALPHA, "key", &json!({"question": "tell", "tokens": 1, "stream": false})).await;
    let rating = json!({"answer": answer["id"], "rating": 1});
    assert_eq!(sent(&feedback, ALPHA, &rating).await.1["duplicate"], false);
    assert_eq!(sent(&feedback, ALPHA, &rating).await.1["duplicate"], true);
    let metrics = tenants.call(Method::GET, "/metrics", OPERATOR).send().await.unwrap().text().await.unwrap();
    let counted = metrics.lines().find(|line| line.starts_with("nerve_duplicates_total{caller=\"collection/alpha\""));
    let is_counted = |line: &str| line.contains("reason=\"key\"") && line.ends_with(" 2");
    assert!(counted.is_some_and(is_counted), "an upload and a feedback: {metrics}");
    for (ty, count) in [("document.uploaded", 2), ("document.deleted", 1), ("feedback.submitted", 1)] {
        assert_eq!(tenants.streams.count("EVENTS", &format!("events.{ty}")).await, count, "{ty}");
    }
    let wrong = tenants.call(Method::POST, "/v1/documents", ALPHA).header("idempotency-key", "").json(&document);
    assert_eq!(problem(wrong.send().await.unwrap()).await.0, 400);
}

#[tokio::test]
async fn request_without_its_receipt_is_completed_once_past_the_dedupe_window() {
    let tenants = Tenants::up().await;
    let upload = async |key: &str| {
        let document = json!({"document": key, "text": "Late invoices cost ten percent."});
        let (status, receipt) = tenants.send((Method::POST, "/v1/documents"), ALPHA, key, &document).await;
        assert_eq!(status, 202, "{receipt}");
        receipt
    };
    let (stored, lost) = (upload("stored").await, upload("lost").await);
    let question = json!({"question": "tell", "tokens": 2, "stream": false});
    let (_, answer) = tenants.ask(ALPHA, "asked", &question).await;
    forget_receipts(&tenants.streams).await;
    // Killed between the record and the event.
    let events = tenants.streams.stream("EVENTS").await;
    events.delete_message(lost["sequence"].as_u64().unwrap()).await.unwrap();
    tenants.streams.dedupe_window_passes().await;

    let again = upload("stored").await;
    assert_eq!((&again["id"], &again["duplicate"]), (&stored["id"], &json!(true)));
    let again = upload("lost").await;
    assert_eq!((&again["id"], &again["duplicate"]), (&lost["id"], &json!(false)));
    assert_eq!(upload("lost").await["duplicate"], true);
    assert_eq!(tenants.ask(ALPHA, "asked", &question).await, (200, answer));
    assert_eq!(tenants.streams.count("EVENTS", "events.document.uploaded").await, 2);
    assert_eq!(tenants.streams.count("EVENTS", "events.prompt.received").await, 1);
}

#[tokio::test]
async fn requests_under_one_key_store_one_event_through_a_kill_of_the_gateway() {
    const KEYS: usize = 60;
    let nats = Nats::start().await;
    let mut gateway = Nerve::gateway(&nats.url()).await;
    let streams = Streams::connect(&nats.url()).await;
    let upload = async |url: String, n: usize| {
        let document = json!({"document": n.to_string(), "text": "Late invoices cost ten percent."});
        let request = Client::new().post(url).header("idempotency-key", n.to_string()).json(&document);
        let response = request.send().await.ok().filter(|response| response.status() == 202)?;
        response.json::<Value>().await.ok()
    };
    let url = gateway.url("/v1/documents");
    // Each request twice at once, until the gateway is killed among them.
    let uploads = join_all((0..2 * KEYS).map(|n| upload(url.clone(), n / 2)));
    let killed = async {
        streams.reaches("EVENTS", "events.document.uploaded", 5, seconds(20)).await;
        gateway.kill9();
    };
    let (before, ()) = tokio::join!(uploads, killed);
    gateway.restart().await;
    let after: Vec<Value> = futures::stream::iter(0..KEYS)
        .then(|n| upload(gateway.url("/v1/documents"), n))
        .map(|receipt| receipt.expect("it is not stuck"))
        .collect()
        .await;
    let ids: BTreeSet<&str> = after.iter().map(|receipt| receipt["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), KEYS);
    for (n, receipt) in before.iter().enumerate().filter_map(|(n, receipt)| Some((n, receipt.as_ref()?))) {
        assert_eq!(receipt["id"], after[n / 2]["id"]);
    }
    assert_eq!(streams.count("EVENTS", "events.document.uploaded").await, KEYS);
}

#[tokio::test]
async fn key_is_forgotten_after_its_window() {
    let envs = [("NERVE_GATEWAY_IDEMPOTENCY_WINDOW", "10s"), ("NERVE_STREAMS_DEDUPE_WINDOW", "10s")];
    let envs = envs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    let upload = async |text: &str| {
        let document = json!({"document": "fees", "text": text});
        let request = Client::new().post(nerve.url("/v1/documents")).header("idempotency-key", "key");
        request.json(&document).send().await.unwrap().status().as_u16()
    };
    assert_eq!((upload("one").await, upload("another").await), (202, 422));
    let streams = Streams::connect(&nerve.nats).await;
    let records: kv::Store = streams.jetstream.get_key_value("requests").await.unwrap();
    eventually("the record has expired", seconds(30), || async {
        records.keys().await.unwrap().next().await.is_none().then_some(())
    })
    .await;
    assert_eq!(upload("another").await, 202);
}

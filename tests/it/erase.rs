//! `nerve collections erase`: everything of one tenant goes, and nothing of another.

use base64::{Engine, prelude::BASE64_STANDARD};
use futures::StreamExt;
use nerve_tests::{Folder, Nerve, Receiver, Streams, checkout, eventually, guest, receiver::Reply, seconds};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const OPERATOR: &str = "operator-operator";
/// Two tenants: the collection, its key, and a word that stands in all of its data and nowhere else.
const ALPHA: Tenant = Tenant { name: "alpha", key: "alpha-alpha-alpha", word: "zanzibarqx" };
const BETA: Tenant = Tenant { name: "beta", key: "beta-beta-beta-beta", word: "madagaskarqy" };
/// The stream of deployed files, which is large and has nothing of a tenant.
const MODELS: &str = "OBJ_artifacts";
/// Streams that hold data of tenants, the log first.
const DATA: [&str; 4] = ["EVENTS", "ANSWERS", "DEAD", "TIMERS"];

/// Fails on each of its events, and says in its error what the event was about.
const GRUMBLE: &str = "import json, sys\n\
    for line in sys.stdin:\n    \
        call = json.loads(line)\n    \
        error = {'kind': 'retry', 'message': 'no more about ' + call['event']['data']['question']}\n    \
        print(json.dumps({'id': call['id'], 'error': error}), flush=True)\n";

#[derive(Clone, Copy)]
struct Tenant {
    name: &'static str,
    key: &'static str,
    word: &'static str,
}

/// A message as it is in its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    subject: String,
    headers: BTreeMap<String, String>,
    payload: bytes::Bytes,
}

impl Message {
    fn has(&self, word: &str) -> bool {
        let in_payload = self.payload.windows(word.len()).any(|part| part == word.as_bytes());
        in_payload || self.subject.contains(word) || self.headers.values().any(|value| value.contains(word))
    }
}

/// Every message of every stream, by stream and sequence.
type Everything = BTreeMap<(String, u64), Message>;

struct Tenants {
    nerve: Nerve,
    streams: Streams,
    endpoint: Receiver,
    _folder: tempfile::TempDir,
}

impl Tenants {
    /// `nerve up` with the functions of `functions/rag`, one that fails on all that is remembered, and a sink whose endpoint fails.
    async fn up() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = folder.path().join("nerve-server.toml");
        let keys = [ALPHA, BETA].map(|tenant| format!("{} = \"{}\"\n", tenant.name, tenant.key)).concat();
        let settings_text = format!("[gateway.keys]\nops = \"{OPERATOR}\"\n[gateway.collection_keys]\n{keys}");
        fs::write(&settings, settings_text).unwrap();
        let nerve = Nerve::up_configured(&settings).await;
        nerve.cli().deploy(&checkout().join("functions/rag")).await;
        let retry = "retry = { attempts = 2, backoff = [\"100ms\"] }";
        let grumble = guest::python("grumble", "events.memory.updated", "never.made", retry, GRUMBLE);
        nerve.cli().deploy(grumble.path()).await;
        let endpoint = Receiver::start([]).await;
        endpoint.from_now_on(Reply::Status(503));
        let sink = format!(
            "[sink.crm]\nurl = \"{}\"\non = [\"events.answer.generated\"]\nallow = [\"127.0.0.0/8\"]\n\
             retry = {{ attempts = 3, backoff = [\"1h\"] }}\n",
            endpoint.url
        );
        nerve.cli().deploy(Folder::new(&sink).path()).await;
        let streams = Streams::connect(&nerve.nats).await;
        Self { nerve, streams, endpoint, _folder: folder }
    }

    fn call(&self, method: Method, path: &str, key: &str) -> RequestBuilder {
        let request = Client::new().request(method, self.nerve.url(path)).bearer_auth(key);
        request.header("accept", "application/json")
    }

    /// Sends a request under an `Idempotency-Key`, and returns the body of its answer.
    async fn send(&self, tenant: Tenant, path: &str, key: &str, body: Value) -> Value {
        let request = self.call(Method::POST, path, tenant.key).header("idempotency-key", key).json(&body);
        let response = request.send().await.unwrap();
        let status = response.status();
        let answer = response.text().await.unwrap();
        assert!(status.is_success(), "{status} {answer}");
        serde_json::from_str(&answer).unwrap()
    }

    async fn upload(&self, tenant: Tenant, key: &str) -> Value {
        let word = tenant.word;
        let text = format!("The code of {word} is seven hundred.");
        let document = json!({"document": format!("{word}-code"), "text": text, "metadata": {"of": word}});
        self.send(tenant, "/v1/documents", key, document).await
    }

    /// Documents, one of them with a large body and one broken; a conversation of two questions, and feedback.
    async fn fill(&self, tenant: Tenant) {
        let word = tenant.word;
        self.upload(tenant, "code").await;
        let large = json!({"document": format!("{word}-tower"), "text": format!("The tower of {word} is tall."),
                           "metadata": {"filler": "x".repeat(1_300_000), "of": word}});
        self.send(tenant, "/v1/documents", "tower", large).await;
        let broken =
            json!({"document": format!("{word}-broken"), "data": BASE64_STANDARD.encode(vec![0xff; 1_300_000])});
        self.send(tenant, "/v1/documents", "broken", broken).await;
        let indexed = |count: usize| self.streams.reaches("EVENTS", "events.document.indexed", count, seconds(60));
        indexed(if tenant.name == ALPHA.name { 2 } else { 4 }).await;
        for question in ["code", "tower"] {
            let asked = json!({"question": format!("What of the {question} of {word}?"), "conversation": word});
            let answer = self.send(tenant, "/v1/answers", question, asked).await;
            assert!(answer["answer"].as_str().unwrap().contains(word), "{answer}");
            let feedback = json!({"answer": answer["id"], "citation": answer["citations"][0]["chunk"]});
            self.send(tenant, "/v1/feedback", question, feedback).await;
        }
    }

    /// Waits until every function and sink has finished what there is.
    async fn settle(&self) {
        eventually("all that is stored is worked off", seconds(60), || async {
            for stream in ["EVENTS", "DEAD", "TIMERS"] {
                for function in self.streams.functions(stream).await {
                    let info = self.streams.consumer(stream, &function).await?;
                    if info.num_pending > 0 || info.num_ack_pending > 0 {
                        return None;
                    }
                }
            }
            Some(())
        })
        .await;
    }

    /// Every message of every stream as it is now.
    async fn everything(&self) -> Everything {
        let mut found = Everything::new();
        let names: Vec<_> = self.streams.jetstream.stream_names().collect().await;
        for name in names.into_iter().map(|name| name.unwrap()).filter(|name| name != MODELS) {
            let stream = self.streams.stream(&name).await;
            let state = stream.get_info().await.unwrap().state;
            for sequence in state.first_sequence..=state.last_sequence {
                let Ok(raw) = stream.get_raw_message(sequence).await else { continue };
                let headers = raw.headers.iter().filter_map(|(name, values)| {
                    Some((name.to_string().to_ascii_lowercase(), values.last()?.to_string()))
                });
                let headers = headers.collect();
                let message = Message { subject: raw.subject.to_string(), headers, payload: raw.payload };
                found.insert((name.clone(), sequence), message);
            }
        }
        found
    }

    async fn erase(&self, args: &[&str]) -> Value {
        let args = [&["collections", "erase"], args, &["--output", "json"]].concat();
        self.nerve.cli().run(&args).await.ok().json()
    }

    /// The files of the index and of the broker's streams that have the word. The broker overwrites no entries of buckets.
    fn files_with(&self, word: &str) -> Vec<PathBuf> {
        let data = Path::new(self.nerve.data());
        let mut files = [files_with(&data.join("index"), word), files_with(&data.join("jetstream"), word)].concat();
        files.retain(|file| !file.to_string_lossy().contains("/KV_"));
        files
    }
}

fn with(everything: &Everything, word: &str) -> Everything {
    everything
        .iter()
        .filter(|(_, message)| message.has(word))
        .map(|(at, message)| (at.clone(), message.clone()))
        .collect()
}

/// The workflow of a message in [`DATA`].
fn workflow(message: &Message) -> Option<String> {
    ["ce-correlationid", "ce-id"].iter().find_map(|name| message.headers.get(*name)).cloned()
}

/// The workflows of the messages that have the word.
fn workflows(everything: &Everything, word: &str) -> BTreeSet<String> {
    let of_data =
        |(at, message): (&(String, u64), &Message)| (DATA.contains(&at.0.as_str())).then(|| workflow(message));
    with(everything, word).iter().filter_map(of_data).flatten().collect()
}

/// The files below `folder` that have the word, whatever its case.
fn files_with(folder: &Path, word: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.ends_with(MODELS) {
            continue;
        }
        if path.is_dir() {
            files.extend(files_with(&path, word));
        } else if let Ok(content) = fs::read(&path) {
            files.extend(
                content.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word.as_bytes())).then_some(path),
            );
        }
    }
    files
}

fn count(report: &Value, kind: &str) -> u64 {
    report["erased"][kind].as_u64().unwrap_or_else(|| panic!("{kind} is not counted: {report}"))
}

/// What was lost and kept of the streams by an erasure of [`ALPHA`].
fn check_streams(before: &Everything, after: &Everything, report: &Value) {
    assert_eq!(with(after, ALPHA.word).keys().collect::<Vec<_>>(), Vec::<&(String, u64)>::new());
    assert_eq!(with(after, BETA.word), with(before, BETA.word));
    let (alpha, beta) = (workflows(before, ALPHA.word), workflows(before, BETA.word));
    let in_data = |all: &Everything| {
        let data = all.iter().filter(|((stream, _), _)| DATA.contains(&stream.as_str()));
        data.map(|(at, message)| (at.clone(), workflow(message).unwrap_or_default())).collect::<BTreeMap<_, _>>()
    };
    let (before, after) = (in_data(before), in_data(after));
    for (at, workflow) in &before {
        let expected = alpha.contains(workflow) && workflow != "shared";
        let is_gone = !after.contains_key(at);
        assert!(is_gone == expected || workflow == "shared", "{at:?} of {workflow}: gone {is_gone}");
        assert!(!is_gone || workflow == "shared" || !beta.contains(workflow), "{at:?} of {workflow}");
    }
    let gone = |stream: &str| before.keys().filter(|at| at.0 == stream && !after.contains_key(at)).count() as u64;
    for (kind, stream) in
        [("events", "EVENTS"), ("answer_parts", "ANSWERS"), ("dead_letters", "DEAD"), ("delayed", "TIMERS")]
    {
        assert_eq!(count(report, kind), gone(stream), "{kind}: {report}");
        assert!(count(report, kind) > 0, "{kind}: {report}");
    }
}

#[tokio::test]
async fn erased_tenant_is_gone_everywhere_and_the_other_one_is_whole() {
    let tenants = Tenants::up().await;
    tenants.fill(ALPHA).await;
    tenants.fill(BETA).await;
    // A workflow of both: what names neither of them stays.
    let shared = [
        (
            "document.uploaded",
            json!({"document": "s", "text": format!("Shared {}.", ALPHA.word), "collection": "alpha"}),
        ),
        ("document.uploaded", json!({"document": "s", "text": format!("Shared {}.", BETA.word), "collection": "beta"})),
        ("shop.sold", json!({"things": 2})),
    ];
    for (n, (ty, data)) in shared.into_iter().enumerate() {
        let request = tenants.call(Method::POST, "/v1/events", OPERATOR).header("ce-specversion", "1.0");
        let request =
            request.header("ce-type", ty).header("ce-id", format!("shared-{n}")).header("ce-source", "/outside");
        assert_eq!(request.header("ce-correlationid", "shared").json(&data).send().await.unwrap().status(), 202);
    }
    tenants.streams.reaches("EVENTS", "events.document.indexed", 6, seconds(60)).await;
    // For each tenant a broken document, and two answers that are not taken.
    tenants.streams.reaches("DEAD", "dead.>", 6, seconds(60)).await;
    tenants.endpoint.reaches(4, seconds(30)).await;
    tenants.streams.reaches("TIMERS", "timers.wait.>", 4, seconds(30)).await;
    tenants.settle().await;

    let before = tenants.everything().await;
    let holding: BTreeSet<String> = with(&before, ALPHA.word).into_keys().map(|(stream, _)| stream).collect();
    let expected = ["ANSWERS", "DEAD", "EVENTS", "KV_views", "LOGS", "OBJ_bodies", "RUNS", "TIMERS"];
    assert_eq!(holding.into_iter().collect::<Vec<_>>(), expected, "there is nothing to erase otherwise");
    let cli = tenants.nerve.cli();
    assert!(tenants.files_with(ALPHA.word).len() > 6, "{:?}", tenants.files_with(ALPHA.word));
    let refused = cli.run(&["collections", "erase", "alpha"]).await.failed(2);
    assert!(refused.stderr.contains("not a terminal") && refused.stderr.contains("--dry-run"), "{refused:?}");
    let counted = tenants.erase(&["alpha", "--dry-run"]).await;
    for word in [ALPHA.word, BETA.word] {
        assert_eq!(with(&tenants.everything().await, word), with(&before, word), "a dry run changes nothing");
    }

    let erased = tenants.erase(&["alpha", "--yes"]).await;
    assert_eq!((&erased["erased"], &erased["complete"]), (&counted["erased"], &json!(true)));
    let wanted =
        [("documents", 3), ("answers", 2), ("memory", 1), ("delayed", 2), ("dead_letters", 3), ("requests", 7)];
    for (kind, wanted) in wanted {
        assert_eq!(count(&erased, kind), wanted, "{kind}: {erased}");
    }
    assert!(["large_bodies", "chunks", "attempts", "learned"].iter().all(|kind| count(&erased, kind) > 0), "{erased}");
    check_streams(&before, &tenants.everything().await, &erased);
    assert_eq!(tenants.streams.count("EVENTS", "events.shop.sold").await, 1);
    assert_eq!(tenants.files_with(ALPHA.word), Vec::<PathBuf>::new());

    let again = tenants.erase(&["alpha", "--yes"]).await;
    let counts = again["erased"].as_object().unwrap();
    assert!(counts.values().all(|count| *count == 0), "{again}");
    assert_eq!(tenants.streams.count("EVENTS", "events.collection.erased").await, 1);
    works_after_an_erasure(&tenants, &before).await;
}

/// The other tenant goes on as before; the erased one begins anew.
async fn works_after_an_erasure(tenants: &Tenants, before: &Everything) {
    let asked = |word: &str| json!({"question": format!("What of the code of {word}?")});
    let ids = |word: &str| {
        let answers = with(before, word).into_iter().filter(|((stream, _), _)| stream == "ANSWERS");
        let ids: BTreeSet<String> = answers.filter_map(|(_, message)| workflow(&message)).collect();
        assert_eq!(ids.len(), 2, "{ids:?}");
        ids
    };
    for (word, status) in [(ALPHA.word, 404), (BETA.word, 200)] {
        for id in ids(word) {
            let response = tenants.call(Method::GET, &format!("/v1/answers/{id}"), OPERATOR).send().await.unwrap();
            assert_eq!(response.status(), status, "{word}");
        }
    }
    let of_beta = tenants.send(BETA, "/v1/answers", "again", asked(BETA.word)).await;
    assert!(of_beta["answer"].as_str().unwrap().contains(BETA.word), "{of_beta}");
    let of_alpha = tenants.send(ALPHA, "/v1/answers", "nothing", asked("us")).await;
    assert_eq!(of_alpha["answered"], json!(false), "{of_alpha}");
    // The same request under the same key is a new one.
    let receipt = tenants.upload(ALPHA, "code").await;
    assert_eq!(receipt["duplicate"], json!(false), "{receipt}");
    let found = eventually("the document is found again", seconds(30), || async {
        let key = uuid::Uuid::now_v7().to_string();
        let answer = tenants.send(ALPHA, "/v1/answers", &key, asked(ALPHA.word)).await;
        (answer["answered"] == true).then_some(answer)
    });
    assert!(found.await["answer"].as_str().unwrap().contains(ALPHA.word));
}

#[tokio::test]
async fn collection_that_nobody_has_is_erased_as_nothing() {
    let tenants = Tenants::up().await;
    let cli = tenants.nerve.cli();
    eventually("a worker runs the index", seconds(30), || async {
        let counted = cli.run(&["collections", "erase", "nobody", "--dry-run"]).await;
        // Nothing is erased while the documents cannot be: it would be taken for all that there is.
        assert!(
            counted.code == Some(0) || counted.stderr.contains("nothing was erased: start the worker"),
            "{counted:?}"
        );
        (counted.code == Some(0)).then_some(())
    })
    .await;
    let erased = tenants.erase(&["nobody", "--yes"]).await;
    assert!(erased["erased"].as_object().unwrap().values().all(|count| *count == 0), "{erased}");
    assert_eq!(tenants.streams.count("EVENTS", ">").await, 0);
    let shown = cli.run(&["collections", "erase", "nobody", "--dry-run"]).await.ok();
    assert!(shown.stdout.starts_with("would be erased from the collection nobody:\n"), "{shown:?}");
}

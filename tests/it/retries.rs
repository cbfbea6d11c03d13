//! `control.retry_requested`: a failed answer is generated again, and its readers get it.

use crate::{answers::id_of, problem};
use nerve_tests::{Folder, Nerve, Streams, eventually, guest, nerve::Options, seconds};
use reqwest::Client;
use serde_json::{Value, json};
use std::path::Path;

/// Says two words of its answer and fails, or hangs, for as long as a file is there.
fn teller(broken: &Path, how: &str) -> Folder {
    let script = format!(
        r#"
import json, os, sys, time
BROKEN = {broken:?}
for line in sys.stdin:
    call = json.loads(line)
    data = call["event"]["data"]
    if os.path.exists(BROKEN):
        {how}
    token = {{"type": "answer.token", "data": {{"text": "Here."}}}}
    print(json.dumps({{"id": call["id"], "emit": token}}), flush=True)
    whole = {{"type": "answer.generated", "data": {{"question": data["question"], "answer": "Here."}}}}
    print(json.dumps({{"id": call["id"], "events": [whole]}}), flush=True)
"#,
        broken = broken.display().to_string()
    );
    let emits = "answer.token\", \"answer.generated";
    let extra = "timeout = \"60s\"\nretry = { attempts = 1 }";
    guest::python("teller", "events.prompt.received", emits, extra, &script)
}

const FAIL: &str =
    r#"print(json.dumps({"id": call["id"], "error": {"kind": "invalid", "message": "broken"}}), flush=True); continue"#;
const HANG: &str = r#"while os.path.exists(BROKEN): time.sleep(0.1)
        continue"#;

struct FailedAnswers {
    nerve: Nerve,
    streams: Streams,
    folder: tempfile::TempDir,
}

impl FailedAnswers {
    async fn up(how: &str, envs: &[(&str, &str)]) -> Self {
        let envs = envs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("broken"), "").unwrap();
        nerve.cli().deploy(teller(&folder.path().join("broken"), how).path()).await;
        let streams = Streams::connect(&nerve.nats).await;
        Self { nerve, streams, folder }
    }

    fn mend(&self) {
        std::fs::remove_file(self.folder.path().join("broken")).unwrap();
    }

    /// Asks; the answer's id, and how it failed.
    async fn ask(&self) -> (String, u16, Value) {
        let response = eventually("questions are taken", seconds(30), || async {
            let request = Client::new().post(self.nerve.url("/v1/answers"));
            let response = request.json(&json!({"question": "?", "stream": false})).send().await.ok()?;
            (response.status() != 503).then_some(response)
        })
        .await;
        let id = id_of(&response);
        let (status, why) = problem(response).await;
        (id, status, why)
    }

    /// The answer, read anew.
    async fn answer(&self, id: &str) -> Value {
        let request =
            Client::new().get(self.nerve.url(&format!("/v1/answers/{id}"))).header("accept", "application/json");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.json().await.unwrap()
    }

    async fn retry(&self, id: &str) -> reqwest::Response {
        Client::new().post(self.nerve.url(&format!("/v1/answers/{id}/retry"))).send().await.unwrap()
    }

    async fn told(&self, ty: &str, count: usize) -> Value {
        let subject = format!("events.control.{ty}");
        self.streams.reaches("EVENTS", &subject, count, seconds(60)).await;
        serde_json::from_slice(&self.streams.read("EVENTS", &subject).await[count - 1].data).unwrap()
    }
}

#[tokio::test]
async fn an_answer_that_failed_is_tried_again_over_http() {
    let told = FailedAnswers::up(FAIL, &[]).await;
    let (id, status, why) = told.ask().await;
    assert!(status == 502 && why["detail"].as_str().unwrap().contains("broken"), "{why}");
    told.streams.reaches("DEAD", "dead.teller", 1, seconds(20)).await;
    // It fails again, and its readers are told again.
    assert_eq!(told.retry(&id).await.status(), 202);
    assert_eq!(told.told("retried", 1).await["answer"], id);
    told.streams.reaches("DEAD", "dead.teller", 1, seconds(30)).await;
    eventually("it has failed again", seconds(30), || async {
        let request =
            Client::new().get(told.nerve.url(&format!("/v1/answers/{id}"))).header("accept", "application/json");
        (request.send().await.ok()?.status() == 502).then_some(())
    })
    .await;
    told.streams.reaches("DEAD", "dead.teller", 1, seconds(30)).await;
    told.mend();
    assert_eq!(told.retry(&id).await.status(), 202);
    let retried = told.told("retried", 2).await;
    assert_eq!((&retried["answer"], retried["dead_letters"].as_array().unwrap().len()), (&json!(id), 1), "{retried}");
    assert_eq!(told.answer(&id).await["answer"], "Here.");
    assert_eq!(told.streams.count("DEAD", "dead.>").await, 0);

    let (status, why) = problem(told.retry(&id).await).await;
    assert!(status == 409 && why["detail"].as_str().unwrap().contains("is complete"), "{why}");
    assert_eq!(told.retry("nobody-asked").await.status(), 404);
}

#[tokio::test]
async fn a_dead_letter_is_tried_again_by_an_event_and_what_is_not_there_is_refused() {
    let told = FailedAnswers::up(FAIL, &[]).await;
    let (id, status, _) = told.ask().await;
    assert_eq!(status, 502);
    told.streams.reaches("DEAD", "dead.teller", 1, seconds(20)).await;
    let letters = told.nerve.cli().run(&["dlq", "list", "--output", "json"]).await.ok().json();
    let letter = letters.pointer("/0/id").or(letters.pointer("/id")).and_then(Value::as_u64).unwrap();
    told.mend();
    let cli = told.nerve.cli();
    cli.run(&["publish", "control.retry_requested", "--data", &json!({"dead_letter": letter}).to_string()]).await.ok();
    assert_eq!(told.told("retried", 1).await["dead_letters"], json!([letter]));
    assert_eq!(told.answer(&id).await["answer"], "Here.");
    for (data, said) in [
        (json!({"dead_letter": letter}), "does not exist"),
        (json!({"answer": id}), "the answer is complete"),
        (json!({"answer": "nobody-asked"}), "not found or expired"),
    ] {
        let count = told.streams.count("EVENTS", "events.control.retry_refused").await;
        cli.run(&["publish", "control.retry_requested", "--data", &data.to_string()]).await.ok();
        let refused = told.told("retry_refused", count + 1).await;
        assert!(refused["reason"].as_str().unwrap().contains(said), "{refused}");
    }
}

#[tokio::test]
async fn an_answer_that_took_too_long_goes_on_with_its_last_step() {
    let told = FailedAnswers::up(HANG, &[("NERVE_GATEWAY_ANSWER_TIMEOUT", "3s")]).await;
    let (id, status, why) = told.ask().await;
    assert_eq!(status, 504, "{why}");
    assert_eq!(told.told("timeout", 1).await["answer"], id);
    told.mend();
    assert_eq!(told.retry(&id).await.status(), 202);
    let retried = told.told("retried", 1).await;
    assert_eq!((&retried["answer"], &retried["event"]), (&json!(id), &json!(id)), "the question itself: {retried}");
    assert_eq!(told.answer(&id).await["answer"], "Here.");
}

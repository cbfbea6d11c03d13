//! Each step of the default pipeline, replaced by a function that is written from the schema of its output alone.

use crate::post_event;
use nerve_tests::{Folder, Nerve, Streams, checkout, eventually, seconds, streams::Stored};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs};

/// Gives the required fields of an event type, and no others.
const PROGRAM: &str = include_str!("replaced_steps.py");
/// Dimensions of the default embedding model.
const DIMENSIONS: &str = "384";
const QUESTION: &str = "What do late invoices cost?";

/// A step, with the types that it takes and gives.
struct Step {
    name: &'static str,
    takes: &'static str,
    gives: &'static str,
}

const fn step(name: &'static str, takes: &'static str, gives: &'static str) -> Step {
    Step { name, takes, gives }
}

/// The steps of a document, in order.
const INDEXING: [Step; 3] = [
    step("chunk", "document.uploaded", "document.chunked"),
    step("embed", "document.chunked", "embedding.created"),
    step("index", "embedding.created", "document.indexed"),
];
/// The steps of a question, in order.
const ANSWERING: [Step; 6] = [
    step("retrieve", "prompt.received", "documents.retrieved"),
    step("rerank", "documents.retrieved", "documents.reranked"),
    step("generate", "documents.reranked", "answer.generated"),
    step("evaluate", "answer.generated", "answer.evaluated"),
    step("remember", "answer.evaluated", "memory.updated"),
    step("notify", "memory.updated", "notification.sent"),
];

/// Nerve with the default pipeline and one document.
struct Pipeline {
    nerve: Nerve,
    streams: Streams,
    types: Vec<Value>,
    runs: usize,
}

impl Pipeline {
    async fn up() -> Self {
        let nerve = Nerve::up().await;
        nerve.cli().deploy(&checkout().join("functions/rag")).await;
        let streams = Streams::connect(&nerve.nats).await;
        let listed: Value = reqwest::get(nerve.url("/v1/event-types")).await.unwrap().json().await.unwrap();
        let types = listed["event_types"].as_array().unwrap().clone();
        let mut pipeline = Self { nerve, streams, types, runs: 0 };
        pipeline.index().await;
        pipeline
    }

    /// Deploys the program in place of a step.
    async fn replace(&self, step: &Step) {
        let Step { name, takes, gives } = step;
        let known = self.types.iter().find(|known| known["type"] == *gives).unwrap();
        let env = json!({"OUTPUT": gives, "SCHEMA": known["schema"].to_string(), "DIMENSIONS": DIMENSIONS});
        let env = env.as_object().unwrap().iter().map(|(name, value)| format!("{name} = {value}\n"));
        let manifest = format!(
            "[function.{name}]\nruntime = \"process\"\ncommand = [\"python3\", \"step.py\"]\n\
             on = [\"events.{takes}\"]\nemits = [\"{gives}\"]\n[function.{name}.env]\n{}",
            env.collect::<String>()
        );
        self.nerve.cli().deploy(Folder::new(&manifest).with("step.py", PROGRAM).path()).await;
    }

    /// Deploys the built-in function of a step again.
    async fn restore(&self, step: &Step) {
        let pipeline = fs::read_to_string(checkout().join("functions/rag/nerve.toml")).unwrap();
        let table = pipeline.split("\n\n").find(|table| table.starts_with(&format!("[function.{}]", step.name)));
        self.nerve.cli().deploy(Folder::new(table.unwrap()).path()).await;
    }

    /// The event of this type that a run has led to.
    async fn led_to(&self, run: &str, ty: &str) -> Stored {
        eventually(&format!("{run} leads to {ty}"), seconds(20), || async {
            let stored = self.streams.read("EVENTS", &format!("events.{ty}")).await;
            stored.into_iter().find(|event| event.header("ce-correlationid") == run)
        })
        .await
    }

    /// Indexes a document. Returns the run.
    async fn index(&mut self) -> String {
        self.runs += 1;
        let run = format!("document-{}", self.runs);
        let text = "# Fees\n\nLate invoices cost ten percent more. Refunds take one week.";
        let document = json!({"document": "fees.md", "name": "fees.md", "text": text}).to_string();
        assert_eq!(post_event(&self.nerve, "document.uploaded", &run, &document).await / 100, 2);
        self.led_to(&run, "document.indexed").await;
        run
    }

    /// Asks a question over HTTP, which is answered to the end. Returns the run.
    async fn ask(&mut self) -> String {
        let body = json!({"question": QUESTION, "conversation": "ada", "stream": false});
        let response = reqwest::Client::new().post(self.nerve.url("/v1/answers")).json(&body).send().await.unwrap();
        let (status, answer): (_, Value) = (response.status(), response.json().await.unwrap());
        assert!(status == 200 && answer["answer"].is_string(), "{status}: {answer}");
        let run = answer["id"].as_str().unwrap().to_owned();
        self.led_to(&run, "notification.sent").await;
        run
    }

    /// Runs the pipeline until the event of a step has its required fields only, or more.
    async fn run_until(&mut self, step: &Step, is_replaced: bool) {
        let known = self.types.iter().find(|known| known["type"] == step.gives).unwrap();
        let alternatives = known["schema"]["anyOf"][0]["required"].as_array();
        let required = known["schema"]["required"].as_array().into_iter().chain(alternatives).flatten();
        let required: BTreeSet<String> = required.filter_map(Value::as_str).map(str::to_owned).collect();
        let is_document = INDEXING.iter().any(|one| one.name == step.name);
        // The worker starts a new function beside the old one, which may still take an event.
        for _ in 0..50 {
            let run = if is_document { self.index().await } else { self.ask().await };
            let given: Value = serde_json::from_slice(&self.led_to(&run, step.gives).await.data).unwrap();
            let given: BTreeSet<String> = given.as_object().unwrap().keys().cloned().collect();
            if (given == required) == is_replaced {
                return;
            }
        }
        panic!("{} is not deployed", step.name);
    }
}

#[tokio::test]
async fn each_step_is_replaced_by_a_function_that_knows_its_schema() {
    let mut pipeline = Pipeline::up().await;
    for step in INDEXING.iter().chain(&ANSWERING) {
        pipeline.replace(step).await;
        pipeline.run_until(step, true).await;
        let dead = pipeline.streams.read("DEAD", "dead.>").await;
        let dead: Vec<String> = dead.iter().map(|one| format!("{} {:?}", one.subject, one.headers)).collect();
        assert!(dead.is_empty(), "{} is replaced, and an event cannot be read: {dead:#?}", step.name);
        pipeline.restore(step).await;
        pipeline.run_until(step, false).await;
    }
    let run = pipeline.ask().await;
    let answer: Value = serde_json::from_slice(&pipeline.led_to(&run, "answer.generated").await.data).unwrap();
    assert_eq!(answer["answer"], "Late invoices cost ten percent more.", "{answer:#}");
}

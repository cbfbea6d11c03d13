//! `onnx/embed` and `onnx/score`, loaded as by a worker.

use crate::{Rig, cosine, expected};
use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use nerve_core::{
    Context, Deployment, Emission, Event, EventType, Fault, Function, FunctionError, FunctionSpec, Host, LoadError,
    Manifest, Name,
    function::{Emitter, LogSink},
};
use nerve_onnx::OnnxHost;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};

struct NoEmitter;

#[async_trait]
impl Emitter for NoEmitter {
    async fn emit(&self, _: usize, _: Emission) -> Result<(), FunctionError> {
        unreachable!("built-in functions publish at their end")
    }
}

fn spec(table: &str) -> FunctionSpec {
    let text = format!("[function.f]\nruntime = \"builtin\"\non = [\"events.>\"]\nemits = [\"made\"]\n{table}\n");
    Manifest::parse(&text).unwrap().functions.into_values().next().unwrap()
}

async fn load(rig: &Rig, model: &str, table: &str) -> Result<Arc<dyn Function>, LoadError> {
    let deployment = Deployment {
        name: Name::parse("f").unwrap(),
        revision: 1,
        spec: spec(&format!("model = \"{model}\"\n{table}")),
        artifacts: rig.model(model).await.files,
        secrets: BTreeMap::new(),
        logs: LogSink::new(|_| ()),
    };
    OnnxHost::new(rig.onnx.clone()).load(deployment).await
}

fn event(data: &Value) -> Event {
    let data = serde_json::to_vec(data).unwrap();
    let mut event = Event::new("1", "/test", EventType::parse("asked").unwrap()).with_data("application/json", data);
    event.subject = Some("what/it/is/about".into());
    event
}

async fn invoke(function: &Arc<dyn Function>, events: Vec<Event>) -> Vec<Result<Value, FunctionError>> {
    let outcomes =
        function.invoke(events, Context { emitter: Arc::new(NoEmitter), views: None, quotas: Arc::default() }).await;
    let data = |mut emissions: Vec<Emission>| {
        let emission = emissions.pop().unwrap();
        assert_eq!(emission.ty.as_str(), "made");
        assert_eq!(emission.subject.as_deref(), Some("what/it/is/about"));
        serde_json::from_slice(&emission.data).unwrap()
    };
    outcomes.into_iter().map(|outcome| outcome.map(data)).collect()
}

async fn result(function: &Arc<dyn Function>, data: Value) -> Value {
    invoke(function, vec![event(&data)]).await.remove(0).unwrap_or_else(|error| panic!("{data}: {error:?}"))
}

async fn rejection(function: &Arc<dyn Function>, data: Value) -> String {
    let error = invoke(function, vec![event(&data)]).await.remove(0).unwrap_err();
    assert_eq!(error.fault, Fault::Invalid, "{error:?}");
    error.message
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

#[tokio::test]
async fn embed_publishes_one_vector_per_text() {
    let rig = Rig::start();
    let embed = load(&rig, "all-MiniLM-L6-v2", "use = \"onnx/embed\"\nwith = { carry = [\"id\"] }").await.unwrap();
    let one = result(&embed, json!({"id": 7, "text": "a late invoice", "other": true})).await;
    assert_eq!((&one["model"], &one["dimensions"], &one["id"]), (&json!("all-MiniLM-L6-v2"), &json!(384), &json!(7)));
    assert_eq!((&one["tokens"], &one["truncated"]), (&json!(7), &json!(false)));
    assert!(one.get("other").is_none() && numbers(&one["embedding"]).len() == 384);

    let many = result(&embed, json!({"content": ["a late invoice", {"text": "word ".repeat(400)}]})).await;
    let embeddings = many["embeddings"].as_array().unwrap();
    assert!(cosine(&numbers(&embeddings[0]["embedding"]), &numbers(&one["embedding"])) > 0.99999);
    assert_eq!(embeddings[1]["truncated"], true);
    assert_eq!(embeddings[1]["tokens"], 256);

    let mut plain = event(&Value::Null).with_data("text/plain", "a late invoice");
    plain.id = "2".into();
    let plain = invoke(&embed, vec![plain]).await.remove(0).unwrap();
    assert_eq!(plain["embedding"], one["embedding"]);
}

#[tokio::test]
async fn embed_applies_its_options() {
    let rig = Rig::start();
    let table = r#"use = "onnx/embed"
with = { input = "/doc/body", dimensions = 8, precision = "int8", encoding = "base64", on_long = "refuse", prefix = "say: " }"#;
    let embed = load(&rig, "all-MiniLM-L6-v2", table).await.unwrap();
    let one = result(&embed, json!({"doc": {"body": "a late invoice"}})).await;
    assert_eq!(one["dimensions"], 8);
    assert_eq!(BASE64_STANDARD.decode(one["embedding"].as_str().unwrap()).unwrap().len(), 8);
    assert_eq!(one["tokens"], 9, "the prefix is read too");
    assert!(rejection(&embed, json!({"doc": {"body": "word ".repeat(400)}})).await.contains("limit of 256 tokens"));
    assert!(rejection(&embed, json!({"text": "elsewhere"})).await.contains("nothing at /doc/body"));

    let sparse = load(&rig, "splade", "use = \"onnx/embed\"\nwith = { keep = 3 }").await.unwrap();
    let one = result(&sparse, json!({"text": "late order"})).await;
    assert_eq!(one["embedding"]["indices"].as_array().unwrap().len(), 3);
    assert_eq!(one["embedding"]["values"].as_array().unwrap().len(), 3);

    let pooled =
        load(&rig, "pooling-max", "use = \"onnx/embed\"\nwith = { pooling = \"cls\", normalise = true }").await;
    let pooled = result(&pooled.unwrap(), json!({"text": "late order"})).await;
    let cls =
        result(&load(&rig, "pooling-cls", "use = \"onnx/embed\"").await.unwrap(), json!({"text": "late order"})).await;
    assert!(cosine(&numbers(&pooled["embedding"]), &numbers(&cls["embedding"])) > 0.99999);
}

#[tokio::test]
async fn score_ranks_documents_and_labels_texts() {
    let rig = Rig::start();
    let score =
        load(&rig, "cross-encoder", "use = \"onnx/score\"\nwith = { top = 2, carry = [\"query\"] }").await.unwrap();
    let documents = ["coffee", "late order", "river garden"];
    let ranked = result(&score, json!({"query": "late order", "documents": documents})).await;
    let results = ranked["results"].as_array().unwrap();
    assert!(results.len() == 2 && results[0]["score"].as_f64() >= results[1]["score"].as_f64(), "{ranked}");
    assert_eq!(ranked["query"], "late order");
    let index = results[0]["index"].as_u64().unwrap() as usize;
    let single = result(&score, json!({"question": "late order", "document": documents[index]})).await;
    assert_eq!(single["score"], results[0]["score"]);
    assert!(rejection(&score, json!({"documents": documents})).await.contains("none of /query, /question"));

    let classify = load(&rig, "classifier", "use = \"onnx/score\"\nwith = { top = 1 }").await.unwrap();
    let one = result(&classify, json!({"text": "the coffee is very good!"})).await;
    assert_eq!(one["labels"].as_array().unwrap().len(), 1);
    assert_eq!(one["label"], one["labels"][0]["label"]);
    let many = result(&classify, json!(["good", "bad"])).await;
    assert_eq!(many["results"].as_array().unwrap().len(), 2);

    let pairs =
        load(&rig, "classifier", "use = \"onnx/score\"\nwith = { input = \"a\", second = \"b\" }").await.unwrap();
    let pair = result(&pairs, json!({"a": "good", "b": "bad"})).await;
    assert_eq!(pair["tokens"], 5, "{pair}");
}

#[tokio::test]
async fn score_maps_graph_inputs_and_outputs() {
    let rig = Rig::start();
    let table = r#"use = "onnx/score"
[function.f.with]
inputs = { amount = "/order/total", country = "/customer/country" }
outputs = { verdict = "output_label", risk = "output_probability/review" }
carry = ["order"]"#;
    let score = load(&rig, "mixed", table).await.unwrap();
    let one = result(&score, json!({"order": {"total": 319.2}, "customer": {"country": "it"}})).await;
    assert_eq!((&one["verdict"], &one["order"]["total"]), (&json!("review"), &json!(319.2)), "{one}");
    assert!(one["risk"].as_f64().unwrap() > 0.5 && one.get("outputs").is_none(), "{one}");
    assert!(rejection(&score, json!({"order": {"total": 1}})).await.contains("nothing at /customer/country"));

    let plain = load(&rig, "mixed", "use = \"onnx/score\"").await.unwrap();
    let one = result(&plain, json!({"amount": 319.2, "country": "it"})).await;
    assert_eq!((&one["label"], &one["outputs"]["output_label"]), (&json!("review"), &json!("review")), "{one}");
}

#[tokio::test]
async fn failed_event_does_not_fail_its_batch() {
    let rig = Rig::start();
    let embed = load(&rig, "all-MiniLM-L6-v2", "use = \"onnx/embed\"").await.unwrap();
    let good = event(&json!({"text": "a late invoice"}));
    let surrogate = good.clone().with_data("application/json", r#"{"text": "\ud800"}"#);
    let image = good.clone().with_data("image/png", "PNG");
    let number = event(&json!({"text": 7}));
    let outcomes = invoke(&embed, vec![good.clone(), surrogate, image, number, good]).await;
    let faults: Vec<Option<Fault>> = outcomes.iter().map(|one| one.as_ref().err().map(|error| error.fault)).collect();
    assert_eq!(faults, [None, Some(Fault::Invalid), Some(Fault::Invalid), Some(Fault::Invalid), None]);
    assert_eq!(outcomes[0].as_ref().unwrap()["embedding"], outcomes[4].as_ref().unwrap()["embedding"]);
}

#[tokio::test]
async fn slow_model_causes_a_timeout() {
    let rig = Rig::start();
    let embed = load(&rig, "all-MiniLM-L6-v2", "use = \"onnx/embed\"\ntimeout = \"20ms\"").await.unwrap();
    let texts: Vec<String> = (0..500).map(|index| format!("{index} {}", "word ".repeat(250))).collect();
    let error = invoke(&embed, vec![event(&json!({"text": texts}))]).await.remove(0).unwrap_err();
    assert_eq!(error.fault, Fault::Timeout);
    assert!(error.message.contains("20ms"), "{}", error.message);
    // The abandoned jobs left the queue, so the next call returns without delay.
    result(&embed, json!({"text": "a"})).await;
}

#[tokio::test]
async fn unsuitable_options_are_rejected_at_load() {
    let rig = Rig::start();
    for (model, table, expected) in [
        ("all-MiniLM-L6-v2", "use = \"onnx/embed\"\nwith = { dimensions = 500 }", "384"),
        ("all-MiniLM-L6-v2", "use = \"onnx/score\"", "onnx/score does not run a model for embed"),
        (
            "mixed",
            "use = \"onnx/score\"\n[function.f.with]\noutputs = { a = \"output_lable\" }",
            "did you mean `output_label`?",
        ),
    ] {
        let error = load(&rig, model, table).await.err().unwrap();
        assert!(matches!(error, LoadError::Invalid(_)) && error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn functions_and_requests_share_a_model() {
    use nerve_core::{Inference, inference::EmbedRequest};
    let rig = Rig::start();
    let embed = load(&rig, "pooling-cls", "use = \"onnx/embed\"").await.unwrap();
    let texts: Vec<String> = expected::<Value>("pooling-cls")["texts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect();
    let model = rig.model("pooling-cls").await;
    let started = std::time::Instant::now();
    let request = EmbedRequest { texts: texts.clone(), ..EmbedRequest::default() };
    let embeddings = rig.onnx.embed(&model, request).await.unwrap();
    assert!(started.elapsed().as_millis() < 500, "it was in memory");
    let published = result(&embed, json!(texts)).await;
    assert_eq!(published["embeddings"].as_array().unwrap().len(), embeddings.len());
    embed.close().await;
    drop((embed, model));
    rig.close().await;
}

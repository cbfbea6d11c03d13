//! The model routes with a fake model runtime.

use super::*;
use crate::tests::{TestResponse, ask, gateway_of, onnx, request};
use async_trait::async_trait;
use futures::stream::BoxStream;
use http::header;
use nerve_core::{
    ModelName,
    function::Artifact,
    inference::{
        Classification, EmbedRequest, Embedding, GenerateRequest, Label, Piece, Precision, Purpose, Relevance,
        RerankRequest, Sample, Vector,
    },
};
use nerve_registry::{ArtifactRef, Catalogue, Entry, ModelInfo, ModelRecord};
use serde_json::{Value, json};
use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Embeds a text as its length, and fails as the model's name says.
#[derive(Default)]
struct Fake {
    embedded: Mutex<Vec<EmbedRequest>>,
    reranked: Mutex<Vec<RerankRequest>>,
    classified: Mutex<Vec<(Vec<Sample>, bool)>>,
    files: Mutex<Vec<String>>,
    dropped: Arc<AtomicBool>,
}

struct OnDrop(Arc<AtomicBool>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Fake {
    async fn as_named(&self, model: &Model) -> Result<(), InferenceError> {
        *self.files.lock().unwrap() = model.files.iter().map(|file| file.name.clone()).collect();
        let why = || format!("response by {}", model.name);
        match model.name.as_str() {
            "invalid" => Err(InferenceError::Invalid(why())),
            "busy" => Err(InferenceError::Busy(why())),
            "late" => Err(InferenceError::Timeout(why())),
            "unavailable" => Err(InferenceError::Unavailable(why())),
            "failed" => Err(InferenceError::Failed(why())),
            "endless" => {
                let _dropped = OnDrop(Arc::clone(&self.dropped));
                std::future::pending().await
            }
            _ => Ok(()),
        }
    }
}

const BUNDLED: [&str; 7] = ["all-MiniLM-L6-v2", "busy", "endless", "failed", "invalid", "late", "unavailable"];

#[async_trait]
impl Inference for Fake {
    async fn bundled(&self, name: &str) -> Option<Model> {
        BUNDLED.contains(&name).then(|| Model { name: name.to_owned(), files: vec![] })
    }

    fn bundled_names(&self) -> Vec<String> {
        vec![BUNDLED[0].to_owned()]
    }

    async fn embed(&self, model: &Model, request: EmbedRequest) -> Result<Vec<Embedding>, InferenceError> {
        self.as_named(model).await?;
        let embedding = |text: &String| Embedding {
            vector: match request.precision {
                Precision::Int8 => Vector::I8(vec![-1, 2]),
                _ => Vector::F32(vec![0.25, -1.0]),
            },
            tokens: text.chars().count(),
            truncated: text.len() > 8,
        };
        let embeddings = request.texts.iter().map(embedding).collect();
        self.embedded.lock().unwrap().push(request);
        Ok(embeddings)
    }

    async fn rerank(&self, model: &Model, request: RerankRequest) -> Result<Vec<Relevance>, InferenceError> {
        self.as_named(model).await?;
        let length = |text: &String| u16::try_from(text.len()).unwrap();
        let relevance = |text: &String| Relevance { score: f32::from(length(text)) / 8.0, tokens: 2, truncated: false };
        let relevances = request.documents.iter().map(relevance).collect();
        self.reranked.lock().unwrap().push(request);
        Ok(relevances)
    }

    async fn classify(
        &self,
        model: &Model,
        samples: Vec<Sample>,
        raw: bool,
    ) -> Result<Vec<Classification>, InferenceError> {
        self.as_named(model).await?;
        let label = |label: &str, score| Label { label: label.into(), score };
        let one = Classification { labels: vec![label("yes", 0.75), label("no", 0.25)], tokens: 3, truncated: false };
        let classified = vec![one; samples.len()];
        self.classified.lock().unwrap().push((samples, raw));
        Ok(classified)
    }

    async fn generate(
        &self,
        model: &Model,
        _request: GenerateRequest,
    ) -> Result<BoxStream<'static, Result<Piece, InferenceError>>, InferenceError> {
        Err(InferenceError::Invalid(model.name.clone()))
    }
}

fn catalogue(models: &[(&str, &str)]) -> Catalogue {
    let mut catalogue = Catalogue::default();
    for (name, task) in models {
        let name = ModelName::parse(*name).unwrap();
        let file = ArtifactRef { name: "model.onnx".into(), sha256: "abc".into(), size: 1 };
        let description = ModelInfo { task: (*task).into(), ..ModelInfo::default() };
        let record = ModelRecord::new(vec![file], description);
        catalogue.models.insert(name.clone(), Entry { name, revision: 1, record });
    }
    catalogue
}

fn fetched(reference: ArtifactRef) -> Artifact {
    Artifact { name: reference.name, sha256: reference.sha256, file: "/nowhere".into() }
}

fn parts(fake: &Arc<Fake>) -> ModelParts {
    let inference: Arc<dyn Inference> = fake.clone();
    ModelParts {
        inference: Some(inference),
        fetch: Arc::new(|reference| Box::pin(async { Ok(fetched(reference)) })),
        config: onnx(),
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
    }
}

async fn with(fake: &Arc<Fake>, models: &[(&str, &str)]) -> Gateway {
    gateway_of(&[], 10, catalogue(models), Models::new(parts(fake))).await
}

async fn post(gateway: &Gateway, path: &str, body: impl ToString) -> TestResponse {
    ask(gateway, request("POST", path, &[("content-type", "application/json")], body.to_string())).await
}

impl TestResponse {
    fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, 200, "{text}");
        serde_json::from_slice(&self.body).unwrap()
    }
}

#[tokio::test]
async fn embeddings_have_openais_format() {
    let fake = Arc::new(Fake::default());
    let gateway = with(&fake, &[]).await;
    let asked = json!({"model": "sentence-transformers/all-MiniLM-L6-v2", "input": ["abc", "longer than that"],
        "user": "u", "input_type": "query", "dimensions": 2, "whatever": {"else": [1]}});
    let response = post(&gateway, "/v1/embeddings", asked).await.json();
    let expected = json!({"object": "list", "model": "all-MiniLM-L6-v2", "data": [
        {"object": "embedding", "index": 0, "embedding": [0.25, -1.0]},
        {"object": "embedding", "index": 1, "embedding": [0.25, -1.0], "truncated": true},
    ], "usage": {"prompt_tokens": 19, "total_tokens": 19}});
    assert_eq!(response, expected);
    let request = fake.embedded.lock().unwrap().pop().unwrap();
    assert_eq!((request.purpose, request.dimensions), (Some(Purpose::Query), Some(2)));

    let body = r#"{"input": "\ud800\u0000", "encoding_format": "base64", "dimensions": null}"#;
    let response = post(&gateway, "/v1/embeddings", body).await.json();
    assert_eq!(response["data"][0]["embedding"], "AACAPgAAgL8=");
    assert_eq!(fake.embedded.lock().unwrap().pop().unwrap().texts, ["\u{FFFD}\0"]);
    let bytes = json!({"input": "x", "output_dtype": "int8"});
    assert_eq!(post(&gateway, "/v1/embeddings", bytes).await.json()["data"][0]["embedding"], json!([-1, 2]));
}

#[tokio::test]
async fn invalid_input_is_refused_with_the_reason() {
    let fake = Arc::new(Fake::default());
    let models = Models::new(ModelParts {
        config: nerve_config::OnnxConfig { max_inputs: 2, max_body: 1000, ..onnx() },
        ..parts(&fake)
    });
    let gateway = gateway_of(&[], 10, Catalogue::default(), models).await;
    for (body, said) in [
        (r#"{"input": []}"#, "empty"),
        (r#"{"input": ["a", "b", "c"]}"#, "limit of 2"),
        (r#"{"input": [1, 2]}"#, "check_embedding_ctx_length=False"),
        (r#"{"input": "a", "dimensions": 0}"#, "dimensions"),
        (r#"{"input": "a", "encoding_format": "hex"}"#, "hex"),
        (r#"{"input": "a", "output_dtype": "int4"}"#, "int4"),
        (r#"{"model": "x"}"#, "`input` is missing"),
        ("{", "invalid request"),
        ("", "invalid request"),
    ] {
        let detail = post(&gateway, "/v1/embeddings", body).await.openai_error(400);
        assert!(detail.contains(said), "{body}: {detail}");
    }
    post(&gateway, "/v1/embeddings", " ".repeat(2000)).await.openai_error(413);
    assert!(fake.embedded.lock().unwrap().is_empty());
}

#[tokio::test]
async fn each_failure_has_its_status() {
    let fake = Arc::new(Fake::default());
    let gateway = with(&fake, &[("mine", "embed")]).await;
    for (model, status) in [("invalid", 400), ("busy", 429), ("late", 504), ("unavailable", 503), ("failed", 500)] {
        for (path, body) in [
            ("/v1/embeddings", json!({"model": model, "input": "a"})),
            ("/v1/rerank", json!({"model": model, "query": "q", "documents": ["a"]})),
            ("/v1/classify", json!({"model": model, "input": "a"})),
        ] {
            let response = post(&gateway, path, body).await;
            let detail =
                if path == "/v1/embeddings" { response.openai_error(status) } else { response.problem(status) };
            assert_eq!(detail, format!("response by {model}"));
            assert_eq!(response.headers.contains_key(header::RETRY_AFTER), status == 429);
        }
    }
    let unknown = post(&gateway, "/v1/embeddings", json!({"model": "org/other", "input": "a"})).await.openai_error(404);
    for said in ["org/other", "mine", "all-MiniLM-L6-v2", "nerve models add DIR"] {
        assert!(unknown.contains(said), "{unknown}");
    }
    post(&gateway, "/v1/embeddings", json!({"model": "../x/..", "input": "a"})).await.openai_error(404);
}

#[tokio::test]
async fn missing_runtime_is_reported_with_what_to_install() {
    let models = Models::new(ModelParts { inference: None, ..parts(&Arc::default()) });
    let gateway = gateway_of(&[], 10, Catalogue::default(), models).await;
    let detail = post(&gateway, "/v1/embeddings", json!({"input": "a"})).await.openai_error(503);
    assert!(detail.contains("make setup") && detail.contains("NERVE_ONNX_LIBRARY"), "{detail}");
}

#[tokio::test]
async fn slow_model_times_out() {
    let fake = Arc::new(Fake::default());
    let config = nerve_config::OnnxConfig { timeout: Duration::from_millis(20), ..onnx() };
    let gateway = gateway_of(&[], 10, Catalogue::default(), Models::new(ModelParts { config, ..parts(&fake) })).await;
    let detail = post(&gateway, "/v1/embeddings", json!({"model": "endless", "input": "a"})).await.openai_error(504);
    assert!(detail.contains("onnx.timeout"), "{detail}");
    assert!(fake.dropped.load(Ordering::SeqCst));
}

#[tokio::test]
async fn disconnected_client_cancels_its_texts() {
    let fake = Arc::new(Fake::default());
    let gateway = with(&fake, &[]).await;
    let body = json!({"model": "endless", "input": "a"});
    {
        let mut asking = std::pin::pin!(post(&gateway, "/v1/embeddings", body));
        assert!(futures::poll!(&mut asking).is_pending());
        assert!(!fake.dropped.load(Ordering::SeqCst));
    }
    assert!(fake.dropped.load(Ordering::SeqCst));
}

#[tokio::test]
async fn rerank_has_coheres_format() {
    let fake = Arc::new(Fake::default());
    let gateway = with(&fake, &[("ranker", "rerank")]).await;
    let body = r#"{"model": "ranker", "query": "q\udc00", "documents": ["a", {"text": "abcd", "id": 7}, "ab"],
        "top_n": 2, "return_documents": true, "max_chunks_per_doc": 3}"#;
    let response = post(&gateway, "/v1/rerank", body).await.json();
    let results = json!([
        {"index": 1, "relevance_score": 0.5, "document": {"text": "abcd"}},
        {"index": 2, "relevance_score": 0.25, "document": {"text": "ab"}},
    ]);
    assert_eq!((&response["results"], &response["model"]), (&results, &json!("ranker")));
    assert!(response["id"].is_string());
    assert_eq!(response["usage"]["total_tokens"], 6);
    let request = fake.reranked.lock().unwrap().pop().unwrap();
    assert_eq!((request.query.as_str(), request.raw), ("q\u{FFFD}", false));
    for (body, said) in [
        (json!({"model": "ranker", "documents": ["a"]}), "`query` is missing"),
        (json!({"model": "ranker", "query": "q"}), "`documents` is missing"),
        (json!({"model": "ranker", "query": "q", "documents": []}), "empty"),
        (json!({"model": "ranker", "query": "q", "documents": ["a", 1]}), "documents[1]"),
        (json!({"model": "ranker", "query": "q", "documents": ["a"], "texts": ["a"]}), "both"),
        (json!({"model": "ranker", "query": "q", "documents": ["a"], "top_n": 0}), "top_n"),
    ] {
        let detail = post(&gateway, "/v1/rerank", body).await.problem(400);
        assert!(detail.contains(said), "{detail}");
    }
}

#[tokio::test]
async fn rerank_has_the_format_of_text_embeddings_inference() {
    let fake = Arc::new(Fake::default());
    let gateway = with(&fake, &[("ranker", "rerank"), ("other", "embed")]).await;
    let body = json!({"query": "q", "texts": ["a", "abcd"], "raw_scores": true, "return_text": true, "truncate": true});
    let response = post(&gateway, "/v1/rerank", body).await.json();
    assert_eq!(
        response,
        json!([{"index": 1, "score": 0.5, "text": "abcd"}, {"index": 0, "score": 0.125, "text": "a"}])
    );
    assert!(fake.reranked.lock().unwrap().pop().unwrap().raw);
    let plain = post(&gateway, "/v1/rerank", json!({"model": "ranker", "query": "q", "texts": ["a"]})).await.json();
    assert_eq!(plain, json!([{"index": 0, "score": 0.125}]));
    for models in [&[][..], &[("a", "rerank"), ("b", "rerank")][..]] {
        let gateway = with(&fake, models).await;
        let detail = post(&gateway, "/v1/rerank", json!({"query": "q", "texts": ["a"]})).await.problem(400);
        assert!(detail.contains("`model` is missing"), "{detail}");
    }
}

#[tokio::test]
async fn samples_are_classified() {
    let fake = Arc::new(Fake::default());
    let gateway = with(&fake, &[("mine", "classify")]).await;
    let body = json!({"model": "mine", "input": ["a", ["b", "c"], {"x": 1}], "raw_scores": true, "top_k": 1});
    let response = post(&gateway, "/v1/classify", body).await.json();
    assert_eq!(response["usage"], json!({"prompt_tokens": 9, "total_tokens": 9}));
    let first = json!({"index": 0, "label": "yes", "score": 0.75, "labels": [{"label": "yes", "score": 0.75}]});
    assert_eq!(response["data"][0], first);
    let (samples, raw) = fake.classified.lock().unwrap().pop().unwrap();
    assert_eq!((samples.len(), raw), (3, true));
    let features = json!({"model": "mine", "features": [[1, 2], [3, 4]]});
    assert_eq!(post(&gateway, "/v1/classify", features).await.json()["data"].as_array().unwrap().len(), 2);
    for (body, said) in [
        (json!({"input": "a"}), "`model` is missing"),
        (json!({"model": "mine"}), "`input` is missing"),
        (json!({"model": "mine", "input": []}), "empty"),
        (json!({"model": "mine", "input": "a", "features": [1]}), "both"),
        (json!({"model": "mine", "input": "a", "top_k": 0}), "top_k"),
    ] {
        let detail = post(&gateway, "/v1/classify", body).await.problem(400);
        assert!(detail.contains(said), "{detail}");
    }
}

#[tokio::test]
async fn first_requests_share_a_fetch_and_retry_a_failed_one() {
    let fake = Arc::new(Fake::default());
    let fetches = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&fetches);
    let fetch: Fetch = Arc::new(move |reference| {
        let count = counted.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            match count {
                0 => Err(nerve_broker::bus::BusError::unavailable("fetching", "away")),
                _ => Ok(fetched(reference)),
            }
        })
    });
    let models = Models::new(ModelParts { fetch, ..parts(&fake) });
    let gateway = gateway_of(&[], 10, catalogue(&[("mine", "embed")]), models).await;
    let body = json!({"model": "mine", "input": "a"});
    let together = futures::future::join_all((0..3).map(|_| post(&gateway, "/v1/embeddings", &body))).await;
    for response in together {
        assert!(response.openai_error(503).contains("NATS"));
    }
    // The one who began it leaves: it goes on for those who come after.
    let begun = tokio::time::timeout(Duration::from_millis(5), post(&gateway, "/v1/embeddings", &body)).await;
    assert!(begun.is_err());
    post(&gateway, "/v1/embeddings", &body).await.json();
    post(&gateway, "/v1/embeddings", &body).await.json();
    assert_eq!(fetches.load(Ordering::SeqCst), 2);
    assert_eq!(*fake.files.lock().unwrap(), ["model.onnx"]);
}

#[tokio::test]
async fn failed_model_is_fetched_again() {
    let fake = Arc::new(Fake::default());
    let fetches = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&fetches);
    let fetch: Fetch = Arc::new(move |reference| {
        counted.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(fetched(reference)) })
    });
    let models = Models::new(ModelParts { fetch, ..parts(&fake) });
    let gateway = gateway_of(&[], 10, catalogue(&[("failed", "embed")]), models).await;
    for _ in 0..2 {
        post(&gateway, "/v1/embeddings", json!({"model": "failed", "input": "a"})).await.openai_error(500);
    }
    assert_eq!(fetches.load(Ordering::SeqCst), 2);
}

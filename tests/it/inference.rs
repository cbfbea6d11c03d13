//! Models over HTTP, with OpenAI's own client and without.

use nerve_tests::{
    Nerve, eventually,
    models::{fixture, python},
    nerve::Options,
    seconds,
};
use reqwest::{Client, Response};
use serde_json::{Value, json};

async fn post(nerve: &Nerve, path: &str, body: Value) -> Response {
    Client::new().post(nerve.url(path)).json(&body).send().await.unwrap()
}

async fn answered(nerve: &Nerve, path: &str, body: Value) -> Value {
    let response = post(nerve, path, body).await;
    assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
    response.json().await.unwrap()
}

#[tokio::test]
async fn the_official_openai_client_works_unchanged() {
    let nerve = Nerve::up().await;
    let said = python("openai_client.py", &[&nerve.gateway]).await;
    let vector: Vec<f64> = said["vector"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    assert_eq!(vector.len(), 384);
    assert!((vector[0] - 0.06766).abs() < 1e-4 && (vector[4] - 0.03745).abs() < 1e-4, "{:?}", &vector[..5]);
    assert_eq!(said["usage"], json!({"prompt_tokens": 7, "total_tokens": 7}));
    assert_eq!((&said["model"], &said["base64_equals_float"]), (&json!("all-MiniLM-L6-v2"), &json!(true)));
    assert_eq!((&said["indices"], &said["lengths"]), (&json!([0, 1, 2]), &json!([384, 384, 384])));
    assert_eq!((&said["short"], &said["many"]), (&json!(16), &json!(vec![384; 64])));
    let invalid = |status: u16, code: &str| json!([status, "invalid_request_error", code]);
    let errors = [invalid(400, "invalid-request"), invalid(404, "not-found"), invalid(400, "invalid-request")];
    assert_eq!(said["errors"], json!(errors));
}

#[tokio::test]
async fn openai_client_raises_the_exception_of_each_error() {
    let key = "a-key-of-more-than-16-characters";
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    // Each source of 429 would do; that of the queue needs no second caller.
    let envs = vec![variable("NERVE_GATEWAY_KEYS", key), variable("NERVE_ONNX_QUEUE", "8")];
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    let raised = python("openai_errors.py", &[&nerve.gateway, key]).await;
    let expected = json!({
        "no key": ["AuthenticationError", 401, "authentication_error", "unauthenticated"],
        "no input": ["BadRequestError", 400, "invalid_request_error", "invalid-request"],
        "no JSON": ["BadRequestError", 400, "invalid_request_error", "invalid-json"],
        "no model": ["NotFoundError", 404, "invalid_request_error", "not-found"],
        "too large": ["APIStatusError", 413, "invalid_request_error", "body-too-large"],
        "full queue": ["RateLimitError", 429, "rate_limit_error", "rate-limited"],
        "no pipeline": ["InternalServerError", 503, "server_error", "not-deployed"],
    });
    assert_eq!(raised, expected);
}

#[tokio::test]
async fn documents_are_reranked_and_samples_classified() {
    let nerve = Nerve::up().await;
    for model in ["cross-encoder", "classifier", "iris"] {
        nerve.cli().run(&["models", "add", &fixture(model).display().to_string()]).await.ok();
    }
    eventually("the gateway knows them", seconds(10), || async {
        let body = json!({"model": "iris", "features": [1, 2, 3, 4]});
        (post(&nerve, "/v1/classify", body).await.status() == 200).then_some(())
    })
    .await;
    // The only model that can do it need not be named.
    let body =
        json!({"query": "late order", "documents": ["coffee", {"text": "late order"}], "return_documents": true});
    let ranked = answered(&nerve, "/v1/rerank", body).await;
    let results = ranked["results"].as_array().unwrap();
    assert!(results[0]["relevance_score"].as_f64() >= results[1]["relevance_score"].as_f64(), "{ranked}");
    let tei = answered(&nerve, "/v1/rerank", json!({"query": "late order", "texts": ["coffee", "late order"]})).await;
    assert!(tei[0]["score"].is_number() || tei["results"].is_array(), "{tei}");
    let labeled = answered(&nerve, "/v1/classify", json!({"model": "classifier", "input": ["good", "bad"]})).await;
    assert_eq!(labeled["data"].as_array().unwrap().len(), 2, "{labeled}");
    let iris =
        answered(&nerve, "/v1/classify", json!({"model": "iris", "features": [[1, 2, 3, 4], [0, 0, 0, 0]]})).await;
    assert_eq!(iris["data"][1]["index"], 1, "{iris}");
    let wrong = post(&nerve, "/v1/classify", json!({"model": "iris", "features": [[1, 2]]})).await;
    let (status, problem) = crate::problem(wrong).await;
    assert!(status == 400 && problem["detail"].as_str().unwrap().contains("[any, 4]"), "{problem}");
    let wrong = post(&nerve, "/v1/embeddings", json!({"model": "iris", "input": "a"})).await;
    let (status, message) = crate::openai_error(wrong).await;
    assert!(status == 400 && message.contains("iris"), "{message}");
}

#[tokio::test]
async fn what_is_too_much_is_429_and_too_long_is_cut_and_too_late_is_504() {
    let envs = [("NERVE_ONNX_QUEUE", "8"), ("NERVE_ONNX_TIMEOUT", "3s")];
    let envs = envs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    let poison = answered(&nerve, "/v1/embeddings", json!({"input": ["word ".repeat(2_000_000), "a"]})).await;
    assert_eq!((&poison["data"][0]["truncated"], &poison["data"][1]["truncated"]), (&json!(true), &Value::Null));
    let long: Vec<String> = (0..2000).map(|index| format!("{index} {}", "word ".repeat(250))).collect();
    let busy = post(&nerve, "/v1/embeddings", json!({"input": long}));
    let refused = async {
        loop {
            let answer = post(&nerve, "/v1/embeddings", json!({"input": "a"})).await;
            if answer.status() == 429 {
                return answer;
            }
        }
    };
    let (late, refused) = tokio::join!(busy, refused);
    assert_eq!(refused.headers()["retry-after"], "1");
    let (_, message) = crate::openai_error(refused).await;
    assert!(message.contains("8 texts are queued"), "{message}");
    assert_eq!(crate::openai_error(late).await.0, 504);
    eventually("what nobody waits for is out of the way", seconds(1), || async {
        (post(&nerve, "/v1/embeddings", json!({"input": "a"})).await.status() == 200).then_some(())
    })
    .await;
}

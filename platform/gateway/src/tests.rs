//! The gateway as clients see it, without NATS: refusals, and responses while JetStream is unavailable.

use crate::{
    Checks, Gateway, ModelParts, Models, Parts, Spool,
    api::auth::Caller,
    http::{
        middleware::with_middleware,
        problem::{self, ProblemType},
    },
};
use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use hmac::{Hmac, Mac};
use http::{Request, header};
use nerve_broker::bus::Bus;
use nerve_config::GatewayConfig;
use nerve_core::{
    FunctionSpec, Name, RetryPolicy, SourceSpec,
    function::Secret,
    manifest::{Batch, Provider, RuntimeSpec},
};
use nerve_registry::{Catalogue, CatalogueSecret, Entry, FunctionRecord, SourceRecord};
use serde_json::Value;
use sha2::Sha256;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

const SECRET: &str = "It's a Secret to Everybody";
pub(crate) const KEY: &str = "a-key-of-the-api";
const LIMIT: usize = 1000;

fn source(secrets: &[&str]) -> SourceSpec {
    SourceSpec { secrets: secrets.iter().map(|name| (*name).to_owned()).collect(), ..SourceSpec::new(Provider::Github) }
}

fn function() -> FunctionSpec {
    FunctionSpec {
        run: RuntimeSpec::Http { url: "http://127.0.0.1:9".into() },
        on: vec![],
        stream: None,
        emits: vec![],
        concurrency: 1,
        batch: Batch { size: 1, wait: Duration::ZERO },
        timeout: Duration::from_secs(1),
        memory: 0,
        retry: RetryPolicy { attempts: 1, backoff: vec![] },
        env: BTreeMap::from([("TOKEN".to_owned(), "do-not-tell".to_owned())]),
        secrets: vec![],
        tool: None,
    }
}

fn catalogue() -> Catalogue {
    let deployed_at = OffsetDateTime::UNIX_EPOCH;
    let source = |name: &str, spec| {
        let name = Name::parse(name).unwrap();
        (name.clone(), Entry { name, revision: 1, record: SourceRecord { spec: Arc::new(spec), deployed_at } })
    };
    let name = Name::parse("count").unwrap();
    let record = FunctionRecord { spec: function(), artifacts: vec![], stream: "EVENTS".into(), deployed_at };
    let open = |value: &str| CatalogueSecret { revision: 1, value: Some(Secret::new(value)), encrypted: None };
    Catalogue {
        functions: BTreeMap::from([(name.clone(), Entry { name, revision: 1, record })]),
        sources: BTreeMap::from([source("github", source_of_github()), source("keyless", self::source(&["MISSING"]))]),
        secrets: BTreeMap::from([("GITHUB".to_owned(), open(SECRET))]),
        ..Catalogue::default()
    }
}

fn source_of_github() -> SourceSpec {
    source(&["GITHUB"])
}

pub(crate) async fn gateway(keys: &[&str], max_requests: usize) -> Gateway {
    gateway_of(keys, max_requests, catalogue(), no_models()).await
}

pub(crate) fn onnx() -> nerve_config::OnnxConfig {
    nerve_config::Config::load(None, []).unwrap().onnx
}

fn no_models() -> Models {
    Models::new(ModelParts {
        inference: None,
        fetch: Arc::new(|_| unreachable!("nothing is fetched")),
        config: onnx(),
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
    })
}

pub(crate) async fn gateway_of(keys: &[&str], max_requests: usize, catalogue: Catalogue, models: Models) -> Gateway {
    let (sender, catalogue) = watch::channel(Arc::new(catalogue));
    // The catalogue outlives its follower, as while NATS is unavailable.
    drop(sender);
    let config = GatewayConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        tls_cert: None,
        tls_key: None,
        trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()],
        keys: BTreeMap::from([(String::new(), keys.iter().map(|key| Secret::new(*key)).collect())]),
        max_hook_body: LIMIT,
        max_api_body: LIMIT,
        max_document: LIMIT,
        max_requests,
        max_streams: 1,
        threads: 1,
        local_users: nerve_config::LocalUsers::Own,
        collection_keys: BTreeMap::new(),
        spool_max_bytes: 1 << 20,
        answer_timeout: Duration::from_secs(60),
        idempotency_window: Duration::from_secs(60),
    };
    let bus = Bus::disconnected().await.unwrap();
    Gateway::new(Parts {
        batches: nerve_broker::bus::FastPublisher::for_tests(&bus),
        bus,
        dedupe_store: nerve_broker::bus::DedupeStore::for_tests(),
        spool: Spool::open(std::path::Path::new("/nowhere/spool"), 1 << 20, &TaskTracker::new()).await.unwrap(),
        catalogue,
        config,
        metrics: metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle(),
        models,
        checks: Checks::none(),
        shutdown: CancellationToken::new(),
    })
}

pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let builder = Request::builder().method(method).uri(path).header(header::HOST, "127.0.0.1:8080");
    let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
    builder.body(body.into()).unwrap()
}

fn signed(body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    format!("sha256={}", HEXLOWER.encode(&mac.finalize().into_bytes()))
}

fn hook(source: &str, signature: Option<&str>, body: &str) -> Request<Body> {
    let mut headers =
        vec![("content-type", "application/json"), ("x-github-event", "push"), ("x-github-delivery", "1")];
    headers.extend(signature.map(|signature| ("x-hub-signature-256", signature)));
    request("POST", &format!("/hooks/{source}"), &headers, body.to_owned())
}

pub(crate) struct TestResponse {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
}

pub(crate) async fn ask(gateway: &Gateway, request: Request<Body>) -> TestResponse {
    let (parts, body) = gateway.router().oneshot(request).await.unwrap().into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    TestResponse { status: parts.status.as_u16(), headers: parts.headers, body }
}

impl TestResponse {
    /// The explanation; only a whole problem document has one.
    pub(crate) fn problem(&self, status: u16) -> String {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{text}");
        assert_eq!(self.headers[header::CONTENT_TYPE], problem::MEDIA_TYPE, "{text}");
        let document: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(document["status"], status);
        let ty = ProblemType::ALL.iter().find(|ty| document["type"] == ty.uri()).unwrap();
        assert!(ty.status() == status && document["title"] == ty.title(), "{document}");
        assert_eq!(self.headers.contains_key(header::RETRY_AFTER), ty.has_retry_after(), "{document}");
        document["detail"].as_str().unwrap().to_owned()
    }

    /// The message of an error of a route that OpenAI's clients use.
    pub(crate) fn openai_error(&self, status: u16) -> String {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{text}");
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/json", "{text}");
        let document: Value = serde_json::from_slice(&self.body).unwrap();
        let error = &document["error"];
        let ty = ProblemType::ALL.iter().find(|ty| error["code"] == ty.name()).unwrap();
        assert!(ty.status() == status && error["type"] == ty.openai_type() && error["param"].is_null(), "{text}");
        error["message"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn unknown_path_gets_a_problem_document() {
    let gateway = gateway(&[], 10).await;
    ask(&gateway, request("GET", "/nowhere", &[], "")).await.problem(404);
    let wrong_method = ask(&gateway, request("GET", "/hooks/github", &[], "")).await;
    wrong_method.problem(405);
    assert_eq!(wrong_method.headers[header::ALLOW], "POST");
    ask(&gateway, request("POST", "/hooks/%FF", &[], "")).await.problem(400);
    assert_eq!(ask(&gateway, request("GET", "/", &[], "")).await.status, 200);
}

#[tokio::test]
async fn webhook_is_refused_with_the_status_of_the_reason() {
    let gateway = gateway(&[KEY], 10).await;
    let wrong = ask(&gateway, hook("github", Some(&signed("[]")), "{}")).await.problem(401);
    let none = ask(&gateway, hook("github", None, "{}")).await.problem(401);
    assert_eq!(wrong, none, "every invalid signature gets the same response");
    assert!(ask(&gateway, hook("gitlab", None, "{}")).await.problem(404).contains("gitlab"));
    ask(&gateway, hook("No-Name", None, "{}")).await.problem(404);
    let long = " ".repeat(LIMIT + 1);
    assert!(ask(&gateway, hook("github", Some(&signed(&long)), &long)).await.problem(413).contains("1000"));
    ask(&gateway, hook("github", Some(&signed("{")), "{")).await.problem(400);
}

#[tokio::test]
async fn valid_webhook_gets_503_while_jetstream_is_unavailable() {
    let gateway = gateway(&[], 10).await;
    let response = ask(&gateway, hook("github", Some(&signed("{}")), "{}")).await;
    response.problem(503);
    assert_eq!(response.headers[header::RETRY_AFTER], "5");
}

#[tokio::test]
async fn source_without_its_secret_gets_503_without_details() {
    let gateway = gateway(&[], 10).await;
    let response = ask(&gateway, hook("keyless", Some(&signed("{}")), "{}")).await;
    let detail = response.problem(503);
    assert!(response.headers.contains_key(header::RETRY_AFTER) && !detail.contains("MISSING"), "{detail}");
}

#[tokio::test]
async fn api_requires_a_key_if_keys_are_configured() {
    let gateway = gateway(&[KEY], 10).await;
    for (method, path) in [
        ("GET", "/v1/functions"),
        ("POST", "/v1/events"),
        ("GET", "/v1/events"),
        ("POST", "/v1/functions/count/invoke"),
        ("POST", "/v1/rerank"),
        ("POST", "/v1/classify"),
        ("GET", "/metrics"),
    ] {
        let response = ask(&gateway, request(method, path, &[], "")).await;
        response.problem(401);
        assert_eq!(response.headers[header::WWW_AUTHENTICATE], "Bearer", "{path}");
    }
    for path in ["/v1/embeddings", "/v1/chat/completions"] {
        let response = ask(&gateway, request("POST", path, &[], "")).await;
        assert!(response.openai_error(401).contains("gateway.keys"), "{path}");
        assert_eq!(response.headers[header::WWW_AUTHENTICATE], "Bearer", "{path}");
        let keyed = request("GET", path, &[("authorization", &format!("Bearer {KEY}"))], "");
        ask(&gateway, keyed).await.openai_error(405);
    }
    for path in ["/v1/functions", "/metrics"] {
        let keyed = request("GET", path, &[("authorization", &format!("Bearer {KEY}"))], "");
        assert_eq!(ask(&gateway, keyed).await.status, 200, "{path}");
    }
    assert_eq!(ask(&gateway, request("GET", "/healthz", &[], "")).await.status, 200);
}

#[tokio::test]
async fn type_of_a_problem_is_the_path_of_its_documentation() {
    let gateway = gateway(&[KEY], 10).await;
    for ty in ProblemType::ALL {
        let response = ask(&gateway, request("GET", ty.uri(), &[], "")).await;
        let documentation: Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!((response.status, &documentation["type"]), (200, &ty.uri().into()));
        assert_eq!(documentation["documentation"], ty.documentation());
    }
    let response = ask(&gateway, request("GET", "/problems", &[], "")).await;
    let listed: Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(listed["problems"].as_array().unwrap().len(), ProblemType::ALL.len());
    ask(&gateway, request("GET", "/problems/none", &[], "")).await.problem(404);
}

#[tokio::test]
async fn rebound_host_name_is_refused_without_keys() {
    let gateway = gateway(&[], 10).await;
    let mut rebound = request("GET", "/v1/functions", &[], "");
    rebound.headers_mut().insert(header::HOST, "evil.example".parse().unwrap());
    ask(&gateway, rebound).await.problem(403);
}

#[tokio::test]
async fn events_are_refused_or_get_503() {
    let gateway = gateway(&[], 10).await;
    let post =
        |content_type: &str, body: String| request("POST", "/v1/events", &[("content-type", content_type)], body);
    let plain = ask(&gateway, post("application/json", "{}".into())).await.problem(400);
    assert!(plain.contains("ce-specversion"), "{plain}");
    let event = r#"{"specversion":"1.0","id":"1","source":"/s","type":"a.b"}"#;
    let away = ask(&gateway, post("application/cloudevents+json", event.into())).await;
    assert!(away.problem(503).contains("same id") && away.headers.contains_key(header::RETRY_AFTER));
    ask(&gateway, post("application/cloudevents-batch+json", format!("[{event}]"))).await.problem(503);
    ask(&gateway, post("application/cloudevents+json", " ".repeat(LIMIT + 1))).await.problem(413);
}

#[tokio::test]
async fn invalid_tail_is_refused_and_releases_its_slot() {
    let gateway = gateway(&[], 10).await;
    for query in ["subject=github.push", "from=yesterday", "colour=red", "last_event_id=x"] {
        ask(&gateway, request("GET", &format!("/v1/events?{query}"), &[], "")).await.problem(400);
    }
    for _ in 0..3 {
        assert!(ask(&gateway, request("GET", "/v1/events", &[], "")).await.problem(503).contains("NATS"));
    }
    let _slot = gateway.stream_slot(&Caller::Any(String::new())).unwrap();
    let full = ask(&gateway, request("GET", "/v1/events", &[], "")).await;
    assert!(full.problem(503).contains("max_streams") && full.headers.contains_key(header::RETRY_AFTER));
}

#[tokio::test]
async fn functions_are_listed_without_their_environment() {
    let gateway = gateway(&[], 10).await;
    let response = ask(&gateway, request("GET", "/v1/functions", &[], "")).await;
    let listed: Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(listed["functions"][0]["name"], "count");
    assert_eq!(listed["functions"][0]["runtime"], "http");
    assert!(!String::from_utf8_lossy(&response.body).contains("do-not-tell"));
    ask(&gateway, request("POST", "/v1/functions/other/invoke", &[], "")).await.problem(404);
    ask(&gateway, request("POST", "/v1/functions/count/invoke", &[], "")).await.problem(503);
    ask(&gateway, request("POST", "/v1/functions/count/invoke", &[], "{")).await.problem(400);
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let gateway = gateway(&[], 10).await;
    let response = ask(&gateway, request("GET", "/readyz", &[], "")).await;
    assert_eq!(response.status, 503);
    let document: Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(document["ready"], false);
    assert_eq!(document["checks"][0]["name"], "nats");
    assert_eq!(document["checks"][1]["ok"], false);
}

#[tokio::test]
async fn panic_fails_one_request() {
    async fn broken() {
        panic!("for this test");
    }
    let gateway = gateway(&[], 10).await;
    let router = with_middleware(&gateway, Router::new().route("/broken", get(broken)));
    let response = router.oneshot(request("GET", "/broken", &[], "")).await.unwrap();
    assert_eq!(response.status(), 500);
    assert_eq!(response.headers()[header::CONTENT_TYPE], problem::MEDIA_TYPE);
}

#[tokio::test]
async fn requests_over_the_limit_are_shed_after_incomplete_ones() {
    let gateway = gateway(&[], 1).await;
    let endless = Body::from_stream(futures::stream::pending::<Result<Bytes, std::convert::Infallible>>());
    let mut held = std::pin::pin!(ask(&gateway, request("POST", "/v1/events", &[], endless)));
    assert!(futures::poll!(&mut held).is_pending());
    assert_eq!(ask(&gateway, request("GET", "/v1/functions", &[], "")).await.status, 200);
    let evicted = held.await;
    assert!(evicted.problem(503).contains("max_requests"));
    assert_eq!(evicted.headers[header::RETRY_AFTER], "1");
    assert_eq!(evicted.headers[header::CONNECTION], "close");
    let active = gateway.shared().requests.try_acquire().unwrap();
    assert!(active.activate());
    let shed = ask(&gateway, request("GET", "/v1/functions", &[], "")).await;
    assert!(shed.problem(503).contains("max_requests"));
    assert_eq!(ask(&gateway, request("GET", "/healthz", &[], "")).await.status, 200);
}

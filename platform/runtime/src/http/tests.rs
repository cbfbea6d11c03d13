use super::*;
use axum::{Router, http::Response as Reply, routing::post};
use nerve_core::{
    EventType, FunctionSpec, Name, RetryPolicy,
    function::{Emitter, LogSink},
    manifest::Batch,
};

struct Nobody;

#[async_trait]
impl Emitter for Nobody {
    async fn emit(&self, _: usize, _: Emission) -> Result<(), FunctionError> {
        panic!("a service has no way to emit before it answers");
    }
}

/// What the service does with the text it is sent.
async fn service(headers: axum::http::HeaderMap, body: String) -> Reply<String> {
    let reply = Reply::builder();
    let event = |ty: &str| format!(r#"{{"specversion":"1.0","id":"x","source":"/x","type":"{ty}","data":1}}"#);
    let reply = match body.as_str() {
        "nothing" => reply.status(204).body(String::new()),
        "structured" => reply.header("content-type", STRUCTURED_MEDIA_TYPE).body(event("a.b")),
        "batch" => reply.header("content-type", BATCH_MEDIA_TYPE).body(format!("[{},{}]", event("a"), event("b"))),
        "later" => reply.status(429).header("retry-after", "7").body("slow down".to_owned()),
        "broken" => reply.status(500).body(String::new()),
        "wrong" => reply.status(422).body("x".repeat(1000)),
        "moved" => reply.status(302).header("location", "/elsewhere").body(String::new()),
        "text" => reply.body("not an event".to_owned()),
        "untyped" => {
            reply.header("ce-id", "x").header("ce-source", "/x").header("ce-specversion", "1.0").body(String::new())
        }
        "hollow" => reply.header("content-type", STRUCTURED_MEDIA_TYPE).body(String::new()),
        "umlaut" => reply.header("ce-type", "a").header("ce-subject", "\u{fc}").body(String::new()),
        "json" => reply.header("content-type", "application/json").body(r#"{"type":"a","payload":{}}"#.to_owned()),
        "long" => reply.header("ce-type", "a").body("x".repeat(MAX_RESPONSE_BYTES + 1)),
        "slow" => {
            tokio::time::sleep(Duration::from_secs(30)).await;
            reply.body(String::new())
        }
        // The echo shows what was sent.
        _ => reply
            .header("ce-type", format!("seen.{}", headers["ce-type"].to_str().unwrap()))
            .header("ce-partitionkey", headers["ce-partitionkey"].clone())
            .header("content-type", headers["content-type"].clone())
            .body(body),
    };
    reply.unwrap()
}

fn deployment(url: String) -> Deployment {
    Deployment {
        name: Name::parse("it").unwrap(),
        revision: 1,
        spec: FunctionSpec {
            run: RuntimeSpec::Http { url },
            on: vec![],
            stream: None,
            emits: vec![],
            concurrency: 4,
            batch: Batch { size: 1, wait: Duration::ZERO },
            timeout: Duration::from_millis(500),
            memory: 0,
            retry: RetryPolicy::default(),
            env: [].into(),
            secrets: vec![],
            tool: None,
        },
        artifacts: vec![],
        secrets: [].into(),
        logs: LogSink::new(|_| {}),
    }
}

async fn outcomes(url: String, words: &[&str]) -> Vec<Outcome> {
    let function = HttpHost::new().unwrap().load(deployment(url)).await.unwrap();
    let event = |word: &&str| {
        Event::new("1 ü", "/test", EventType::parse("t").unwrap())
            .with_data("text/plain", (*word).to_owned())
            .with_extension(PARTITION_KEY, "k")
    };
    function
        .invoke(
            words.iter().map(event).collect(),
            Context { emitter: Arc::new(Nobody), views: None, quotas: Arc::default() },
        )
        .await
}

async fn asked(words: &[&str]) -> Vec<Outcome> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = axum::serve(listener, Router::new().route("/", post(service)));
    tokio::select! {
        outcomes = outcomes(url, words) => outcomes,
        _ = server.into_future() => panic!("the service ended"),
    }
}

#[tokio::test]
async fn an_answer_in_each_mode_is_published() {
    let outcomes = asked(&["hello", "structured", "batch", "nothing"]).await;
    let outcomes: Vec<Vec<Emission>> = outcomes.into_iter().map(Result::unwrap).collect();
    let types = |index: usize| outcomes[index].iter().map(|one| one.ty.as_str()).collect::<Vec<_>>();
    assert_eq!(types(0), ["seen.t"]);
    let echoed = &outcomes[0][0];
    assert_eq!((&echoed.data[..], echoed.content_type.as_deref()), (&b"hello"[..], Some("text/plain")));
    assert_eq!(echoed.partition_key.as_deref(), Some("k"));
    assert_eq!(types(1), ["a.b"]);
    assert_eq!(types(2), ["a", "b"]);
    assert!(outcomes[3].is_empty());
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_may_not_is_invalid() {
    let faults = asked(&["later", "broken", "wrong", "moved", "text", "long"]).await;
    let faults: Vec<FunctionError> = faults.into_iter().map(Result::unwrap_err).collect();
    assert_eq!(faults[0].fault, Fault::Retry { after: Some(Duration::from_secs(7)) });
    assert!(faults[0].message.contains("slow down"));
    assert_eq!(faults[1].fault, Fault::Retry { after: None });
    for fault in &faults[2..] {
        assert_eq!(fault.fault, Fault::Invalid, "{}", fault.message);
    }
    assert!(faults[2].message.len() < 400, "a refusal is told in part");
    assert!(faults[4].message.contains("no CloudEvent"), "{}", faults[4].message);
    assert!(faults[5].message.contains("more than 16 MiB"), "{}", faults[5].message);
}

#[tokio::test]
async fn answer_that_is_nearly_an_event_is_invalid() {
    for (outcome, says) in asked(&["untyped", "hollow", "umlaut", "json"]).await.into_iter().zip([
        "type",
        "not a CloudEvent",
        "ce-subject is not ASCII",
        "type",
    ]) {
        let error = outcome.unwrap_err();
        assert!(error.fault == Fault::Invalid && error.message.contains(says), "{}", error.message);
    }
}

#[tokio::test]
async fn hanging_service_times_out_without_delaying_others() {
    let outcomes = asked(&["slow", "nothing"]).await;
    assert_eq!(outcomes[0].as_ref().unwrap_err().fault, Fault::Timeout);
    assert!(outcomes[1].is_ok());
}

#[tokio::test]
async fn a_service_that_is_away_is_tried_again() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", free.local_addr().unwrap());
    drop(free);
    let outcomes = outcomes(url, &["x"]).await;
    let error = outcomes[0].as_ref().unwrap_err();
    assert_eq!(error.fault, Fault::Retry { after: None });
    assert!(error.message.contains("could not be asked") && error.message.contains("refused"), "{}", error.message);
}

#[tokio::test]
async fn credentials_of_its_url_are_not_in_an_error() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let error = outcomes(format!("http://ada:hunter2@{address}/"), &["x"]).await.remove(0).unwrap_err();
    assert!(error.message.contains(&format!("http://***@{address}/")), "{}", error.message);
    assert!(!error.message.contains("hunter2") && !error.message.contains("ada"), "{}", error.message);
}

#[tokio::test]
async fn https_speaks_tls_and_a_service_that_does_not_is_tried_again() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let service = async {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut first = [0; 1];
        tokio::io::AsyncReadExt::read_exact(&mut connection, &mut first).await.unwrap();
        first[0]
    };
    let (outcomes, first) = tokio::join!(outcomes(url, &["x"]), service);
    assert_eq!(first, 22, "a TLS handshake (RFC 8446, section 5.1)");
    assert_eq!(outcomes[0].as_ref().unwrap_err().fault, Fault::Retry { after: None });
}

//! Requests that no honest client sends.

use super::Faults;
use nerve_tests::Nerve;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Sends all of them, checks what is answered, and says how many they were.
pub(super) async fn send(nerve: &Nerve, faults: &mut Faults) -> usize {
    let (bodies, raw) = (bodies(), raw());
    for Body { name, path, media_type, body, statuses } in &bodies {
        let request = reqwest::Client::new().post(nerve.url(path)).header("content-type", *media_type);
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, request.body(body.clone()).send()).await;
        let answer = answer.unwrap_or_else(|_| panic!("{name}: no answer")).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap_or_default());
        let document: Value = serde_json::from_str(&text).unwrap_or_default();
        // OpenAI's routes have errors of their own shape.
        let reason = document["detail"].as_str().or_else(|| document["error"]["message"].as_str()).unwrap_or_default();
        let is_clear = !reason.is_empty() && text.len() < 4096;
        faults.check(statuses.contains(&status) && is_clear, || format!("{name}: {status} {text}"));
    }
    for (name, bytes) in &raw {
        let answer = exchange(nerve, bytes).await;
        // A refusal, or the end of the connection.
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4");
        faults.check(refused, || format!("{name}: {answer}"));
    }
    bodies.len() + raw.len()
}

/// A body that is refused with one of these statuses.
struct Body {
    name: &'static str,
    path: &'static str,
    media_type: &'static str,
    body: Vec<u8>,
    statuses: &'static [u16],
}

const JSON: &str = "application/json";
const EVENT: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

fn bodies() -> Vec<Body> {
    let nested = |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000));
    let event =
        |id: &str, ty: &str| json!({"specversion": "1.0", "id": id, "source": "/s", "type": ty, "data": 1}).to_string();
    let many: Vec<String> = (0..100_000).map(|id| event(&id.to_string(), "a.b")).collect();
    let one = |name, path, media_type, body: String, statuses| Body {
        name,
        path,
        media_type,
        body: body.into_bytes(),
        statuses,
    };
    let mut bodies = vec![
        one("nested arrays as an event", "/v1/events", EVENT, nested("[", "]"), &[400]),
        one("nested objects as an event", "/v1/events", EVENT, nested("{\"a\":", "}"), &[400]),
        one("nested arrays as a batch", "/v1/events", BATCH, nested("[", "]"), &[400]),
        one("an id of a megabyte", "/v1/events", EVENT, event(&"i".repeat(1 << 20), "a.b"), &[400, 413]),
        one("a type of a megabyte", "/v1/events", EVENT, event("1", &"a.".repeat(1 << 19)), &[400, 413]),
        one("a type with a wildcard", "/v1/events", EVENT, event("1", "a.>"), &[400]),
        one("a type with an empty part", "/v1/events", EVENT, event("1", "a..b"), &[400]),
        one("a type with a line break", "/v1/events", EVENT, event("1", "a\r\nNats-Rollup: all"), &[400]),
        one("a hundred thousand events", "/v1/events", BATCH, format!("[{}]", many.join(",")), &[400, 413]),
        one("nested arrays to tools", "/mcp", JSON, nested("[", "]"), &[400, 404]),
        one("nested arrays to embed", "/v1/embeddings", JSON, nested("[", "]"), &[400, 422]),
        one(
            "a hundred thousand texts to embed",
            "/v1/embeddings",
            JSON,
            json!({"model": "all-minilm-l6-v2", "input": vec!["x"; 100_000]}).to_string(),
            &[400, 404, 413, 422],
        ),
        one(
            "a model that is a path",
            "/v1/embeddings",
            JSON,
            json!({"model": "../../etc/passwd", "input": "x"}).to_string(),
            &[400, 404, 422],
        ),
        one("nested arrays to chat", "/v1/chat/completions", JSON, nested("[", "]"), &[400, 422]),
        one(
            "a hundred thousand messages",
            "/v1/chat/completions",
            JSON,
            json!({"model": "nerve", "messages": vec![json!({"role": "user", "content": "x"}); 100_000]}).to_string(),
            &[400, 404, 413, 422],
        ),
        one("a question that is a number", "/v1/answers", JSON, json!({"question": 1e308}).to_string(), &[400, 422]),
        one(
            "a question of two megabytes",
            "/v1/answers",
            JSON,
            json!({"question": "x".repeat(2 << 20)}).to_string(),
            &[400, 413, 422],
        ),
        one("feedback about nothing", "/v1/feedback", JSON, nested("{\"a\":", "}"), &[400, 422]),
        one("a webhook without a signature", "/hooks/github", JSON, "{}".to_owned(), &[401]),
        one("a webhook of 30 MB", "/hooks/github", JSON, " ".repeat(30 << 20), &[413]),
        one("a source that is a path", "/hooks/..%2f..%2fsecrets.key", JSON, "{}".to_owned(), &[404]),
        one("a function that is a subject", "/v1/functions/%3E/invoke", JSON, "{}".to_owned(), &[400, 404]),
    ];
    bodies.push(Body {
        name: "an event that is not UTF-8",
        path: "/v1/events",
        media_type: EVENT,
        body: [&b"{\"id\": \""[..], &[0xff, 0xfe], b"\"}"].concat(),
        statuses: &[400],
    });
    bodies
}

/// What is hardly HTTP.
fn raw() -> Vec<(&'static str, Vec<u8>)> {
    let headers: String = (0..20_000).map(|number| format!("x-{number}: 1\r\n")).collect();
    let text = |text: String| text.into_bytes();
    vec![
        ("twenty thousand headers", text(format!("GET / HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n"))),
        ("a header of 4 MB", text(format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(4 << 20)))),
        ("an address of 1 MB", text(format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "x".repeat(1 << 20)))),
        (
            "a length that is no number",
            b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n".to_vec(),
        ),
        (
            "two lengths",
            b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx".to_vec(),
        ),
        (
            "a chunk of 2^64 bytes",
            b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nx"
                .to_vec(),
        ),
        ("the hello of TLS", [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 500]].concat()),
        ("noise", vec![0x80; 64 << 10]),
        ("a line break in a header's name", b"GET / HTTP/1.1\r\nhost: localhost\r\nx\ny: 1\r\n\r\n".to_vec()),
        ("a zero in a header", b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: a\0b\r\n\r\n".to_vec()),
        ("a host of somebody else", b"GET /v1/functions HTTP/1.1\r\nhost: evil.example\r\n\r\n".to_vec()),
    ]
}

/// What the gateway answers to these bytes, until it ends the connection or has answered once.
async fn exchange(nerve: &Nerve, bytes: &[u8]) -> String {
    let address = nerve.url("").trim_start_matches("http://").trim_end_matches('/').to_owned();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut answer = vec![0; 4096];
    let exchanged = tokio::time::timeout(ANSWER_TIMEOUT, async {
        // The gateway may end the connection before it has read all of it.
        let _ = stream.write_all(bytes).await;
        stream.read(&mut answer).await.unwrap_or_default()
    });
    let read = exchanged.await.expect("an answer, or the end of the connection");
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

//! Webhooks that are refused: with the right status, as problem documents, and with nothing stored.

use crate::{post_event, problem, up_with_github};
use nerve_tests::{Streams, github};

const BODY: &str = r#"{"zen":"Keep it logically awesome."}"#;

#[tokio::test]
async fn what_is_not_a_good_delivery_is_refused_and_leaves_nothing_in_any_stream() {
    let nerve = up_with_github().await;
    let streams = Streams::connect(&nerve.nats).await;
    let url = nerve.url("/hooks/github");
    let unsigned = || github::unsigned(&url, "ping", "delivery").body(BODY);
    let forged = github::signature("another secret", BODY.as_bytes());
    let of_another_body = github::signature(github::SECRET, b"{}");
    let malformed = "{\"zen\": ";
    let too_large = vec![b' '; 26 << 20];
    let unknown = github::delivery(&nerve.url("/hooks/nobody"), "ping", "delivery", BODY);
    let cases = [
        ("signed with another secret", unsigned().header("X-Hub-Signature-256", forged), 401),
        ("the signature of another body", unsigned().header("X-Hub-Signature-256", of_another_body), 401),
        ("a signature that is none", unsigned().header("X-Hub-Signature-256", "sha256=00"), 401),
        ("no signature", unsigned(), 401),
        ("an unknown source", unknown, 404),
        ("a body over the limit", github::delivery(&url, "push", "delivery", too_large), 413),
        ("malformed JSON, well signed", github::delivery(&url, "ping", "delivery", malformed), 400),
    ];
    for (case, request, expected) in cases {
        let (status, document) = problem(request.send().await.unwrap_or_else(|e| panic!("{case}: {e}"))).await;
        assert_eq!(status, expected, "{case}: {document}");
        let right = github::signature(github::SECRET, BODY.as_bytes());
        assert!(!document.to_string().contains(&right[7..]), "{case}: it says what the right signature is");
    }
    assert_eq!(streams.total().await, 0);
    // The stream was there to be written to.
    assert!(github::delivery(&url, "ping", "delivery", BODY).send().await.unwrap().status().is_success());
    assert_eq!(streams.count("EVENTS", "events.github.ping").await, 1);
}

#[tokio::test]
async fn an_event_that_is_none_is_refused_by_the_api() {
    let nerve = nerve_tests::Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let client = reqwest::Client::new();
    let structured = |body: &str| {
        let request = client.post(nerve.url("/v1/events")).header("content-type", "application/cloudevents+json");
        request.body(body.to_owned())
    };
    let cases = [
        ("not JSON", structured("{"), 400),
        ("no id", structured(r#"{"specversion":"1.0","source":"/s","type":"a.b"}"#), 400),
        ("an old version", structured(r#"{"specversion":"0.3","id":"1","source":"/s","type":"a.b"}"#), 400),
        ("a type with a wildcard", structured(r#"{"specversion":"1.0","id":"1","source":"/s","type":"a.>"}"#), 400),
        ("neither mode", client.post(nerve.url("/v1/events")).body("hello"), 400),
        ("no such page", client.get(nerve.url("/v1/nothing")), 404),
    ];
    for (case, request, expected) in cases {
        let (status, document) = problem(request.send().await.unwrap()).await;
        let unsupported = case == "neither mode" && status == 415;
        assert!(status == expected || unsupported, "{case}: {status} {document}");
    }
    assert_eq!(streams.total().await, 0);
    assert_eq!(post_event(&nerve, "a.b", "1", "{}").await / 100, 2);
}

#[tokio::test]
async fn a_page_that_takes_no_such_method_says_so() {
    let nerve = nerve_tests::Nerve::up().await;
    let (status, _) = problem(reqwest::Client::new().delete(nerve.url("/v1/events")).send().await.unwrap()).await;
    assert_eq!(status, 405);
}

//! What is one event and what are two at webhook sources, what is counted of what is dropped, and what events from outside may
//! not say of themselves.

use crate::{post_event, problem, source_is_served};
use nerve_tests::{Folder, Nats, Nerve, Streams, eventually, github, seconds};
use serde_json::{Value, json};

const SECRET: &str = "a secret of the sender's";

/// A table of a source that verifies nothing.
fn open(name: &str, provider: &str, more: &str) -> String {
    format!("[source.{name}]\nprovider = \"{provider}\"\nverify = \"none\"\n{more}\n")
}

/// A table of a source of the till's: the body is signed, and nothing else.
fn till(name: &str, more: &str) -> String {
    format!(
        "[source.{name}]\nprovider = \"custom\"\nsecrets = [\"TILL\"]\nsignature = \"X-Till-Signature\"\n\
         prefix = \"v1=\"\nsigned = \"{{body}}\"\nalgorithm = \"sha256\"\nencoding = \"hex\"\n{more}\n"
    )
}

/// A `nerve up` with these sources and GitHub's, all of them served.
async fn up_with(sources: &str, names: &[&str]) -> (Nerve, Streams) {
    let nerve = Nerve::up().await;
    nerve.cli().secret("TILL", SECRET).await;
    nerve.cli().secret("GITHUB_WEBHOOK_SECRET", github::SECRET).await;
    nerve.cli().deploy(Folder::new(&format!("{sources}\n{}", github::SOURCE)).path()).await;
    source_is_served(&nerve, "github").await;
    for name in names {
        eventually("the source is served", seconds(20), || async {
            let url = nerve.url(&format!("/hooks/{name}"));
            let asked = reqwest::Client::new().request(reqwest::Method::OPTIONS, url).send().await.ok()?;
            (asked.status() != 404).then_some(())
        })
        .await;
    }
    let streams = Streams::connect(&nerve.nats).await;
    (nerve, streams)
}

/// Posts a body, and returns the answer's receipt.
async fn take(nerve: &Nerve, source: &str, headers: &[(&str, &str)], body: &str) -> Value {
    let response = post(nerve, source, headers, body).await;
    assert_eq!(response.status(), 202, "{source}: {body}");
    response.json().await.expect("a receipt")
}

async fn post(nerve: &Nerve, source: &str, headers: &[(&str, &str)], body: &str) -> reqwest::Response {
    let signature = github::signature(SECRET, body.as_bytes()).replace("sha256=", "v1=");
    let request = reqwest::Client::new().post(nerve.url(&format!("/hooks/{source}"))).body(body.to_owned());
    let request = request.header("content-type", "application/json").header("X-Till-Signature", signature);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.send().await.expect("an answer")
}

/// The ids of a source's events.
async fn ids(streams: &Streams, source: &str) -> Vec<String> {
    let stored = streams.read("EVENTS", &format!("events.{source}.>")).await;
    stored.iter().map(|event| event.header("ce-id").to_owned()).collect()
}

/// Waits until `nerve describe` shows these counts.
async fn described(nerve: &Nerve, source: &str, counts: Value) {
    eventually("the counts are shown", seconds(20), || async {
        let shown = nerve.cli().run(&["describe", source, "--output", "json"]).await.ok().json();
        (shown["source_duplicates"] == counts).then_some(())
    })
    .await;
}

#[tokio::test]
async fn bodies_without_ids_are_told_apart_also_where_nothing_is_signed() {
    let sources = [open("open", "custom", ""), open("topic", "sns", ""), open("mail", "mailgun", "")].concat();
    let (nerve, streams) = up_with(&sources, &["open", "topic", "mail"]).await;
    for source in ["open", "topic", "mail"] {
        for body in [r#"{"n":1}"#, r#"{"n":2}"#, r#"{"n":3}"#] {
            assert_eq!(take(&nerve, source, &[], body).await["duplicate"], false, "{source}: {body}");
        }
        assert_eq!(take(&nerve, source, &[], r#"{"n":2}"#).await["duplicate"], true, "{source}");
        assert_eq!(ids(&streams, source).await.len(), 3, "{source}");
        described(&nerve, source, json!({"body": 1})).await;
    }
}

#[tokio::test]
async fn heartbeats_are_duplicates_unless_the_source_says_that_nothing_is() {
    let sources = [till("once", ""), till("each", "dedupe = \"none\"\nid = \"/id\"")].concat();
    let (nerve, streams) = up_with(&sources, &["once", "each"]).await;
    let heartbeat = r#"{"event":"heartbeat"}"#;
    for duplicate in [false, true] {
        assert_eq!(take(&nerve, "once", &[], heartbeat).await["duplicate"], duplicate);
        assert_eq!(take(&nerve, "each", &[], heartbeat).await["duplicate"], false);
        assert_eq!(take(&nerve, "each", &[], r#"{"id":"sender-7"}"#).await["id"], "sender-7");
    }
    assert_eq!(ids(&streams, "once").await.len(), 1);
    let each = ids(&streams, "each").await;
    assert_eq!((each.len(), each.iter().filter(|id| *id == "sender-7").count()), (4, 2));
    assert_ne!(each[0], each[2], "heartbeats have ids of their own");

    described(&nerve, "once", json!({"body": 1})).await;
    described(&nerve, "each", json!({})).await;
    let cli = nerve.cli();
    let shown = cli.run(&["describe", "once"]).await.ok().stdout;
    assert!(shown.contains("dropped at least 1 by body"), "{shown}");
    let listed = cli.run(&["source", "list", "--output", "json"]).await.ok().json();
    let row = |name: &str| listed.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone();
    assert_eq!((&row("once")["duplicates"], &row("each")["dedupe"]), (&json!({"body": 1}), &json!("none")));
    assert!(cli.run(&["source", "list"]).await.ok().stdout.contains("≥ 1"));
    let metrics = reqwest::get(nerve.url("/metrics")).await.unwrap().text().await.unwrap();
    let counted = metrics.lines().find(|line| line.starts_with("nerve_duplicates_total{source=\"once\""));
    assert!(counted.is_some_and(|line| line.contains("reason=\"body\"") && line.ends_with(" 1")), "{metrics}");
}

#[tokio::test]
async fn an_id_with_another_body_is_another_delivery_where_ids_are_reused() {
    let sources = [till("orders", "id = \"X-Order\""), till("unique", "id = \"X-Order\"\nids = \"unique\"")].concat();
    let (nerve, streams) = up_with(&sources, &["orders", "unique"]).await;
    for source in ["orders", "unique"] {
        for body in [r#"{"state":"paid"}"#, r#"{"state":"sent"}"#, r#"{"state":"paid"}"#] {
            take(&nerve, source, &[("X-Order", "7")], body).await;
        }
    }
    assert_eq!(ids(&streams, "orders").await, ["7", "7"]);
    assert_eq!(ids(&streams, "unique").await, ["7"]);
    described(&nerve, "orders", json!({"id": 1})).await;
    described(&nerve, "unique", json!({"id": 2})).await;
}

#[tokio::test]
async fn duplicates_that_only_jetstream_knows_are_counted() {
    let nats = Nats::start().await;
    let nerve = Nerve::gateway(&nats.url()).await;
    nerve.cli().secret("GITHUB_WEBHOOK_SECRET", github::SECRET).await;
    nerve.cli().deploy(Folder::new(github::SOURCE).path()).await;
    source_is_served(&nerve, "github").await;
    let streams = Streams::connect(&nats.url()).await;
    let send = || github::delivery(&nerve.url("/hooks/github"), "ping", "1", "{}").send();
    assert_eq!(send().await.unwrap().status(), 202);
    // A gateway that starts knows what SEEN holds, so that is emptied once it is written.
    streams.reaches("SEEN", ">", 1, seconds(20)).await;
    streams.stream("SEEN").await.purge().await.unwrap();
    let other = Nerve::gateway(&nats.url()).await;
    let again = || github::delivery(&other.url("/hooks/github"), "ping", "1", "{}").send();
    let answer = eventually("the other gateway serves the source", seconds(20), || async {
        again().await.ok().filter(|answer| answer.status() == 202)
    })
    .await;
    assert_eq!(answer.json::<Value>().await.unwrap()["duplicate"], true);
    assert_eq!(again().await.unwrap().status(), 202);
    assert_eq!(streams.count("EVENTS", "events.github.>").await, 1);
    described(&nerve, "github", json!({"id": 1, "window": 1})).await;
    assert_eq!(send().await.unwrap().status(), 202);
    described(&nerve, "github", json!({"id": 2, "window": 1})).await;
}

#[tokio::test]
async fn a_cloud_event_is_stored_once_a_source_and_cannot_take_the_place_of_a_webhook() {
    let sources = [open("a", "cloudevents", ""), open("b", "cloudevents", "")].concat();
    let (nerve, streams) = up_with(&sources, &["a", "b"]).await;
    let event = |source: &'static str, id: &'static str| {
        [("ce-specversion", "1.0"), ("ce-source", source), ("ce-type", "ping"), ("ce-id", id)]
    };
    for source in ["a", "b", "a"] {
        take(&nerve, source, &event("/shop", "1"), "{}").await;
    }
    assert_eq!((ids(&streams, "a").await.len(), ids(&streams, "b").await.len()), (1, 1));
    assert_eq!(post_event(&nerve, "ping", "1", "{}").await, 202, "and at the API");

    for reserved in ["/hooks/github", "/functions/f", "/nerve/cli", "/v1/documents"] {
        let (status, document) = problem(post(&nerve, "a", &event(reserved, "78"), "{}").await).await;
        let detail = document["detail"].as_str().unwrap();
        assert_eq!(status, 400, "{document}");
        assert!(
            detail.contains("`source`") && detail.contains(reserved) && detail.contains("name the sender"),
            "{detail}"
        );
        let request = reqwest::Client::new().post(nerve.url("/v1/events")).body("{}");
        let request =
            event(reserved, "78").into_iter().fold(request, |request, (name, value)| request.header(name, value));
        assert_eq!(problem(request.send().await.unwrap()).await.0, 400);
        let refused = nerve.cli().run(&["publish", "ping", "--source", reserved]).await;
        if reserved != "/nerve/cli" {
            assert!(refused.failed(2).stderr.contains("name the sender"));
        }
    }
    let delivered = github::delivery(&nerve.url("/hooks/github"), "ping", "78", "{}").send().await.unwrap();
    assert_eq!(delivered.json::<Value>().await.unwrap()["duplicate"], false);
    assert_eq!(ids(&streams, "github").await, ["78"]);
}

#[tokio::test]
async fn a_reference_to_a_body_is_neither_believed_nor_a_way_past_the_schema() {
    let (nerve, streams) = up_with(&open("a", "cloudevents", ""), &["a"]).await;
    let send = |ty: &'static str, reference: &'static str, body: &'static str| {
        let request = reqwest::Client::new().post(nerve.url("/v1/events")).header("content-type", "application/json");
        let request = request.header("ce-specversion", "1.0").header("ce-type", ty).header("ce-id", reference);
        let request = request.header("ce-source", "/shop").header("ce-dataref", reference).body(body);
        async move { request.send().await.expect("an answer") }
    };
    for (ty, reference, body, said) in [
        ("prompt.received", "https://x.example/y", r#"{"nonsense":1}"#, "prompt.received"),
        ("prompt.received", "https://x.example/y", "", "prompt.received"),
        ("my.own", "nats-object:bodies/abc", "", "`dataref`"),
        ("prompt.received", "nats-object:bodies/abc", "", "`dataref`"),
    ] {
        let (status, document) = problem(send(ty, reference, body).await).await;
        assert!(status == 400 && document["detail"].as_str().unwrap().contains(said), "{document}");
    }
    assert_eq!(send("my.own", "https://x.example/y", "").await.status(), 202);
    let stored = streams.read("EVENTS", ">").await;
    assert_eq!((stored.len(), stored[0].header("ce-dataref")), (1, "https://x.example/y"));
}

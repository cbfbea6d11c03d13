//! Quotas of collections: what is over them is refused, or becomes a dead letter, and nothing else is held up.

use crate::{
    documents::{indexed, upload},
    problem,
};
use nerve_tests::{Cli, Nats, Nerve, Streams, checkout, eventually, seconds};
use reqwest::{Method, Response};
use serde_json::{Value, json};

async fn send(nerve: &Nerve, method: Method, path: &str, body: &str) -> Response {
    let request = reqwest::Client::new().request(method, nerve.url(path)).header("content-type", "text/plain");
    request.body(body.to_owned()).send().await.expect("the gateway answers")
}

async fn post(nerve: &Nerve, collection: &str, document: &str, text: &str) -> Response {
    let path = format!("/v1/documents?collection={collection}&document={document}");
    send(nerve, Method::POST, &path, text).await
}

async fn shown(cli: &Cli, collection: &str) -> Value {
    cli.run(&["collections", "show", collection, "--output", "json"]).await.ok().json()
}

#[tokio::test]
async fn documents_over_a_quota_are_refused_or_become_dead_letters() {
    let nerve = Nerve::up().await;
    nerve.cli().deploy(&checkout().join("functions/rag")).await;
    let (streams, cli) = (Streams::connect(&nerve.nats).await, nerve.cli());
    let quota = ["collections", "quota", "acme", "--documents", "2", "--documents-bytes", "200"];
    let set = cli.run(&[&quota[..], &["--output", "json"]].concat()).await.ok().json();
    assert_eq!(set["quota"], json!({"documents": 2, "documents_bytes": 200}));
    // By events, past the gateway's own check: the index has the last word.
    for (id, document) in [("1", "a"), ("2", "b"), ("3", "c")] {
        upload(&nerve, id, json!({"collection": "acme", "document": document, "text": "Fees are ten percent."})).await;
        if document == "b" {
            indexed(&streams, 2).await;
        }
    }
    streams.reaches("DEAD", "dead.index", 1, seconds(30)).await;
    let letters = cli.run(&["dlq", "list", "--output", "json"]).await.ok().json().to_string();
    assert!(letters.contains("its quota of 2 documents"), "{letters}");
    let usage = eventually("what it has used is recorded", seconds(20), || async {
        let shown = shown(&nerve.cli(), "acme").await;
        (shown["used"]["documents"] == 2 && shown["used"]["tokens"].as_u64()? > 0).then_some(shown)
    })
    .await;
    assert_eq!(usage["used"]["documents_bytes"], 42, "{usage}");
    let over = post(&nerve, "acme", "d", "One more.").await;
    let (status, document) = problem(over).await;
    assert!(status == 507 && document["detail"].to_string().contains("--documents N"), "{document}");
    assert_eq!(post(&nerve, "other", "d", "One more.").await.status(), 202, "another collection has none");
    assert_eq!(post(&nerve, "acme", "a", "Fees are one percent.").await.status(), 202, "it takes the place of another");
    let long = "word ".repeat(60);
    cli.run(&["collections", "quota", "acme", "--documents", "0"]).await.ok();
    let large = eventually("the gateway follows", seconds(10), || async {
        let response = post(&nerve, "acme", "e", &long).await;
        let (status, document) = (response.status(), response.text().await.ok()?);
        (status == 507 && document.contains("200 bytes")).then_some(document)
    })
    .await;
    assert!(large.contains("nothing was stored"), "{large}");
    // A deletion makes room.
    let deleted = send(&nerve, Method::DELETE, "/v1/documents/b?collection=acme", "").await;
    assert_eq!(deleted.status(), 202);
    eventually("its bytes are free again", seconds(20), || async {
        (shown(&nerve.cli(), "acme").await["used"]["documents"] == 1).then_some(())
    })
    .await;

    cli.run(&["collections", "quota", "acme", "--reset", "--tokens-per-day", "1"]).await.ok();
    let spent = eventually("no tokens are left", seconds(10), || async {
        let response = post(&nerve, "acme", "f", "Text.").await;
        (response.status() == 429).then_some(response)
    })
    .await;
    assert!(spent.headers().contains_key("retry-after"));
    upload(&nerve, "4", json!({"collection": "acme", "document": "g", "text": "Text."})).await;
    streams.reaches("DEAD", "dead.chunk", 1, seconds(30)).await;
    eventually("both are listed", seconds(20), || async {
        let listed = nerve.cli().run(&["collections", "list", "--output", "json"]).await.ok().json();
        let listed = listed["collections"].as_array()?.clone();
        let names: Vec<&str> = listed.iter().filter_map(|one| one["collection"].as_str()).collect();
        (names == ["acme", "other"]).then_some(())
    })
    .await;
    cli.run(&["collections", "erase", "acme", "--yes"]).await.ok();
    let left = cli.run(&["collections", "show", "acme", "--output", "json"]).await.ok().json();
    assert_eq!((&left["used"]["documents"], &left["used"]["tokens"]), (&json!(0), &json!(0)), "{left}");
}

#[tokio::test]
async fn rate_of_a_collection_is_one_for_all_gateways() {
    let nats = Nats::start().await;
    let gateways = [Nerve::gateway(&nats.url()).await, Nerve::gateway(&nats.url()).await];
    let cli = Cli::new(&nats.url());
    cli.run(&["collections", "quota", "acme", "--events-per-minute", "30"]).await.ok();
    let delete = |number: usize| {
        let path = format!("/v1/documents/{number}?collection=acme");
        let gateway = &gateways[number % 2];
        async move { send(gateway, Method::DELETE, &path, "").await }
    };
    let (began, mut accepted, mut refused) = (std::time::Instant::now(), 0, Vec::new());
    // Each gateway is asked until it has refused a few in a row, which it does only once what it took ahead is used up.
    for number in 0..400 {
        let response = delete(number).await;
        match response.status().as_u16() {
            202 => {
                accepted += 1;
                refused.clear();
            }
            429 => refused.push(response),
            other => panic!("{other}: {:?}", response.text().await),
        }
        if refused.len() >= 6 {
            break;
        }
    }
    // One more comes due every two seconds.
    let due = usize::try_from(began.elapsed().as_secs()).unwrap() / 2 + 1;
    assert!((28..=30 + due).contains(&accepted), "{accepted} of 30 and {due}");
    let refused = refused.pop().expect("more than the rate was refused");
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=3).contains(&wait), "{wait}");
    let (_, document) = problem(refused).await;
    assert!(document["detail"].to_string().contains("30 events per minute"), "{document}");
    let other = send(&gateways[0], Method::DELETE, "/v1/documents/1?collection=other", "").await;
    assert_eq!(other.status(), 202);
}

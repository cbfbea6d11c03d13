//! What those learn and cause who have no key: little.

use crate::problem;
use nerve_tests::{Folder, Nerve, eventually, guest, nerve::Options, seconds};
use serde_json::{Value, json};

const KEY: &str = "a-key-of-more-than-16-characters";

async fn readiness(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test]
async fn readiness_names_what_is_deployed_to_key_holders_only() {
    let envs = vec![("NERVE_GATEWAY_KEYS".to_owned(), KEY.to_owned())];
    let nerve = Nerve::up_with(Options { envs, ..Options::default() }).await;
    let folder = guest::wasm("secret-plan", "events.a", "b", "secrets = [\"NEVER_SET\"]", &guest::echo("b"));
    nerve.cli().deploy(folder.path()).await;
    let client = reqwest::Client::new();
    let get = || client.get(nerve.url("/readyz"));
    let (_, with_key) = eventually("the function is told of", seconds(20), || async {
        let told = readiness(get().bearer_auth(KEY)).await;
        told.1.to_string().contains("NEVER_SET").then_some(told)
    })
    .await;
    assert!(with_key.to_string().contains("function secret-plan"), "{with_key}");
    for request in [get(), get().bearer_auth("wrong")] {
        let (status, open) = readiness(request).await;
        assert_eq!((status, &open["ready"]), (200, &json!(true)), "{open}");
        let text = open.to_string();
        assert!(text.contains("\"functions\"") && !text.contains("secret-plan") && !text.contains("detail"), "{text}");
    }
}

#[tokio::test]
async fn page_from_elsewhere_cannot_act_on_a_keyless_server() {
    let nerve = Nerve::up().await;
    let source = "[source.open]\nprovider = \"cloudevents\"\nverify = \"none\"\n";
    nerve.cli().deploy(Folder::new(source).path()).await;
    let client = reqwest::Client::new();
    let event = r#"{"specversion":"1.0","id":"1","source":"/s","type":"a.b"}"#;
    let post = |path: &str| {
        let request = client.post(nerve.url(path)).header("content-type", "application/cloudevents+json");
        request.body(event)
    };
    eventually("the source is served", seconds(20), || async {
        (post("/hooks/open").send().await.ok()?.status().as_u16() / 100 == 2).then_some(())
    })
    .await;
    for path in ["/hooks/open", "/v1/events", "/v1/functions/f/invoke", "/nowhere"] {
        let form = post(path).header("origin", "https://evil.example").header("sec-fetch-site", "cross-site");
        let (status, document) = problem(form.send().await.unwrap()).await;
        assert!(status == 403 && document["detail"].as_str().unwrap().contains("gateway.keys"), "{path}: {document}");
        let image = client.get(nerve.url(path)).header("sec-fetch-site", "cross-site").send().await.unwrap();
        assert_eq!(image.status(), 403, "{path}");
    }
    // DNS rebinding: to the browser it is all one site.
    for path in ["/", "/v1/events", "/v1/functions"] {
        let rebound =
            client.get(nerve.url(path)).header("host", "evil.example:8080").header("sec-fetch-site", "same-origin");
        assert_eq!(problem(rebound.send().await.unwrap()).await.0, 403, "{path}");
    }
    let rebound = post("/hooks/open").header("host", "evil.example").header("origin", "http://evil.example");
    assert_eq!(problem(rebound.send().await.unwrap()).await.0, 403);
    // A sender behind a tunnel is no browser, and a program on this machine is none either.
    assert_eq!(
        post("/hooks/open").header("host", "abc.tunnel.example").send().await.unwrap().status().as_u16() / 100,
        2
    );
    assert_eq!(post("/v1/events").send().await.unwrap().status().as_u16() / 100, 2);
    let (_, health) = readiness(client.get(nerve.url("/readyz")).header("host", "evil.example")).await;
    assert!(health["ready"] == true && !health.to_string().contains("detail"), "{health}");
}

#[tokio::test]
async fn posts_to_a_source_without_its_secret_write_few_log_lines() {
    let nerve = Nerve::up().await;
    nerve.cli().deploy(Folder::new(nerve_tests::github::SOURCE).path()).await;
    let client = reqwest::Client::new();
    let post = || client.post(nerve.url("/hooks/github")).header("x-github-event", "ping").body("{}").send();
    eventually("the source is known", seconds(20), || async { (post().await.ok()?.status() == 503).then_some(()) })
        .await;
    for _ in 0..300 {
        assert_eq!(post().await.unwrap().status(), 503);
    }
    let log = nerve.daemon.stderr();
    let lines = log.lines().filter(|line| line.contains("github")).count();
    assert!((1..=8).contains(&lines), "{lines} lines: {log}");
}

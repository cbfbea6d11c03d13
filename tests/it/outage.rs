//! NATS is unavailable: the gateway reports it, accepts nothing, and continues when it is back.

use crate::problem;
use nerve_tests::{Cli, Folder, Nats, Nerve, Proxy, Streams, eventually, github, nerve, seconds};
use nix::sys::signal::Signal;

const BODY: &str = r#"{"zen":"Design for failure."}"#;

async fn gateway(nats: &Nats) -> Nerve {
    let gateway = Nerve::gateway(&nats.url()).await;
    gateway.cli().secret("GITHUB_WEBHOOK_SECRET", github::SECRET).await;
    gateway.cli().deploy(Folder::new(github::SOURCE).path()).await;
    let url = gateway.url("/hooks/github");
    eventually("the gateway serves the source", seconds(10), || async {
        let response = github::delivery(&url, "ping", "first", BODY).send().await.ok()?;
        response.status().is_success().then_some(())
    })
    .await;
    assert_eq!(reqwest::get(gateway.url("/readyz")).await.unwrap().status(), 200);
    gateway
}

/// A delivery is answered 503 with `Retry-After`, and readyz says 503.
async fn is_away(gateway: &Nerve) {
    let response = github::delivery(&gateway.url("/hooks/github"), "ping", "second", BODY).send().await.unwrap();
    let retry_after = response.headers().get("retry-after").cloned();
    let (status, document) = problem(response).await;
    assert_eq!(status, 503, "{document}");
    let retry_after = retry_after.expect("Retry-After").to_str().unwrap().to_owned();
    assert!(retry_after.parse::<u64>().is_ok_and(|seconds| seconds > 0), "{retry_after}");
    assert_eq!(reqwest::get(gateway.url("/readyz")).await.unwrap().status(), 503);
    assert_eq!(reqwest::get(gateway.url("/healthz")).await.unwrap().status(), 200, "the process itself is well");
}

/// The same delivery is taken within ten seconds, and stored once.
async fn is_back(gateway: &Nerve, nats: &Nats) {
    eventually("readyz is 200", seconds(10), || async {
        let response = reqwest::get(gateway.url("/readyz")).await.ok()?;
        (response.status() == 200).then_some(())
    })
    .await;
    let response = github::delivery(&gateway.url("/hooks/github"), "ping", "second", BODY).send().await.unwrap();
    assert!(response.status().is_success(), "{response:?}");
    let streams = Streams::connect(&nats.url()).await;
    let stored = streams.read("EVENTS", "events.github.ping").await;
    assert_eq!(stored.iter().filter(|event| event.header("ce-id") == "second").count(), 1);
}

#[tokio::test]
async fn with_nats_server_killed_the_gateway_answers_503_with_retry_after_until_it_is_back() {
    let mut nats = Nats::start().await;
    let gateway = gateway(&nats).await;
    nats.kill9();
    is_away(&gateway).await;
    nats.restart().await;
    is_back(&gateway, &nats).await;
}

#[tokio::test]
async fn with_nats_server_frozen_the_gateway_answers_503_with_retry_after_until_it_goes_on() {
    let nats = Nats::start().await;
    let gateway = gateway(&nats).await;
    nats.freeze();
    is_away(&gateway).await;
    nats.thaw();
    is_back(&gateway, &nats).await;
}

#[tokio::test]
async fn with_the_disk_full_the_gateway_answers_503_and_everything_it_took_is_stored() {
    let nats = Nats::with_room_for(4 << 20).await;
    let gateway = gateway(&nats).await;
    let url = gateway.url("/hooks/github");
    let body = format!(r#"{{"zen":"{}"}}"#, "x".repeat(200_000));
    let (mut taken, mut refused) = (vec!["first".to_owned()], None);
    for n in 0..60 {
        let id = format!("large-{n}");
        let response = github::delivery(&url, "ping", &id, body.clone()).send().await.unwrap();
        if response.status().is_success() {
            taken.push(id);
            continue;
        }
        assert!(response.headers().contains_key("retry-after"), "{response:?}");
        refused = Some(problem(response).await);
        break;
    }
    let (status, document) = refused.expect("4 MiB hold no 60 bodies of 200 kB");
    assert_eq!(status, 503, "{document}");
    let streams = Streams::connect(&nats.url()).await;
    let stored = streams.read("EVENTS", "events.github.ping").await;
    let ids: Vec<_> = stored.iter().map(|event| event.header("ce-id").to_owned()).collect();
    assert_eq!(ids, taken);

    streams.stream("EVENTS").await.purge().await.expect("room again");
    let again = github::delivery(&url, "ping", "after", body).send().await.unwrap();
    assert!(again.status().is_success(), "{again:?}");
}

const LIST: [&str; 7] = ["dlq", "list", "any", "--limit", "2000", "--output", "json"];

/// 2 MiB of dead letters, and a proxy that will swallow half of them.
async fn half_a_list(nats: &Nats) -> Proxy {
    let _streams_are_made = Nerve::gateway(&nats.url()).await;
    let streams = Streams::connect(&nats.url()).await;
    for _ in 0..2000 {
        streams.jetstream.publish("dead.any", "x".repeat(1 << 10).into()).await.unwrap().await.unwrap();
    }
    let proxy = Proxy::start(nats.url().replace("nats://", "")).await;
    let whole = through(&proxy).run(&LIST).await.ok().json();
    assert_eq!(whole.as_array().unwrap().len(), 2000);
    proxy.mute_after(1 << 20);
    proxy
}

fn through(proxy: &Proxy) -> Cli {
    Cli::new(&format!("nats://{}", proxy.address))
}

#[tokio::test]
async fn a_list_that_breaks_off_on_its_way_is_an_error_and_no_shorter_list() {
    let nats = Nats::start().await;
    let proxy = half_a_list(&nats).await;
    let broken = through(&proxy).run(&LIST).await.failed(1);
    assert!(broken.stdout.is_empty() && broken.stderr.contains("reading DEAD"), "{broken:?}");
}

#[tokio::test]
async fn a_list_is_an_error_too_when_the_broker_is_killed_on_its_way() {
    let mut nats = Nats::start().await;
    let proxy = half_a_list(&nats).await;
    let cli = through(&proxy);
    let killed = async {
        eventually("half of it has come", seconds(10), || async { proxy.is_mute().then_some(()) }).await;
        nats.kill9();
    };
    let (broken, ()) = tokio::join!(cli.run(&LIST), killed);
    let broken = broken.failed(1);
    assert!(broken.stdout.is_empty() && broken.stderr.contains("the connection was lost meanwhile"), "{broken:?}");
}

#[tokio::test]
async fn roles_stop_while_the_broker_is_away() {
    let mut nats = Nats::start().await;
    let data = tempfile::tempdir().unwrap();
    let mut gateway = Nerve::gateway(&nats.url()).await;
    let mut worker = nerve::worker(&nats.url(), data.path()).await;
    nats.kill9();
    worker.signal(Signal::SIGTERM);
    worker.exit(seconds(40)).await;
    gateway.sigterm(seconds(40)).await;
}

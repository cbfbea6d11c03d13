//! NATS is unavailable, and a source has `spool = true`: its senders get 2xx, and every event is in the log once, in order, when NATS is
//! available again.

use crate::{problem, source_is_served};
use nerve_tests::{Folder, Nats, Nerve, Streams, eventually, github, proxy::Proxy, seconds};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinSet;

/// One source that spools, and one that does not.
const SOURCES: &str = "[source.kept]\nprovider = \"github\"\nsecrets = [\"GITHUB_WEBHOOK_SECRET\"]\nspool = true\n\n\
    [source.github]\nprovider = \"github\"\nsecrets = [\"GITHUB_WEBHOOK_SECRET\"]\n";
const BODY: &str = r#"{ "zen": "Keep it logically awesome." }"#;

async fn gateway(nats: &str, envs: &[(&str, &str)]) -> Nerve {
    let gateway = Nerve::gateway_with(nats, envs).await;
    gateway.cli().secret("GITHUB_WEBHOOK_SECRET", github::SECRET).await;
    gateway.cli().deploy(Folder::new(SOURCES).path()).await;
    source_is_served(&gateway, "kept").await;
    source_is_served(&gateway, "github").await;
    gateway
}

async fn post(gateway: &Nerve, source: &str, id: &str) -> reqwest::Response {
    github::delivery(&gateway.url(&format!("/hooks/{source}")), "ping", id, BODY).send().await.unwrap()
}

/// The ids of `source` in the log, in its order.
async fn stored(nats: &Nats, source: &str) -> Vec<String> {
    let stored = Streams::connect(&nats.url()).await.read("EVENTS", &format!("events.{source}.>")).await;
    stored.iter().map(|event| event.header("ce-id").to_owned()).collect()
}

async fn are_stored(nats: &Nats, ids: &[String]) {
    eventually("the spool is drained", seconds(30), || async {
        (stored(nats, "kept").await.len() >= ids.len()).then_some(())
    })
    .await;
    assert_eq!(stored(nats, "kept").await, ids);
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("d-{n}")).collect()
}

#[tokio::test]
async fn with_the_broker_killed_a_source_that_spools_is_answered_202_and_its_events_come_in_order() {
    let mut nats = Nats::start().await;
    let gateway = gateway(&nats.url(), &[]).await;
    let ids = ids(40);
    assert_eq!(post(&gateway, "kept", &ids[0]).await.status(), 202);
    nats.kill9();
    for id in &ids[1..] {
        let response = post(&gateway, "kept", id).await;
        assert_eq!(response.status(), 202);
        let receipt: serde_json::Value = response.json().await.unwrap();
        let expected = serde_json::json!({"id": id, "type": "kept.ping", "duplicate": false, "spooled": true});
        assert_eq!(receipt, expected);
    }
    for known in [&ids[0], &ids[20]] {
        let receipt: serde_json::Value = post(&gateway, "kept", known).await.json().await.unwrap();
        assert_eq!(receipt["duplicate"], true, "what is in the log or on disk is not taken twice");
    }
    let (status, document) = problem(post(&gateway, "github", "not kept").await).await;
    assert_eq!(status, 503, "{document}");
    let ready = reqwest::get(gateway.url("/readyz")).await.unwrap();
    assert_eq!(ready.status(), 200, "a load balancer must not take its senders away");
    assert!(ready.text().await.unwrap().contains("stored on disk"));
    nats.restart().await;
    are_stored(&nats, &ids).await;
    let streams = Streams::connect(&nats.url()).await;
    let events = streams.read("EVENTS", "events.kept.>").await;
    assert!(events.iter().all(|event| event.data == BODY), "byte for byte");
    eventually("webhooks go past the spool again", seconds(10), || async {
        let receipt: serde_json::Value = post(&gateway, "kept", "after").await.json().await.ok()?;
        receipt["sequence"].is_u64().then_some(())
    })
    .await;
    let metrics = reqwest::get(gateway.url("/metrics")).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("nerve_gateway_spool_events 0"), "{metrics}");
}

#[tokio::test]
async fn what_a_killed_gateway_had_spooled_is_in_the_log_after_its_restart() {
    let mut nats = Nats::start().await;
    let mut gateway = gateway(&nats.url(), &[]).await;
    nats.kill9();
    let ids = ids(30);
    for id in &ids {
        assert_eq!(post(&gateway, "kept", id).await.status(), 202);
    }
    gateway.kill9();
    nats.restart().await;
    gateway.restart().await;
    are_stored(&nats, &ids).await;
    let receipt: serde_json::Value = post(&gateway, "kept", &ids[7]).await.json().await.unwrap();
    assert_eq!(receipt["duplicate"], true);
    assert_eq!(stored(&nats, "kept").await, ids);
}

#[tokio::test]
async fn a_full_spool_is_answered_503_and_keeps_what_it_promised() {
    let mut nats = Nats::start().await;
    let gateway = gateway(&nats.url(), &[("NERVE_GATEWAY_SPOOL_MAX_BYTES", "8000")]).await;
    nats.kill9();
    let mut taken = Vec::new();
    let refused = loop {
        let id = format!("d-{}", taken.len());
        let response = post(&gateway, "kept", &id).await;
        if response.status() != 202 {
            break response;
        }
        taken.push(id);
    };
    assert!((5..20).contains(&taken.len()), "{taken:?}");
    assert!(refused.headers().contains_key("retry-after"), "{refused:?}");
    let (status, document) = problem(refused).await;
    assert!(status == 503 && document.to_string().contains("spool is full"), "{document}");
    nats.restart().await;
    are_stored(&nats, &taken).await;
    eventually("there is room again", seconds(10), || async {
        post(&gateway, "kept", "after").await.status().is_success().then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_event_that_the_log_will_never_take_is_put_aside_and_holds_up_nobody() {
    let mut nats = Nats::start().await;
    let gateway = gateway(&nats.url(), &[]).await;
    let streams = Streams::connect(&nats.url()).await;
    let mut config = streams.stream("EVENTS").await.cached_info().config.clone();
    config.max_message_size = 2000;
    streams.jetstream.update_stream(config).await.expect("an operator's own bound");
    let url = gateway.url("/hooks/kept");
    let large = format!(r#"{{"zen":"{}"}}"#, "x".repeat(3000));
    let refused = github::delivery(&url, "ping", "refused", large.clone()).send().await.unwrap();
    let (status, document) = problem(refused).await;
    assert!(status == 400 && document.to_string().contains("max_msg_size"), "{document}");
    nats.kill9();
    for (id, body) in [("first", BODY.to_owned()), ("large", large), ("last", BODY.to_owned())] {
        assert_eq!(github::delivery(&url, "ping", id, body).send().await.unwrap().status(), 202);
    }
    nats.restart().await;
    are_stored(&nats, &["first".to_owned(), "last".to_owned()]).await;
    let mut count = 0;
    eventually("webhooks go past the spool again", seconds(10), || {
        count += 1;
        let (gateway, id) = (&gateway, format!("after-{count}"));
        async move {
            let receipt: serde_json::Value = post(gateway, "kept", &id).await.json().await.ok()?;
            receipt["sequence"].is_u64().then_some(())
        }
    })
    .await;
    gateway.daemon.logs("the log names it", &["cannot be stored, and stays in the spool's file"]).await;
}

#[tokio::test]
async fn an_event_that_breaks_its_types_schema_is_refused_also_while_others_wait() {
    let mut nats = Nats::start().await;
    let gateway = gateway(&nats.url(), &[]).await;
    let source = SOURCES.split("\n\n").next().unwrap().replace("source.kept", "source.document");
    gateway.cli().deploy(Folder::new(&source).path()).await;
    source_is_served(&gateway, "document").await;
    let url = gateway.url("/hooks/document");
    nats.kill9();
    for n in 0..2 {
        let id = format!("wrong-{n}");
        let refused = github::delivery(&url, "uploaded", &id, r#"{"text": 7}"#).send().await.unwrap();
        assert_eq!(problem(refused).await.0, 400, "{n}");
        assert_eq!(github::delivery(&url, "ping", &n.to_string(), BODY).send().await.unwrap().status(), 202);
    }
    nats.restart().await;
    eventually("the spool is drained", seconds(30), || async {
        (stored(&nats, "document").await.len() >= 2).then_some(())
    })
    .await;
    assert_eq!(stored(&nats, "document").await, ["0", "1"]);
}

#[tokio::test]
async fn an_event_that_was_stored_unheard_is_not_stored_again_after_the_dedupe_window() {
    let nats = Nats::start().await;
    let proxy = Proxy::start(nats.url().trim_start_matches("nats://").to_owned()).await;
    let window = Duration::from_secs(10);
    let gateway = gateway(&format!("nats://{}", proxy.address), &[("NERVE_STREAMS_DEDUPE_WINDOW", "10s")]).await;
    proxy.mute(true);
    assert_eq!(post(&gateway, "kept", "unheard").await.status(), 202);
    assert_eq!(stored(&nats, "kept").await, ["unheard"], "the acknowledgement alone was lost");
    assert_eq!(post(&gateway, "kept", "second").await.status(), 202);
    tokio::time::sleep(window + Duration::from_secs(2)).await;
    proxy.mute(false);
    proxy.cut();
    are_stored(&nats, &["unheard".to_owned(), "second".to_owned()]).await;
}

/// What the senders to one source have seen.
#[derive(Default)]
struct Sent {
    taken: AtomicUsize,
    refused: AtomicUsize,
}

/// Sends until `stop`, each delivery again until it is taken; returns the ids that were.
async fn send(url: String, start: String, sent: Arc<Sent>, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut taken = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let id = format!("{start}-{}", taken.len());
        loop {
            let status =
                github::delivery(&url, "ping", &id, BODY).send().await.expect("the gateway itself is well").status();
            if status.is_success() {
                break;
            }
            assert_eq!(status, 503);
            sent.refused.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        sent.taken.fetch_add(1, Ordering::Relaxed);
        taken.push(id);
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    taken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_broker_killed_twenty_times_under_load_every_2xx_is_in_the_log_once() {
    let mut nats = Nats::start().await;
    let gateway = gateway(&nats.url(), &[]).await;
    let (plain, kept, stop) = (Arc::<Sent>::default(), Arc::<Sent>::default(), Arc::<AtomicBool>::default());
    let mut senders = JoinSet::new();
    for n in 0..8 {
        let (source, sent) = if n % 2 == 0 { ("github", &plain) } else { ("kept", &kept) };
        let url = gateway.url(&format!("/hooks/{source}"));
        senders.spawn(send(url, format!("{source}-{n}"), Arc::clone(sent), Arc::clone(&stop)));
    }
    for round in 0..20_u64 {
        let before = plain.taken.load(Ordering::Relaxed);
        eventually("senders are served", seconds(30), || async {
            (plain.taken.load(Ordering::Relaxed) > before + 20).then_some(())
        })
        .await;
        nats.kill9();
        tokio::time::sleep(Duration::from_millis(round * 37 % 300)).await;
        nats.restart().await;
    }
    stop.store(true, Ordering::Relaxed);
    let taken: Vec<String> = senders.join_all().await.into_iter().flatten().collect();
    assert!(plain.refused.load(Ordering::Relaxed) > 0, "the broker was really away");
    assert_eq!(kept.refused.load(Ordering::Relaxed), 0, "a spool refuses nothing while it has room");

    let mut counts = BTreeMap::<String, usize>::new();
    eventually("everything is in the log", seconds(60), || async {
        let all = [stored(&nats, "github").await, stored(&nats, "kept").await].concat();
        (all.len() >= taken.len()).then_some(all)
    })
    .await
    .into_iter()
    .for_each(|id| *counts.entry(id).or_default() += 1);
    let lost: Vec<_> = taken.iter().filter(|id| !counts.contains_key(*id)).collect();
    let twice: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(lost.is_empty() && twice.is_empty(), "lost: {lost:?}; more than once: {twice:?}");
}

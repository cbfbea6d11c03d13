//! Webhooks that come at once go to the log in batches: each is answered for itself all the same.

use crate::{problem, source_is_served};
use async_nats::jetstream::stream::Config;
use futures::future::join_all;
use nerve_tests::{Folder, Nats, Nerve, Streams, cluster::Cluster, eventually, github, seconds};
use serde_json::json;
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinSet;

const SOURCES: &str = "[source.github]\nprovider = \"github\"\nsecrets = [\"GITHUB_WEBHOOK_SECRET\"]\n\n\
    [source.orders]\nprovider = \"cloudevents\"\nverify = \"none\"\n";

async fn gateway(nats: &str, envs: &[(&str, &str)]) -> Nerve {
    let gateway = Nerve::gateway_with(nats, envs).await;
    gateway.cli().secret("GITHUB_WEBHOOK_SECRET", github::SECRET).await;
    gateway.cli().deploy(Folder::new(SOURCES).path()).await;
    source_is_served(&gateway, "github").await;
    gateway
}

async fn post(gateway: &Nerve, id: &str, text: &str) -> reqwest::Response {
    let body = json!({"zen": text, "of": id}).to_string();
    github::delivery(&gateway.url("/hooks/github"), "push", id, body).send().await.unwrap()
}

/// The ids of the pushes in the log, in its order.
async fn pushes(streams: &Streams) -> Vec<String> {
    let stored = streams.read("EVENTS", "events.github.push").await;
    stored.iter().map(|event| event.header("ce-id").to_owned()).collect()
}

/// Changes the log's settings as an operator may.
async fn configure(streams: &Streams, change: impl FnOnce(&mut Config)) {
    let mut config = streams.stream("EVENTS").await.cached_info().config.clone();
    change(&mut config);
    streams.jetstream.update_stream(config).await.unwrap();
}

#[tokio::test]
async fn webhooks_that_come_at_once_are_each_stored_once_and_known_when_they_come_again() {
    let nats = Nats::start().await;
    // The same one comes again over whichever of them has a turn.
    let gateway = gateway(&nats.url(), &[("NERVE_GATEWAY_THREADS", "3")]).await;
    let ids: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    for again in [false, true] {
        for response in join_all(ids.iter().map(|id| post(&gateway, id, "x"))).await {
            assert_eq!(response.status(), 202);
            let receipt: serde_json::Value = response.json().await.unwrap();
            assert_eq!((&receipt["type"], &receipt["duplicate"]), (&json!("github.push"), &json!(again)));
        }
    }
    let stored = pushes(&Streams::connect(&nats.url()).await).await;
    assert_eq!(stored.len(), ids.len());
    assert_eq!(BTreeSet::from_iter(stored), BTreeSet::from_iter(ids));
}

#[tokio::test]
async fn one_that_the_log_refuses_is_told_so_and_those_that_go_with_it_are_stored() {
    let nats = Nats::start().await;
    let gateway = gateway(&nats.url(), &[]).await;
    let streams = Streams::connect(&nats.url()).await;
    configure(&streams, |config| config.max_message_size = 4 << 10).await;
    let long = "x".repeat(5 << 10);
    for round in 0..4 {
        let is_long = |n: usize| n % 16 == 5;
        let sent = (0..96).map(|n| {
            let (gateway, text) = (&gateway, if is_long(n) { &long } else { "short" });
            async move { (n, post(gateway, &format!("{round}-{n}"), text).await) }
        });
        for (n, response) in join_all(sent).await {
            if is_long(n) {
                let (status, document) = problem(response).await;
                assert_eq!(status, 400, "{document}");
                assert!(document["detail"].as_str().unwrap().contains("max_msg_size"), "{document}");
            } else {
                assert_eq!(response.status(), 202);
            }
        }
    }
    let stored = pushes(&streams).await;
    let ids: BTreeSet<_> = stored.iter().collect();
    assert_eq!((stored.len(), ids.len()), (4 * 90, 4 * 90));
}

#[tokio::test]
async fn a_log_that_takes_no_batches_takes_events_one_by_one() {
    let nats = Nats::start().await;
    let gateway = gateway(&nats.url(), &[]).await;
    let streams = Streams::connect(&nats.url()).await;
    configure(&streams, |config| config.allow_batch_publish = false).await;
    let ids: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    for response in join_all(ids.iter().map(|id| post(&gateway, id, "x"))).await {
        assert_eq!(response.status(), 202);
    }
    assert_eq!(pushes(&streams).await.len(), ids.len());
}

#[tokio::test]
async fn with_the_broker_frozen_those_that_wait_behind_a_batch_are_answered_with_it() {
    let nats = Nats::start().await;
    let gateway = gateway(&nats.url(), &[]).await;
    nats.freeze();
    let ids: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    let sent = tokio::time::timeout(seconds(12), join_all(ids.iter().map(|id| post(&gateway, id, "x")))).await;
    for response in sent.expect("one ack timeout is waited for, not one after the other") {
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key("retry-after"));
    }
    nats.thaw();
    for response in join_all(ids.iter().map(|id| post(&gateway, id, "x"))).await {
        assert_eq!(response.status(), 202);
    }
    let stored = pushes(&Streams::connect(&nats.url()).await).await;
    assert_eq!((stored.len(), BTreeSet::from_iter(stored).len()), (300, 300));
}

#[tokio::test]
async fn the_events_of_one_delivery_are_stored_in_their_order() {
    let nats = Nats::start().await;
    let gateway = gateway(&nats.url(), &[]).await;
    // More than one batch holds, with one amid them that is too large to go with others.
    let events: Vec<_> = (0..150)
        .map(|n| {
            let text = if n == 70 { "x".repeat(80 << 10) } else { String::new() };
            json!({"specversion": "1.0", "id": n.to_string(), "source": "/shop", "type": "made", "data": text})
        })
        .collect();
    let (client, body) = (reqwest::Client::new(), json!(events).to_string());
    let response = eventually("the source is served", seconds(10), || async {
        let post = client.post(gateway.url("/hooks/orders")).body(body.clone());
        let response = post.header("content-type", "application/cloudevents-batch+json").send().await.unwrap();
        (response.status() == 202).then_some(response)
    })
    .await;
    let receipts: Vec<serde_json::Value> = response.json().await.unwrap();
    let stored = Streams::connect(&nats.url()).await.read("EVENTS", "events.orders.made").await;
    let expected: Vec<String> = (0..150).map(|n| n.to_string()).collect();
    assert_eq!(receipts.iter().map(|receipt| receipt["id"].as_str().unwrap()).collect::<Vec<_>>(), expected);
    assert_eq!(stored.iter().map(|event| event.header("ce-id")).collect::<Vec<_>>(), expected);
}

/// Sends until `stop`, each until it is taken; returns the ids that were.
async fn send(url: String, name: String, taken: Arc<AtomicUsize>, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut ids = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let id = format!("{name}-{}", ids.len());
        let body = json!({ "of": id }).to_string();
        while github::delivery(&url, "push", &id, body.clone()).send().await.unwrap().status() != 202 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        taken.fetch_add(1, Ordering::Relaxed);
        ids.push(id);
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_leader_of_a_cluster_killed_under_load_every_2xx_is_in_the_log_once() {
    let mut cluster = Cluster::start().await;
    let gateway = gateway(&cluster.url(0), &[("NERVE_STREAMS_REPLICAS", "3")]).await;
    let (taken, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let mut senders = JoinSet::new();
    for n in 0..32 {
        let url = gateway.url("/hooks/github");
        senders.spawn(send(url, n.to_string(), Arc::clone(&taken), Arc::clone(&stop)));
    }
    for _ in 0..3 {
        let before = taken.load(Ordering::Relaxed);
        eventually("senders are served", seconds(60), || async {
            (taken.load(Ordering::Relaxed) > before + 200).then_some(())
        })
        .await;
        let leader = cluster.leader("EVENTS").await;
        cluster.kill9(leader);
        cluster.restart(leader).await;
    }
    stop.store(true, Ordering::Relaxed);
    let sent: BTreeSet<String> = senders.join_all().await.into_iter().flatten().collect();
    let stored = pushes(&cluster.streams().await).await;
    let ids: BTreeSet<String> = stored.iter().cloned().collect();
    assert_eq!(stored.len(), ids.len(), "none is stored twice");
    assert_eq!(sent.difference(&ids).collect::<Vec<_>>(), Vec::<&String>::new(), "none is lost");
}

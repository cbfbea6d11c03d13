//! A data folder of the version before (`tests/fixtures/before`), taken over: nothing in it is lost, or run twice.

use nerve_tests::{Nerve, Receiver, Streams, checkout, eventually, github, seconds};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path, process::Command};

/// The unpacked data folder, the settings it was made with, and what is in it.
struct Before {
    folder: tempfile::TempDir,
    manifest: Value,
}

impl Before {
    fn unpacked() -> Self {
        let fixture = checkout().join("tests/fixtures/before");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = folder.path().join("settings.data");
        fs::create_dir(&data).expect("a folder for data");
        let unpacked = Command::new("tar").arg("-xzf").arg(fixture.join("data.tar.gz")).arg("-C").arg(&data).status();
        assert!(unpacked.expect("tar starts").success(), "the fixture cannot be unpacked");
        fs::copy(fixture.join("nerve-server.toml"), folder.path().join("settings.toml")).expect("the settings");
        let manifest = fs::read(fixture.join("manifest.json")).expect("the fixture's manifest");
        Self { folder, manifest: serde_json::from_slice(&manifest).expect("a manifest in JSON") }
    }

    /// The current version on this data, with these secrets and that broker state.
    async fn taken_over(&self) -> (Nerve, Streams) {
        let nerve = Nerve::up_configured(&self.folder.path().join("settings.toml")).await;
        let streams = Streams::connect(&nerve.nats).await;
        (nerve, streams)
    }
}

/// Waits until the functions have nothing left to do.
async fn at_rest(streams: &Streams) {
    eventually("everything is done", seconds(60), || async {
        for (stream, functions) in
            [("EVENTS", &["digest", "work", "begin", "queue", "answer"][..]), ("DEAD", &["work"])]
        {
            let stream = streams.jetstream.get_stream(stream).await.ok()?;
            for function in functions {
                let info = stream.consumer_info(format!("nerve-{function}")).await.ok()?;
                if info.num_pending + info.num_ack_pending as u64 > 0 {
                    return None;
                }
            }
        }
        Some(())
    })
    .await;
}

/// How many results each event has, by what its data says it is.
async fn results(streams: &Streams) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for stored in streams.read("EVENTS", "events.task.done").await {
        let data: Value = serde_json::from_slice(&stored.data).expect("a result in JSON");
        *counts.entry(data["n"].as_str().expect("the name of its event").to_owned()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn event_of_before_has_each_result_once() {
    let before = Before::unpacked();
    let (nerve, streams) = before.taken_over().await;
    at_rest(&streams).await;
    let wanted = before.manifest["results"].as_object().expect("the results of each event");
    let wanted: BTreeMap<String, usize> =
        wanted.iter().map(|(event, counts)| (event.clone(), counts[1].as_u64().unwrap() as usize)).collect();
    assert_eq!(results(&streams).await, wanted);
    assert_eq!(streams.count("EVENTS", "events.task.started").await, 1, "what was emitted early is there once");
    assert_eq!(streams.count("EVENTS", "events.event.digested").await, 3, "webhooks keep their results");
    // Functions run, with what is new.
    nerve.cli().run(&["publish", "task", "--data", r#"{"n": "new", "do": "done"}"#]).await.ok();
    at_rest(&streams).await;
    assert_eq!(results(&streams).await["new"], 2);
}

#[tokio::test]
async fn dead_letter_of_before_is_listed_and_redrivable() {
    let before = Before::unpacked();
    let (nerve, streams) = before.taken_over().await;
    at_rest(&streams).await;
    let listed = nerve.cli().run(&["dlq", "list", "--output", "json"]).await.ok().json();
    let listed = listed.as_array().expect("a list");
    let listed: BTreeMap<&str, u64> =
        listed.iter().map(|letter| (letter["event"]["id"].as_str().unwrap(), letter["id"].as_u64().unwrap())).collect();
    let wanted = before.manifest["letters"].as_object().unwrap();
    assert_eq!(listed, wanted.iter().map(|(event, id)| (event.as_str(), id.as_u64().unwrap())).collect());
    let shown = nerve.cli().run(&["dlq", "show", &listed["dead-2"].to_string()]).await.ok();
    assert!(shown.stdout.contains("not before the upgrade"), "{shown:?}");
    nerve.cli().run(&["dlq", "redrive", "--all"]).await.ok();
    eventually("both have results", seconds(30), || async {
        let results = results(&streams).await;
        (results.get("dead-1") == Some(&2) && results.get("dead-2") == Some(&2)).then_some(())
    })
    .await;
    at_rest(&streams).await;
    assert_eq!(streams.count("DEAD", "dead.>").await, 0);
    // What was dropped, and what was redriven before, is as it was.
    let results = results(&streams).await;
    assert_eq!((results.get("dead-0"), results.get("dead-3")), (None, Some(&2)));
}

#[tokio::test]
async fn webhook_that_was_seen_before_is_a_duplicate() {
    let before = Before::unpacked();
    let (nerve, streams) = before.taken_over().await;
    crate::source_is_served(&nerve, "github").await;
    let stored = streams.count("EVENTS", "events.github.>").await;
    for hook in before.manifest["hooks"].as_array().unwrap() {
        let (id, body) = (hook["delivery"].as_str().unwrap(), hook["body"].as_str().unwrap().to_owned());
        let answer = github::delivery(&nerve.url("/hooks/github"), "ping", id, body).send().await.unwrap();
        assert_eq!(answer.status(), 202);
        let told: Value = answer.json().await.unwrap();
        assert_eq!(told["duplicate"], true, "{told}");
    }
    assert_eq!(streams.count("EVENTS", "events.github.>").await, stored);
    let new = github::delivery(&nerve.url("/hooks/github"), "ping", "hook-new", "{}").send().await.unwrap();
    assert_eq!(new.json::<Value>().await.unwrap()["duplicate"], false);
    streams.reaches("EVENTS", "events.event.digested", 4, seconds(30)).await;
}

#[tokio::test]
async fn published_event_of_before_is_a_duplicate() {
    let before = Before::unpacked();
    let (nerve, streams) = before.taken_over().await;
    let stored = streams.count("EVENTS", "events.task").await;
    let request = reqwest::Client::new().post(nerve.url("/v1/events")).bearer_auth("the-key-of-everything");
    let event = json!({
        "specversion": "1.0", "id": "done-0", "source": "/before", "type": "task",
        "datacontenttype": "application/json", "data": {"n": "done-0", "do": "done"}
    });
    let request = request.header("content-type", "application/cloudevents+json").body(event.to_string());
    let told: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(told["duplicate"], true, "{told}");
    assert_eq!(streams.count("EVENTS", "events.task").await, stored);
}

#[tokio::test]
async fn answer_of_before_belongs_to_who_asked() {
    let before = Before::unpacked();
    let (nerve, _streams) = before.taken_over().await;
    let answer = &before.manifest["answer"];
    let read = async |key: &str| {
        let url = nerve.url(&format!("/v1/answers/{}", answer["id"].as_str().unwrap()));
        let request = reqwest::Client::new().get(url).bearer_auth(key).header("accept", "application/json");
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    let (status, told) = read("the-key-of-collection-alpha").await;
    assert_eq!((status, &told["answer"]), (200, &answer["answer"]), "{told}");
    assert_eq!(read("the-key-of-collection-beta").await.0, 404);
}

/// The manifest of the fixture's sink, for another endpoint.
fn sink(folder: &Path, url: &str) -> String {
    let manifest = fs::read_to_string(checkout().join("tests/fixtures/before/functions/nerve.toml")).unwrap();
    let start = manifest.find("[sink.crm]").expect("the sink in the fixture's manifest");
    let end = manifest[start..].find("\n[schedule").expect("the schedule after it") + start;
    let path = folder.join("nerve.toml");
    fs::write(&path, manifest[start..end].replace("http://127.0.0.1:9/", url)).expect("a manifest");
    folder.display().to_string()
}

#[tokio::test]
async fn sink_retry_and_schedule_of_before_go_on() {
    let before = Before::unpacked();
    let (nerve, streams) = before.taken_over().await;
    let endpoint = Receiver::start([]).await;
    let manifest = tempfile::tempdir().unwrap();
    nerve.cli().run(&["deploy", &sink(manifest.path(), &endpoint.url)]).await.ok();
    // Due since long, it may have been tried at the address of before first.
    let received = endpoint.reaches(1, seconds(60)).await;
    assert_eq!(received[0].header("webhook-id"), before.manifest["webhook_id"], "the id is that of the first attempt");
    eventually("nothing waits for the sink", seconds(30), || async {
        (streams.count("TIMERS", "timers.wait.crm.>").await == 0).then_some(())
    })
    .await;
    assert_eq!(endpoint.received().len(), 1);
    assert_eq!(streams.count("TIMERS", "timers.cron.newyear").await, 1);
    let listed = nerve.cli().run(&["list", "--output", "json"]).await.ok().json();
    assert_eq!(listed["schedules"][0]["spec"]["emit"], "newyear.due", "{listed}");
}

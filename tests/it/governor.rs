//! What runs without end is bounded: results that lead to results, log lines, bytes on the disk, waits that others ask for.

use crate::{post_event, problem};
use async_nats::jetstream::stream::DiscardPolicy;
use nerve_tests::{
    Folder, Nats, Nerve, Receiver, Streams, eventually, guest, nerve::Options, receiver::Reply, seconds,
};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};

async fn up(envs: &[(&str, &str)]) -> Nerve {
    let envs = envs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Nerve::up_with(Options { envs, ..Options::default() }).await
}

#[tokio::test]
async fn circle_of_functions_is_named_by_its_plan_and_ends_in_a_dead_letter() {
    let nerve = up(&[("NERVE_WORKER_MAX_HOPS", "20")]).await;
    let folder = guest::wasm("again", "events.loop.x", "loop.x", "", &guest::echo("loop.x"));
    let path = folder.path().display().to_string();
    let plan = nerve.cli().run(&["deploy", &path, "--dry-run", "--output", "json"]).await.ok().json();
    let warnings = plan["warnings"].to_string();
    assert!(warnings.contains("again → loop.x → again") && warnings.contains("worker.max_hops"), "{plan}");
    let deployed = nerve.cli().run(&["deploy", &path]).await.ok();
    assert!(deployed.stderr.contains("warning: cycle: again → loop.x → again"), "{deployed:?}");

    // The sender cannot say how far an event has come.
    let streams = Streams::connect(&nerve.nats).await;
    let event =
        json!({"specversion": "1.0", "type": "loop.x", "source": "/tests", "id": "1", "nervehops": "19", "data": 1});
    let request = reqwest::Client::new().post(nerve.url("/v1/events"));
    let sent = request.header("content-type", "application/cloudevents+json").body(event.to_string()).send().await;
    assert_eq!(sent.unwrap().status().as_u16() / 100, 2);
    streams.reaches("DEAD", "dead.again", 1, seconds(30)).await;
    let events = streams.read("EVENTS", "events.loop.x").await;
    let hops: Vec<&str> =
        events.iter().map(|event| event.headers.get("ce-nervehops").map_or("", String::as_str)).collect();
    assert_eq!((hops.len(), hops[0], hops[1], hops[20]), (21, "", "1", "20"));
    let letters = nerve.cli().run(&["dlq", "list", "--output", "json"]).await.ok().json().to_string();
    assert!(letters.contains("worker.max_hops is 20"), "{letters}");
}

#[tokio::test]
async fn second_pipeline_beside_the_first_is_named_by_its_plan() {
    let nerve = Nerve::up().await;
    let pipeline = nerve_tests::checkout().join("functions/rag").display().to_string();
    let first = nerve.cli().run(&["deploy", &pipeline, "--dry-run", "--output", "json"]).await.ok().json();
    assert_eq!(first["warnings"], json!([]), "Nerve's own pipeline is no mistake");
    nerve.cli().run(&["deploy", &pipeline]).await.ok();
    let example = nerve_tests::checkout().join("functions/examples/pipeline").display().to_string();
    let second = nerve.cli().run(&["deploy", &example, "--dry-run"]).await.ok();
    for said in ["retrieve and retriever both consume prompt.received", "generate and generator both lead from"] {
        assert!(second.stderr.contains(said), "{second:?}");
    }
}

#[tokio::test]
async fn function_that_logs_without_end_is_cut_and_its_log_says_so() {
    let nerve = up(&[("NERVE_WORKER_LOG_LINES", "50")]).await;
    let script = "import json, sys\nfor line in sys.stdin:\n    call = json.loads(line)\n    \
                  for n in range(20000): print('noise', n, file=sys.stderr)\n    \
                  print(json.dumps({'id': call['id'], 'events': [{'type': 'b', 'data': 1}]}), flush=True)\n";
    nerve.cli().deploy(guest::python("noisy", "events.a", "b", "", script).path()).await;
    let streams = Streams::connect(&nerve.nats).await;
    post_event(&nerve, "a", "1", "{}").await;
    streams.reaches("EVENTS", "events.b", 1, seconds(30)).await;
    let summary = eventually("the dropped lines are counted", seconds(20), || async {
        let lines = streams.read("LOGS", "logs.noisy").await;
        let lines = lines.iter().map(|line| serde_json::from_slice::<Value>(&line.data).unwrap());
        let said: Vec<String> = lines.map(|line| line["message"].as_str().unwrap().to_owned()).collect();
        let summary = said.iter().find(|line| line.contains("were dropped")).cloned()?;
        Some((summary, said.len()))
    })
    .await;
    assert!(summary.0.contains("worker.log_lines (50)"), "{summary:?}");
    assert!((50..5000).contains(&summary.1), "{summary:?}");
}

#[tokio::test]
async fn streams_are_bounded_in_bytes_and_a_dead_letter_is_never_removed_for_another() {
    let nats = Nats::start().await;
    let _nerve = Nerve::gateway(&nats.url()).await;
    let streams = Streams::connect(&nats.url()).await;
    for name in ["LOGS", "ANSWERS", "ATTEMPTS", "RUNS", "SEEN", "DEAD"] {
        let config = streams.stream(name).await.cached_info().config.clone();
        assert!(config.max_bytes > 0, "{name}: {config:?}");
        let discard = if name == "DEAD" { DiscardPolicy::New } else { DiscardPolicy::Old };
        assert_eq!(config.discard, discard, "{name}");
    }
}

#[tokio::test]
async fn buckets_are_bounded_also_those_of_an_older_nerve() {
    let nats = Nats::start().await;
    let streams = Streams::connect(&nats.url()).await;
    let bucket = async_nats::jetstream::kv::Config { bucket: "views".to_owned(), ..Default::default() };
    let old = streams.jetstream.create_key_value(bucket).await.unwrap();
    old.put("kept", "a conversation".into()).await.unwrap();
    let bounds = [("NERVE_STREAMS_BODIES_MAX_BYTES", "1200000"), ("NERVE_STREAMS_VIEWS_MAX_BYTES", "8000000")];
    let nerve = Nerve::gateway_with(&nats.url(), &bounds).await;
    let kv = ["functions", "secrets", "places", "views", "requests"].map(|name| format!("KV_{name}"));
    for name in kv.into_iter().chain(["DROPS".to_owned()]) {
        let config = streams.stream(&name).await.cached_info().config.clone();
        assert!(config.max_bytes > 0, "{name}: {config:?}");
        let discard = if name == "DROPS" { DiscardPolicy::Old } else { DiscardPolicy::New };
        assert_eq!(config.discard, discard, "{name}");
    }
    for (name, bound) in [("OBJ_artifacts", "21474836480"), ("OBJ_bodies", "1200000")] {
        let config = streams.stream(name).await.cached_info().config.clone();
        assert_eq!(config.metadata.get("nerve-max-bytes").map(String::as_str), Some(bound), "{name}: {config:?}");
        assert_eq!(config.max_bytes, -1, "a shared broker sets nothing aside for what may never come");
    }
    assert_eq!(streams.stream("KV_views").await.cached_info().config.max_bytes, 8_000_000);
    assert_eq!(old.get("kept").await.unwrap().unwrap(), "a conversation");

    // The first large body fits, the second does not; small events go on, and so does the first body.
    let large = |letter: &str| json!(letter.repeat(1_020_000)).to_string();
    assert_eq!(post_event(&nerve, "a", "1", &large("x")).await, 202);
    let stored = streams.stream("OBJ_bodies").await.cached_info().state.bytes;
    let request = reqwest::Client::new().post(nerve.url("/v1/events")).header("content-type", "application/json");
    let request = request.header("ce-specversion", "1.0").header("ce-type", "a").header("ce-source", "/tests");
    let refused = request.header("ce-id", "2").body(large("y")).send().await.unwrap();
    assert!(refused.headers().contains_key("retry-after"));
    let (status, document) = problem(refused).await;
    let detail = document["detail"].to_string();
    assert!(status == 503 && detail.contains("`bodies` is full"), "{document}");
    assert!(detail.contains("streams.bodies_max_bytes"), "{document}");
    assert_eq!(streams.stream("OBJ_bodies").await.cached_info().state.bytes, stored, "no part of it is stored");
    assert_eq!(post_event(&nerve, "a", "3", "{}").await, 202);
}

#[tokio::test]
async fn wait_that_an_endpoint_asks_for_is_a_day_at_most() {
    let endpoint = Receiver::start([]).await;
    endpoint.from_now_on(Reply::Later(503, "18446744073709551615"));
    let nerve = Nerve::up().await;
    let chat = endpoint.url.replace("/hook", "/v1");
    let manifest = format!(
        "[function.service]\nruntime = \"http\"\nurl = \"{}\"\non = [\"events.a\"]\nemits = [\"b\"]\n\
         [function.generate]\nruntime = \"builtin\"\nuse = \"rag/generate\"\non = [\"events.documents.reranked\"]\n\
         emits = [\"answer.generated\", \"answer.token\", \"answer.citation\"]\n\
         with = {{ endpoint = \"{chat}\", chat_model = \"m\" }}\n\
         [sink.hook]\nurl = \"{}\"\non = [\"events.c\"]\nallow = [\"127.0.0.1\"]\n",
        endpoint.url, endpoint.url
    );
    nerve.cli().deploy(Folder::new(&manifest).path()).await;
    let streams = Streams::connect(&nerve.nats).await;
    let hit = json!({"id": "d-0", "document": "d", "name": "d", "index": 0, "start": 0, "end": 31, "heading": [],
        "text": "Late invoices cost ten percent.", "score": 1.0});
    let reranked = json!({"question": "?", "documents": [hit]}).to_string();
    for (ty, data) in [("a", "{}"), ("documents.reranked", &reranked), ("c", "{}")] {
        assert_eq!(post_event(&nerve, ty, ty, data).await / 100, 2, "{ty}");
    }
    for function in ["service", "generate"] {
        let said = eventually("its attempt failed", seconds(30), || async {
            let lines = streams.read("LOGS", &format!("logs.{function}")).await;
            Some(String::from_utf8(lines.first()?.data.to_vec()).unwrap())
        })
        .await;
        assert!(said.contains("next attempt in 1day"), "{function}: {said}");
    }
    let attempt = eventually("the sink has posted", seconds(30), || async {
        Some(serde_json::from_slice::<Value>(&streams.read("ATTEMPTS", ">").await.first()?.data).unwrap())
    })
    .await;
    let day = time::OffsetDateTime::now_utc() + time::Duration::hours(27);
    let next = attempt["next"].as_str().unwrap();
    let next = time::OffsetDateTime::parse(next, &time::format_description::well_known::Rfc3339).unwrap();
    assert!(next < day && next > day - time::Duration::hours(5), "{attempt}");
}

/// A small disk of the test's own.
struct Disk(tempfile::TempDir);

impl Disk {
    fn of(size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).status();
        assert!(mounted.is_ok_and(|status| status.success()), "a tmpfs is mounted: this test runs as root");
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn broker_that_ran_out_of_disk_stores_again_once_there_is_room() {
    let disk = Disk::of("128m");
    // Nothing is kept free, so that the broker itself finds the disk full.
    let envs = vec![("NERVE_STREAMS_DISK_RESERVE".to_owned(), "0".to_owned())];
    let data = disk.path().join("data");
    let nerve = Nerve::up_with(Options { data: Some(data), envs, ..Options::default() }).await;
    assert_eq!(post_event(&nerve, "a", "before", "{}").await, 202);
    let ballast = disk.path().join("ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 64 << 10]).is_ok() {}
    let large = json!("x".repeat(100_000)).to_string();
    let mut number = 0;
    eventually("the broker refuses an event", seconds(30), || {
        number += 1;
        let (nerve, id, large) = (&nerve, number.to_string(), &large);
        async move { (post_event(nerve, "a", &id, large).await == 503).then_some(()) }
    })
    .await;
    drop(file);
    fs::remove_file(ballast).unwrap();
    eventually("it stores again by itself", seconds(60), || async {
        (post_event(&nerve, "a", "after", "{}").await == 202).then_some(())
    })
    .await;
    let streams = Streams::connect(&nerve.nats).await;
    let stored = streams.read("EVENTS", "events.a").await;
    assert!(stored.iter().any(|event| event.header("ce-id") == "before"), "nothing that was acknowledged is lost");
}

#[tokio::test]
async fn full_disk_is_said_by_readiness_the_503_and_the_log_until_there_is_room() {
    let disk = Disk::of("128m");
    let data = disk.path().join("data");
    let envs = vec![("NERVE_STREAMS_DISK_RESERVE".to_owned(), (32 << 20).to_string())];
    let nerve = Nerve::up_with(Options { data: Some(data), envs, ..Options::default() }).await;
    assert_eq!(post_event(&nerve, "a", "before", "{}").await, 202);
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![0; 100 << 20]).unwrap();
    let detail = eventually("intake stops", seconds(10), || async {
        let request = reqwest::Client::new().post(nerve.url("/v1/events")).header("content-type", "application/json");
        let request = request.header("ce-specversion", "1.0").header("ce-type", "a").header("ce-source", "/tests");
        let response = request.header("ce-id", uuid::Uuid::now_v7().to_string()).body("{}").send().await.ok()?;
        (response.status() == 503 && response.headers().contains_key("retry-after")).then_some(response)
    })
    .await;
    let (_, document) = problem(detail).await;
    assert!(document["detail"].as_str().unwrap().contains("the broker's disk is full"), "{document}");
    let ready = reqwest::get(nerve.url("/readyz")).await.unwrap();
    assert_eq!(ready.status(), 503);
    let ready: Value = ready.json().await.unwrap();
    let check = ready["checks"].as_array().unwrap().iter().find(|check| check["name"] == "disk").cloned();
    assert!(check.is_some_and(|check| check["detail"].to_string().contains("streams.disk_reserve")), "{ready}");
    assert!(nerve.daemon.stderr().contains("the broker's disk is full"), "{}", nerve.daemon.stderr());
    fs::remove_file(ballast).unwrap();
    eventually("intake goes on by itself", seconds(10), || async {
        (post_event(&nerve, "a", "after", "{}").await == 202).then_some(())
    })
    .await;
    assert_eq!(reqwest::get(nerve.url("/readyz")).await.unwrap().status(), 200);
}

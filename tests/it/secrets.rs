//! Secrets: they reach the function that names them, and nobody else sees them.

use crate::post_event;
use data_encoding::HEXLOWER;
use nerve_tests::{Nerve, Streams, guest, seconds};

const VALUE: &str = "hunter2-hunter2-hunter2";

#[tokio::test]
async fn a_secret_reaches_its_function_and_is_shown_nowhere() {
    let nerve = Nerve::up().await;
    let cli = nerve.cli();
    let streams = Streams::connect(&nerve.nats).await;
    cli.secret("TOKEN", &format!("{VALUE}\n")).await;
    cli.secret("OTHER", "not for this function").await;
    // It answers with a digest, so that the value itself is in no event.
    let script = "import hashlib, json, os, sys\n\
                  for line in sys.stdin:\n    \
                      call = json.loads(line)\n    \
                      digest = hashlib.sha256(os.environ['TOKEN'].encode()).hexdigest()\n    \
                      data = {'digest': digest, 'other': 'OTHER' in os.environ, 'lang': os.environ.get('LANG')}\n    \
                      print(json.dumps({'id': call['id'], 'events': [{'type': 'b', 'data': data}]}), flush=True)\n";
    let folder = guest::python("keeper", "events.a", "b", "secrets = [\"TOKEN\"]\nenv = { LANG = \"xx\" }", script);
    cli.deploy(folder.path()).await;
    post_event(&nerve, "a", "1", "{}").await;
    streams.reaches("EVENTS", "events.b", 1, seconds(20)).await;
    let answer: serde_json::Value = serde_json::from_slice(&streams.read("EVENTS", "events.b").await[0].data).unwrap();
    let digest = HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest(VALUE));
    assert_eq!(answer, serde_json::json!({"digest": digest, "other": false, "lang": "xx"}));

    let mut shown = String::new();
    for args in [
        &["secrets", "list"][..],
        &["secrets", "list", "--output", "json"],
        &["describe", "keeper"],
        &["describe", "keeper", "--output", "json"],
        &["list", "--output", "json"],
    ] {
        shown.push_str(&cli.run(args).await.ok().text());
    }
    assert!(shown.contains("TOKEN"), "{shown}");
    shown.push_str(&nerve.daemon.stdout());
    shown.push_str(&nerve.daemon.stderr());
    assert!(!shown.contains(VALUE), "{shown}");
    for stream in ["KV_secrets", "KV_functions", "EVENTS", "LOGS"] {
        for message in streams.read(stream, ">").await {
            let found = message.data.windows(VALUE.len()).any(|window| window == VALUE.as_bytes());
            assert!(!found && !message.headers.values().any(|value| value.contains(VALUE)), "in {}", message.subject);
        }
    }
    assert!(streams.count("KV_secrets", ">").await >= 2, "they are stored there, encrypted");

    cli.run(&["secrets", "remove", "TOKEN"]).await.ok();
    let left = cli.run(&["secrets", "list"]).await.ok();
    assert!(!left.stdout.contains("TOKEN") && left.stdout.contains("OTHER"), "{left:?}");
}

#[tokio::test]
async fn a_secret_that_is_set_anew_is_the_one_that_verifies() {
    let nerve = crate::up_with_github().await;
    let url = nerve.url("/hooks/github");
    let send = |secret: &str, body: &'static str| {
        let signature = nerve_tests::github::signature(secret, body.as_bytes());
        nerve_tests::github::unsigned(&url, "ping", body).header("X-Hub-Signature-256", signature).body(body).send()
    };
    nerve.cli().secret("GITHUB_WEBHOOK_SECRET", "the second secret").await;
    nerve_tests::eventually("the new secret verifies", seconds(10), || async {
        send("the second secret", "1").await.ok()?.status().is_success().then_some(())
    })
    .await;
    assert_eq!(send(nerve_tests::github::SECRET, "2").await.unwrap().status(), 401);
}

#[tokio::test]
async fn rotated_secret_reaches_a_running_process_and_costs_no_event() {
    let nerve = Nerve::up().await;
    let cli = nerve.cli();
    let streams = Streams::connect(&nerve.nats).await;
    cli.secret("TOKEN", "first").await;
    let script = "import json, os, sys, time\n\
                  for line in sys.stdin:\n    \
                      call = json.loads(line)\n    \
                      time.sleep(0.02)\n    \
                      data = {'token': os.environ['TOKEN'], 'pid': os.getpid(), 'of': call['event']['id']}\n    \
                      print(json.dumps({'id': call['id'], 'events': [{'type': 'b', 'data': data}]}), flush=True)\n";
    let extra = "secrets = [\"TOKEN\"]\nconcurrency = 4\nretry = { attempts = 20, backoff = [\"1h\"] }";
    cli.deploy(guest::python("keeper", "events.a", "b", extra, script).path()).await;
    let results = || async {
        let events = streams.read("EVENTS", "events.b").await;
        events.iter().map(|event| serde_json::from_slice(&event.data).unwrap()).collect::<Vec<serde_json::Value>>()
    };
    let mut posted = 0;
    let mut pids = Vec::new();
    for (previous, token) in [("first", "second"), ("second", "third")] {
        for _ in 0..50 {
            posted += 1;
            post_event(&nerve, "a", &posted.to_string(), "{}").await;
        }
        cli.secret("TOKEN", token).await;
        // Events keep coming until one has seen the new value.
        let deadline = std::time::Instant::now() + seconds(30);
        while !results().await.iter().any(|result| result["token"] == token) {
            assert!(std::time::Instant::now() < deadline, "no event has seen the {token} value");
            posted += 1;
            post_event(&nerve, "a", &posted.to_string(), "{}").await;
        }
        streams.reaches("EVENTS", "events.b", posted, seconds(60)).await;
        let old = results().await.into_iter().find(|result| result["token"] == previous).unwrap();
        pids.push(old["pid"].as_u64().unwrap());
        nerve_tests::eventually("the old process has ended", seconds(20), || async {
            let gone = |pid: &u64| !std::path::Path::new(&format!("/proc/{pid}")).exists();
            pids.iter().all(gone).then_some(())
        })
        .await;
    }
    let results = results().await;
    let handled: std::collections::BTreeSet<&str> =
        results.iter().map(|result| result["of"].as_str().unwrap()).collect();
    assert_eq!((results.len(), handled.len()), (posted, posted), "each event once");
    assert_eq!(streams.count("DEAD", ">").await, 0);
    let last: Vec<_> = results.iter().filter(|result| result["token"] == "third").collect();
    assert!(last.iter().all(|result| result["pid"] == last[0]["pid"]), "one process has the last value: {last:?}");
    let folders = nerve_tests::eventually("the old folders are removed", seconds(20), || async {
        let hosts = std::fs::read_dir(std::path::Path::new(nerve.data()).join("processes")).ok()?;
        let loads = hosts.flatten().filter_map(|host| std::fs::read_dir(host.path()).ok()).flatten().flatten();
        let names: Vec<_> = loads.filter(|load| load.path().is_dir()).map(|load| load.file_name()).collect();
        (names.len() == 1).then_some(names)
    });
    assert!(folders.await[0].to_string_lossy().starts_with("keeper-"));
}

#[tokio::test]
async fn a_function_whose_secret_is_missing_says_so() {
    let nerve = Nerve::up().await;
    let folder = guest::python("keeper", "events.a", "b", "secrets = [\"NOWHERE\"]", "");
    let deployed = nerve.cli().run(&["deploy", &folder.path().display().to_string()]).await;
    assert!(deployed.text().contains("NOWHERE"), "{deployed:?}");
}

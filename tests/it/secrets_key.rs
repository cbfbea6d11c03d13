//! A new secrets key in place of the current one, while functions that use secrets run.

use futures::StreamExt;
use nerve_tests::{
    Cli, Folder, Nerve, Streams, eventually, guest,
    joined::Machine,
    nerve::{self, Options},
    seconds,
};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path, process::Stdio};

/// A function that says which secret it has, and which process it is.
fn keeper() -> Folder {
    let script = "import json, os, sys\n\
                  for line in sys.stdin:\n    \
                      call = json.loads(line)\n    \
                      data = {'token': os.environ['TOKEN'], 'pid': os.getpid(), 'cwd': os.getcwd()}\n    \
                      print(json.dumps({'id': call['id'], 'events': [{'type': 'kept', 'data': data}]}), flush=True)\n";
    guest::python("keeper", "events.a", "kept", "secrets = [\"TOKEN\"]", script)
}

async fn kept(streams: &Streams) -> Vec<Value> {
    let events = streams.read("EVENTS", "events.kept").await;
    events.iter().map(|event| serde_json::from_slice(&event.data).unwrap()).collect()
}

/// The stored values of the secrets, by subject.
async fn stored(streams: &Streams) -> Vec<(String, bytes::Bytes)> {
    let messages = streams.read("KV_secrets", "$KV.secrets.*").await;
    messages.into_iter().map(|message| (message.subject, message.data)).collect()
}

/// Sends an event, and waits until it was handled with this secret.
async fn works_with(nerve: &Nerve, streams: &Streams, token: &str) {
    let before = kept(streams).await.len();
    nerve.cli().run(&["publish", "a", "--data", "{}"]).await.ok();
    let handled = || async { kept(streams).await.into_iter().nth(before) };
    let last = eventually("the event is handled", seconds(20), handled).await;
    assert_eq!(last["token"], token);
}

fn key_file(data: &Path) -> String {
    fs::read_to_string(data.join("secrets.key")).unwrap()
}

#[tokio::test]
async fn rotated_key_reaches_machines_and_costs_no_event_and_no_restart() {
    let nerve = Nerve::up().await;
    let (cli, streams) = (nerve.cli(), Streams::connect(&nerve.nats).await);
    cli.secret("TOKEN", "first").await;
    cli.secret("OTHER", "second").await;
    cli.deploy(keeper().path()).await;
    let machine = Machine::joined(&nerve, "build-2").await;
    let away = Machine::joined(&nerve, "build-3").await;
    let gone = Machine::joined(&nerve, "build-4").await;
    let worker = machine.worker().await;
    let on_data = Cli::with(&["--data", nerve.data()]);
    on_data.run(&["access", "revoke", "build-4"]).await.ok();
    // Both workers have the function before the key is replaced.
    let (mut sent, places) = (0, || async {
        let kept = kept(&streams).await;
        kept.iter().map(|kept| machine.has(kept["cwd"].as_str().unwrap())).collect::<BTreeSet<bool>>()
    });
    while places().await.len() < 2 {
        cli.run(&["publish", "a", "--data", "{}"]).await.ok();
        sent += 1;
        assert!(sent < 200, "both workers take events");
    }
    let (old_key, before) = (key_file(Path::new(nerve.data())), stored(&streams).await);
    let sending = async {
        for _ in 0..30 {
            cli.run(&["publish", "a", "--data", "{}"]).await.ok();
        }
    };
    let rotating = on_data.run(&["secrets", "rotate-key", "--output", "json"]);
    let ((), rotated) = tokio::join!(sending, rotating);
    let rotated = rotated.ok().json();
    assert_eq!((&rotated["secrets"], &rotated["unreadable"]), (&2.into(), &serde_json::json!([])), "{rotated}");
    assert_eq!(
        (&rotated["informed"], &rotated["waiting"]),
        (&serde_json::json!(["build-2"]), &serde_json::json!(["build-3"]))
    );
    streams.reaches("EVENTS", "events.kept", sent + 30, seconds(30)).await;
    let kept = kept(&streams).await;
    assert_eq!(kept.len(), sent + 30);
    assert!(kept.iter().all(|kept| kept["token"] == "first"));
    let pids: BTreeSet<u64> = kept.iter().map(|kept| kept["pid"].as_u64().unwrap()).collect();
    assert_eq!(pids.len(), 2, "no process was started anew");
    assert_eq!(streams.count("DEAD", ">").await, 0);

    // Every secret is stored anew, and the old key is nowhere.
    let after = stored(&streams).await;
    assert!(after.len() == 2 && after.iter().all(|secret| !before.contains(secret)));
    let new_key = key_file(Path::new(nerve.data()));
    assert_ne!(new_key, old_key);
    let taken = || async { (key_file(&machine.data()) == new_key).then_some(()) };
    eventually("the machine keeps the new key alone", seconds(10), taken).await;
    for data in [nerve.data().into(), machine.data()] {
        assert!(!data.join("secrets.key.next").exists(), "{}", data.display());
    }
    // What is set from now on is read everywhere; one that was away takes the key at its start, and one that was revoked has none.
    cli.secret("TOKEN", "third").await;
    let later = away.worker().await;
    let taken = || async { (key_file(&away.data()) == new_key).then_some(()) };
    eventually("the machine that was away has the new key", seconds(10), taken).await;
    assert_eq!(key_file(&gone.data()), old_key);
    let all = || async {
        cli.run(&["publish", "a", "--data", "{}"]).await.ok();
        let kept = crate::secrets_key::kept(&streams).await;
        let third = |machine: &Machine| {
            kept.iter().any(|kept| kept["token"] == "third" && machine.has(kept["cwd"].as_str().unwrap()))
        };
        (third(&machine) && third(&away)).then_some(())
    };
    eventually("both machines read what was set since", seconds(30), all).await;
    for daemon in [&worker, &later, &nerve.daemon] {
        let log = daemon.stderr();
        assert!(!log.contains("does not have") && !log.contains(new_key.trim()), "{log}");
    }
}

/// `nerve secrets rotate-key`, which is killed at the first message on this subject; says whether it was still running.
async fn kill_rotation_at(nerve: &Nerve, subject: &'static str) -> bool {
    let client = nerve_tests::broker::client(&nerve.nats).await.unwrap();
    let mut messages = client.subscribe(subject).await.unwrap();
    client.flush().await.unwrap();
    let mut command = nerve::command(["secrets", "rotate-key", "--data", nerve.data()]);
    let mut rotation = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    tokio::time::timeout(seconds(20), messages.next()).await.expect("a message").expect("a connection");
    let was_running = rotation.try_wait().unwrap().is_none();
    rotation.kill().unwrap();
    rotation.wait().unwrap();
    was_running
}

#[tokio::test]
async fn killed_rotation_loses_no_secret_and_goes_on() {
    let mut nerve = Nerve::up_with(Options::default()).await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().secret("TOKEN", "first").await;
    nerve.cli().deploy(keeper().path()).await;
    works_with(&nerve, &streams, "first").await;
    let data = Path::new(nerve.data()).to_owned();
    let old_key = key_file(&data);

    // Before anything is encrypted for the new key: the server cannot say that it has it.
    kill(nerve.server(), Signal::SIGSTOP).unwrap();
    assert!(kill_rotation_at(&nerve, "$KV.secrets.nerve.rotation").await);
    kill(nerve.server(), Signal::SIGCONT).unwrap();
    assert!(data.join("secrets.key.next").exists() && key_file(&data) == old_key);
    works_with(&nerve, &streams, "first").await;

    // After the first of the secrets was: some are for the one key, some for the other.
    let names: Vec<String> = (0..12).map(|n| format!("MORE_{n}")).collect();
    let cli = nerve.cli();
    futures::future::join_all(names.iter().map(|name| cli.secret(name, name))).await;
    let before = stored(&streams).await;
    kill_rotation_at(&nerve, "$KV.secrets.*").await;
    nerve.restart().await;
    let streams = Streams::connect(&nerve.nats).await;
    works_with(&nerve, &streams, "first").await;
    nerve.cli().secret("TOKEN", "second").await;
    let seen = || async {
        nerve.cli().run(&["publish", "a", "--data", "{}"]).await.ok();
        kept(&streams).await.iter().any(|kept| kept["token"] == "second").then_some(())
    };
    eventually("a secret that is set meanwhile is read", seconds(20), seen).await;

    let on_data = Cli::with(&["--data", nerve.data()]);
    let rotated = on_data.run(&["secrets", "rotate-key", "--output", "json"]).await.ok().json();
    assert_eq!(rotated["unreadable"], serde_json::json!([]), "{rotated}");
    assert!(!data.join("secrets.key.next").exists() && key_file(&data) != old_key);
    assert_eq!(streams.count("KV_secrets", "$KV.secrets.nerve.rotation").await, 1, "the marker of its removal");
    assert!(stored(&streams).await.iter().all(|secret| !before.contains(secret)), "all are encrypted anew");
    nerve.restart().await;
    works_with(&nerve, &Streams::connect(&nerve.nats).await, "second").await;
}

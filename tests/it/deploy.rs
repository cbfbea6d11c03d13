//! Deploying, replacing, removing and calling functions, with no restart of anything.

use crate::post_event;
use nerve_tests::{Nerve, Streams, eventually, guest, seconds};

#[tokio::test]
async fn deploying_twice_says_that_nothing_changed_and_a_dry_run_changes_nothing() {
    let nerve = Nerve::up().await;
    let folder = guest::wasm("echo", "events.a", "b", "", &guest::echo("b"));
    let path = folder.path().display().to_string();
    let dry = nerve.cli().run(&["deploy", &path, "--dry-run"]).await.ok();
    assert!(dry.stdout.contains("echo"), "the plan names the function: {dry:?}");
    let none = nerve.cli().run(&["list", "--output", "json"]).await.ok();
    assert!(!none.stdout.contains("echo"), "{none:?}");
    let first = nerve.cli().deploy(folder.path()).await;
    assert!(first.text().contains("echo") && !first.text().contains("unchanged"), "{first:?}");
    let second = nerve.cli().deploy(folder.path()).await;
    let said = second.text().to_lowercase();
    assert!(said.contains("unchanged") || said.contains("nothing"), "{second:?}");
    let listed = nerve.cli().run(&["list", "--output", "json"]).await.ok();
    assert!(listed.stdout.contains("echo"), "{listed:?}");
    let described = nerve.cli().run(&["describe", "echo"]).await.ok();
    assert!(described.stdout.contains("events.a"), "{described:?}");
}

#[tokio::test]
async fn a_deploy_replaces_and_a_removal_stops_a_function_with_no_restart() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(guest::wasm("echo", "events.a", "b.>", "", &guest::echo("b.one")).path()).await;
    post_event(&nerve, "a", "1", "{}").await;
    streams.reaches("EVENTS", "events.b.one", 1, seconds(20)).await;
    nerve.cli().deploy(guest::wasm("echo", "events.a", "b.>", "", &guest::echo("b.two")).path()).await;
    let mut sent = 1;
    eventually("the new component answers", seconds(20), || {
        sent += 1;
        let id = sent.to_string();
        let (nerve, streams) = (&nerve, &streams);
        async move {
            post_event(nerve, "a", &id, "{}").await;
            (streams.count("EVENTS", "events.b.two").await > 0).then_some(())
        }
    })
    .await;
    eventually("each event is answered, by one or the other", seconds(20), || async {
        (streams.count("EVENTS", "events.b.*").await == sent).then_some(())
    })
    .await;
    nerve.cli().run(&["remove", "echo"]).await.ok();
    let consumers = eventually("the function's consumer is gone", seconds(20), || async {
        streams.functions("EVENTS").await.is_empty().then_some(())
    });
    consumers.await;
    post_event(&nerve, "a", "last", "{}").await;
    tokio::time::sleep(seconds(1)).await;
    assert_eq!(streams.count("EVENTS", "events.b.*").await, sent, "nobody answers any more");
    nerve.cli().run(&["describe", "echo"]).await.failed(1);
}

#[tokio::test]
async fn a_function_can_be_invoked_and_events_published_from_the_command_line_and_over_http() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    nerve.cli().deploy(guest::wasm("echo", "events.a", "b", "", &guest::echo("b")).path()).await;
    let invoked = nerve.cli().run(&["invoke", "echo", "--data", r#"{"n":41}"#, "--output", "json"]).await.ok();
    assert!(invoked.stdout.replace(' ', "").contains(r#""n":41"#), "{invoked:?}");
    let post = reqwest::Client::new().post(nerve.url("/v1/functions/echo/invoke")).body(r#"{"n":40}"#);
    let response = post.header("content-type", "application/json").send().await.unwrap();
    assert_eq!(response.status(), 200);
    let answer: serde_json::Value = response.json().await.unwrap();
    assert_eq!((&answer[0]["type"], &answer[0]["data"]["n"]), (&"b".into(), &40.into()), "{answer}");
    assert_eq!(streams.total().await, 0, "an invocation leaves nothing in the log");
    nerve.cli().run(&["publish", "a", "--data", r#"{"n":42}"#]).await.ok();
    streams.reaches("EVENTS", "events.b", 1, seconds(20)).await;
    let nobody = reqwest::Client::new().post(nerve.url("/v1/functions/nobody/invoke")).body("{}").send().await.unwrap();
    assert_eq!(crate::problem(nobody).await.0, 404);
    let unknown = nerve.cli().run(&["invoke", "nobody", "--data", "{}"]).await.failed(1);
    assert!(unknown.stderr.contains("nobody"), "{unknown:?}");
}

#[tokio::test]
async fn a_component_that_is_none_is_refused_when_it_is_deployed() {
    let nerve = Nerve::up().await;
    for bytes in [&b"not wasm at all"[..], b"\0asm\x01\0\0\0"] {
        let folder = guest::wasm("broken", "events.a", "b", "", bytes);
        let refused = nerve.cli().run(&["deploy", &folder.path().display().to_string()]).await.failed(1);
        assert!(refused.stderr.contains("broken.wasm"), "{refused:?}");
    }
    let missing = guest::wasm("missing", "events.a", "b", "", b"");
    std::fs::remove_file(missing.file("missing.wasm")).unwrap();
    let refused = nerve.cli().run(&["deploy", &missing.path().display().to_string()]).await.failed(1);
    assert!(refused.stderr.contains("missing.wasm"), "{refused:?}");
    let listed = nerve.cli().run(&["list", "--output", "json"]).await.ok();
    assert!(!listed.stdout.contains("broken") && !listed.stdout.contains("missing"), "{listed:?}");
}

#[tokio::test]
async fn a_template_deploys_and_runs() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let folder = tempfile::tempdir().unwrap();
    let parent = folder.path().display().to_string();
    let path = folder.path().join("words").display().to_string();
    let new = ["new", "words", "--template", "process-python", "--path", &parent];
    nerve.cli().run(&new).await.ok();
    let manifest = std::fs::read_to_string(folder.path().join("words/nerve.toml")).unwrap();
    nerve.cli().run(&["deploy", &path]).await.ok();
    let on = manifest.lines().find_map(|line| line.split_once("\"events.")).expect("a subject under events.").1;
    let ty = on.split('"').next().unwrap().to_owned();
    assert_eq!(post_event(&nerve, &ty, "1", r#"{"text":"one two three"}"#).await / 100, 2);
    streams.reaches("EVENTS", ">", 2, seconds(20)).await;
    let events = streams.read("EVENTS", ">").await;
    assert_eq!(events[1].header("ce-causationid"), "1");
    let again = nerve.cli().run(&new).await;
    assert_ne!(again.code, Some(0), "a folder that is there already is not written over: {again:?}");
}

#[tokio::test]
async fn every_template_has_a_manifest_that_parses() {
    let folder = tempfile::tempdir().unwrap();
    for template in ["wasm-js", "wasm-python", "wasm-rust", "process-python"] {
        let path = folder.path().join(template);
        let mut command = nerve_tests::nerve::command(["new", template, "--template", template, "--path"]);
        command.arg(folder.path());
        nerve_tests::nerve::call(command, "").await.ok();
        let manifest = std::fs::read_to_string(path.join("nerve.toml")).unwrap();
        let parsed = nerve_core::Manifest::parse(&manifest);
        assert!(parsed.is_ok_and(|manifest| manifest.functions.len() == 1), "{template}: {manifest}");
    }
}

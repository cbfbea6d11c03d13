//! Commands that people type, and what they read.

use crate::post_event;
use nerve_tests::{Cli, Nerve, guest, seconds};

#[tokio::test]
async fn tail_prints_events_as_they_are_asked_for_and_ends_after_n() {
    let nerve = Nerve::up().await;
    for n in 0..5 {
        post_event(&nerve, "a.b", &format!("event-{n}"), "{\"n\":1}").await;
    }
    let text = nerve.cli().run(&["tail", "--from", "first", "-n", "5"]).await.ok();
    assert_eq!(text.stdout.lines().count(), 5, "{}", text.stdout);
    assert!(text.stdout.contains("a.b") && text.stdout.contains("event-4"), "{}", text.stdout);
    let json = nerve.cli().run(&["tail", "--from", "4", "-n", "2", "--output", "json"]).await.ok();
    let ids = json.stdout.lines().map(|line| {
        let event: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
        (event["id"].as_str().expect("an id").to_owned(), event["sequence"].as_u64())
    });
    let ids: Vec<_> = ids.collect();
    assert_eq!(ids, [("event-3".to_owned(), Some(4)), ("event-4".to_owned(), Some(5))]);
}

#[tokio::test]
async fn logs_follow_what_a_function_says() {
    let nerve = Nerve::up().await;
    let script = "import json, sys\nfor line in sys.stdin:\n    call = json.loads(line)\n    \
                  print('saw ' + call['event']['id'], file=sys.stderr, flush=True)\n    \
                  print(json.dumps({'id': call['id'], 'events': []}), flush=True)\n";
    nerve.cli().deploy(guest::python("talker", "events.a", "b", "", script).path()).await;
    let mut follow = nerve.cli().command(&["logs", "talker", "-f"]);
    let mut follower = nerve_tests::daemon::Daemon::spawn("nerve logs", &mut follow);
    for n in 0..3 {
        post_event(&nerve, "a", &format!("event-{n}"), "{}").await;
    }
    follower.line(seconds(20), |line| line.contains("saw event-2").then_some(())).await;
}

#[tokio::test]
async fn completions_are_what_the_shell_accepts() {
    let cli = Cli::new("nats://127.0.0.1:1");
    let script = cli.run(&["completions", "bash"]).await.ok().stdout;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("nerve.bash");
    std::fs::write(&file, &script).expect("a file");
    let checked = tokio::process::Command::new("bash").arg("-n").arg(&file).output().await.expect("bash");
    assert!(checked.status.success() && script.contains("nerve"), "{checked:?}");
    for shell in ["zsh", "fish"] {
        assert!(cli.run(&["completions", shell]).await.ok().stdout.contains("nerve"), "{shell}");
    }
}

#[tokio::test]
async fn list_and_describe_say_what_is_deployed() {
    let nerve = Nerve::up().await;
    let extra = "timeout = \"7s\"\nenv = { MOOD = \"calm\" }";
    nerve.cli().deploy(guest::wasm("shown", "events.a", "b", extra, &guest::echo("b")).path()).await;
    let list = nerve.cli().run(&["list"]).await.ok().stdout;
    assert!(list.contains("shown") && list.contains("wasm") && list.contains("events.a"), "{list}");
    let described = nerve.cli().run(&["describe", "shown"]).await.ok().stdout;
    assert!(described.contains("7s") && described.contains("shown.wasm"), "{described}");
    let unknown = nerve.cli().run(&["describe", "unknown"]).await.failed(1);
    assert!(unknown.stderr.contains("unknown") && unknown.stderr.contains("nerve list"), "{}", unknown.stderr);
}

#[tokio::test]
async fn every_command_has_help() {
    let cli = Cli::new("nats://127.0.0.1:1");
    let commands = [
        "up",
        "gateway",
        "worker",
        "new",
        "deploy",
        "list",
        "describe",
        "remove",
        "invoke",
        "publish",
        "tail",
        "logs",
        "dlq",
        "secrets",
        "completions",
    ];
    for command in commands {
        let help = cli.run(&[command, "--help"]).await.ok().stdout;
        assert!(help.contains("Usage: nerve"), "{command}: {help}");
    }
}

//! What strangers send never reaches a terminal as anything but text.

use crate::post_event;
use nerve_tests::{Folder, Nerve, Streams, eventually, guest, nerve, nerve::Output, seconds};

/// OSC and CSI sequences as C0 and C1, a bell, an override and an isolate of writing direction.
const HOSTILE: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}gpj\u{2066}\u{feff}\u{e0041}\u{7f}";
/// The same as a header of an HTTP request has it.
const IN_A_HEADER: &str = "%1B]0;owned%07%1B[2J%C2%9B31m%E2%80%AEgpj%E2%81%A6%EF%BB%BF%F3%A0%81%81%7F";

#[track_caller]
fn is_plain(output: &Output) {
    let active = |c: &char| {
        let is_format = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{e0041}');
        (c.is_control() && !matches!(c, '\n' | '\t')) || is_format
    };
    assert_eq!(output.text().chars().find(active), None, "{output:?}");
}

#[tokio::test]
async fn control_characters_of_strangers_are_shown_escaped_by_every_command() {
    let nerve = Nerve::up().await;
    let script = "import json, sys\nfor line in sys.stdin:\n    call = json.loads(line)\n    \
                  print(call['event']['id'], file=sys.stderr, flush=True)\n    \
                  error = {'kind': 'invalid', 'message': 'no: ' + call['event']['id']}\n    \
                  print(json.dumps({'id': call['id'], 'error': error}), flush=True)\n";
    let folder = guest::python("picky", "events.open.stranger.came", "never", "", script);
    let manifest = std::fs::read_to_string(folder.file("nerve.toml")).unwrap();
    let source = "\n[source.open]\nprovider = \"cloudevents\"\nverify = \"none\"\n";
    nerve.cli().deploy(Folder::new(&format!("{manifest}{source}")).with("picky.py", script).path()).await;
    eventually("the source takes events", seconds(20), || async {
        let request = reqwest::Client::new().post(nerve.url("/hooks/open")).header("content-type", "text/plain");
        let request = request.header("ce-specversion", "1.0").header("ce-type", "stranger.came");
        let request = request.header("ce-id", IN_A_HEADER).header("ce-source", format!("/{IN_A_HEADER}"));
        let response = request.body(HOSTILE).send().await.ok()?;
        (response.status().as_u16() / 100 == 2).then_some(())
    })
    .await;
    assert_eq!(post_event(&nerve, "open.stranger.came", IN_A_HEADER, "{}").await / 100, 2);
    let streams = Streams::connect(&nerve.nats).await;
    streams.reaches("DEAD", "dead.picky", 2, seconds(30)).await;

    let letter = nerve.cli().run(&["dlq", "list", "--output", "json"]).await.ok();
    let id = letter.json().pointer("/0/id").or(letter.json().get("id")).unwrap().to_string();
    let commands: [&[&str]; 5] = [
        &["tail", "--from", "first", "-n", "2"],
        &["dlq", "list"],
        &["dlq", "show", &id],
        &["logs", "picky"],
        &["trace", HOSTILE],
    ];
    for command in commands {
        for format in ["text", "json"] {
            let output = nerve.cli().run(&[command, &["--output", format]].concat()).await.ok();
            is_plain(&output);
            let shown = output.stdout.contains(r"\u001b]0;owned") || output.stdout.contains("]0;owned");
            assert!(shown || command[0] == "trace", "{command:?}: {output:?}");
            if format == "json" {
                assert!(output.json().to_string().contains("owned"), "the value itself is the same: {output:?}");
            }
        }
    }
    let failed = nerve.cli().run(&["trace", &format!("nobody {HOSTILE}")]).await.failed(1);
    is_plain(&failed);
    assert!(failed.stderr.contains(r"\u001b]0;owned\u0007"), "{failed:?}");
    let log = Output { code: None, stdout: String::new(), stderr: nerve.daemon.stderr() };
    is_plain(&log);
}

#[tokio::test]
async fn mistaken_call_is_shown_escaped() {
    let option = format!("--{HOSTILE}");
    let calls: [&[&str]; 3] = [&["describe", HOSTILE], &[HOSTILE], &["list", &option]];
    for call in calls {
        for format in ["text", "json"] {
            let refused = nerve::call(nerve::command([call, &["--output", format]].concat()), "").await.failed(2);
            is_plain(&refused);
            assert!(refused.stderr.contains("gpj"), "{call:?}: {refused:?}");
        }
    }
}

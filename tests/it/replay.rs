//! Functions sent back in their stream, to get their events again.

use crate::post_event;
use nerve_tests::{Nerve, Streams, checkout, eventually, guest, nerve::Options, seconds};
use serde_json::{Value, json};
use std::{fs, path::Path};

/// A process that appends the id of each event to a file, and emits nothing.
fn recorder(file: &Path) -> nerve_tests::Folder {
    let script = format!(
        "import json, sys\n\
         for line in sys.stdin:\n    \
             call = json.loads(line)\n    \
             with open({:?}, 'a') as file: file.write(call['event']['id'] + '\\n')\n    \
             print(json.dumps({{'id': call['id'], 'events': [{{'type': 'kept', 'data': 1}}]}}), flush=True)\n",
        file.display().to_string()
    );
    guest::python("keep", "events.a", "kept", "", &script)
}

/// Waits until a function has finished all there is.
async fn idle(streams: &Streams, function: &str) {
    eventually("the function has finished its events", seconds(30), || async {
        let info = streams.consumer("EVENTS", function).await?;
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    })
    .await;
}

fn lines(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn a_function_gets_exactly_the_events_since_a_moment_once_more() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("seen");
    // What was there before the function is deployed is none of its events, until it is sent back to it.
    post_event(&nerve, "a", "before", "{}").await;
    nerve.cli().deploy(recorder(&file).path()).await;
    for id in ["1", "2"] {
        post_event(&nerve, "a", id, "{}").await;
    }
    post_event(&nerve, "other", "x", "{}").await;
    streams.reaches("EVENTS", "events.kept", 2, seconds(30)).await;
    idle(&streams, "keep").await;
    let stored = streams.read("EVENTS", "events.a").await;
    let second = stored.iter().find(|event| event.header("ce-id") == "2").unwrap().sequence;
    post_event(&nerve, "a", "3", "{}").await;
    streams.reaches("EVENTS", "events.kept", 3, seconds(30)).await;
    idle(&streams, "keep").await;
    assert_eq!(lines(&file), ["1", "2", "3"]);

    let replay = async |args: &[&str]| {
        let line: Vec<&str> = ["replay", "keep", "--output", "json", "--since"].iter().chain(args).copied().collect();
        nerve.cli().run(&line).await.ok().json()
    };
    let dry = replay(&[&second.to_string(), "--dry-run"]).await;
    assert_eq!((&dry["events"], &dry["from"], &dry["dry_run"]), (&json!(2), &json!(second), &json!(true)));
    let made = replay(&[&second.to_string()]).await;
    assert_eq!((&made["events"], &made["unfinished"], &made["dry_run"]), (&json!(2), &json!(false), &json!(false)));
    eventually("both come again", seconds(20), || async { (lines(&file).len() == 5).then_some(()) }).await;
    idle(&streams, "keep").await;
    assert_eq!(lines(&file), ["1", "2", "2", "3", "3"]);
    // A replay is a generation of its own: its results are published, under ids of their own.
    assert_eq!(streams.count("EVENTS", "events.kept").await, 5);
    let kept = streams.read("EVENTS", "events.kept").await;
    let ids: std::collections::BTreeSet<_> = kept.iter().map(|event| event.header("ce-id")).collect();
    assert_eq!(ids.len(), 5);

    // From a time, and from the first of all, which is one more than it had.
    let at = made["time"].as_str().unwrap();
    assert_eq!(replay(&[at, "--dry-run"]).await["from"], json!(second));
    assert_eq!(replay(&["1h", "--dry-run"]).await["events"], 4);
    let said = nerve.cli().run(&["replay", "keep", "--since", "first"]).await.ok();
    assert!(said.stdout.starts_with("keep: 4 events are replayed, from 1 of EVENTS ("), "{said:?}");
    streams.reaches("EVENTS", "events.kept", 9, seconds(30)).await;
    idle(&streams, "keep").await;
    assert_eq!(lines(&file), ["1", "1", "2", "2", "2", "3", "3", "3", "before"]);
    // It goes on with what is new, each once; a new deployment leaves it where it is.
    nerve.cli().deploy(recorder(&file).path()).await;
    post_event(&nerve, "a", "4", "{}").await;
    streams.reaches("EVENTS", "events.kept", 10, seconds(30)).await;
    idle(&streams, "keep").await;
    assert_eq!(lines(&file).len(), 10);
    assert_eq!(replay(&["0s"]).await["events"], 0);
    assert_eq!(lines(&file).len(), 10);

    let unknown = nerve.cli().run(&["replay", "kep", "--since", "first"]).await.failed(1);
    assert!(unknown.stderr.contains("no function `kep` is deployed: did you mean `keep`?"), "{unknown:?}");
    nerve.cli().run(&["replay", "keep", "--since", "new"]).await.failed(2);
    let beyond = nerve.cli().run(&["replay", "keep", "--since", "100000"]).await.failed(1);
    assert!(beyond.stderr.contains("the stream ends at the sequence"), "{beyond:?}");
}

#[tokio::test]
async fn what_is_not_finished_is_never_passed_over() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let script = "import json, sys\n\
                  for line in sys.stdin:\n    \
                      call = json.loads(line)\n    \
                      if call['event']['id'] == '1': continue\n    \
                      answer = {'events': [{'type': 'kept', 'data': 1}]}\n    \
                      print(json.dumps({'id': call['id']} | answer), flush=True)\n";
    // The first one is never answered.
    nerve.cli().deploy(guest::python("keep", "events.a", "kept", "timeout = \"1h\"", script).path()).await;
    for id in ["1", "2", "3"] {
        post_event(&nerve, "a", id, "{}").await;
    }
    streams.reaches("EVENTS", "events.kept", 2, seconds(30)).await;
    let stored = streams.read("EVENTS", "events.a").await;
    eventually("only the first is left", seconds(20), || async {
        let info = streams.consumer("EVENTS", "keep").await?;
        (info.num_ack_pending == 1 && info.num_pending == 0).then_some(())
    })
    .await;
    let since = stored[2].sequence.to_string();
    let made = nerve.cli().run(&["replay", "keep", "--since", &since, "--output", "json"]).await.ok().json();
    let wanted = (json!(3), json!(stored[0].sequence), json!(true));
    assert_eq!((&made["events"], &made["from"], &made["unfinished"]), (&wanted.0, &wanted.1, &wanted.2), "{made}");
    eventually("only the first is left again", seconds(20), || async {
        let info = streams.consumer("EVENTS", "keep").await?;
        (info.num_ack_pending == 1 && info.num_pending == 0).then_some(())
    })
    .await;
    // Only the third was asked for; the results of the second stand.
    assert_eq!(streams.count("EVENTS", "events.kept").await, 3);
}

#[tokio::test]
async fn replays_at_the_same_time_pass_over_no_event() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let script = "import json, sys, time\n\
                  for line in sys.stdin:\n    \
                      call = json.loads(line)\n    \
                      time.sleep(0.01)\n    \
                      answer = {'events': [{'type': 'kept', 'data': call['event']['id']}]}\n    \
                      print(json.dumps({'id': call['id']} | answer), flush=True)\n";
    nerve.cli().deploy(guest::python("keep", "events.a", "kept", "", script).path()).await;
    for id in 0..40 {
        post_event(&nerve, "a", &id.to_string(), "{}").await;
    }
    idle(&streams, "keep").await;
    let stored = streams.read("EVENTS", "events.a").await;
    let (early, late) = (stored[0].sequence.to_string(), stored[30].sequence.to_string());
    for _ in 0..4 {
        let before = streams.count("EVENTS", "events.kept").await;
        let cli = nerve.cli();
        let replay = async |since: &str| cli.run(&["replay", "keep", "--since", since]).await;
        let (first, second) = tokio::join!(replay(&early), replay(&late));
        idle(&streams, "keep").await;
        let more = streams.count("EVENTS", "events.kept").await - before;
        // Whatever was not refused has run all that it announced: of the early one all 40, of the late one 10.
        let least = match (first.code, second.code) {
            (Some(0), _) => 40,
            (_, Some(0)) => 10,
            refused => panic!("one of them goes through: {refused:?}"),
        };
        assert!(more >= least, "{more} results of at least {least}");
    }
}

#[tokio::test]
async fn a_lost_index_comes_back_from_the_log() {
    let data = tempfile::tempdir().unwrap();
    let mut nerve = Nerve::up_with(Options { data: Some(data.path().to_owned()), ..Options::default() }).await;
    nerve.cli().deploy(&checkout().join("functions/rag")).await;
    let streams = Streams::connect(&nerve.nats).await;
    for (id, document, text) in [
        ("1", "fees", "Late invoices cost ten percent more."),
        ("2", "trains", "The night train to Lisbon leaves at nine."),
        ("3", "fees", "Late invoices cost nothing."),
        ("4", "gone", "The old office closes at noon."),
    ] {
        let upload = json!({"document": document, "text": text}).to_string();
        assert_eq!(post_event(&nerve, "document.uploaded", id, &upload).await / 100, 2);
        streams.reaches("EVENTS", "events.document.indexed", id.parse().unwrap(), seconds(60)).await;
    }
    post_event(&nerve, "document.deleted", "5", r#"{"document": "gone"}"#).await;
    streams.reaches("EVENTS", "events.document.indexed", 5, seconds(60)).await;
    let ask = async |nerve: &Nerve, question: &str| -> Value {
        nerve.cli().run(&["ask", question, "--output", "json"]).await.ok().json()
    };
    let question = "When does the night train to Lisbon leave?";
    assert_eq!(ask(&nerve, question).await["answered"], true);
    nerve.sigterm(seconds(20)).await;
    fs::remove_dir_all(data.path().join("index")).unwrap();
    nerve.restart().await;
    let streams = Streams::connect(&nerve.nats).await;
    assert_eq!(ask(&nerve, question).await["answered"], false);
    let made = nerve.cli().run(&["replay", "index", "--since", "first", "--output", "json"]).await.ok().json();
    assert_eq!(made["events"], 5, "four documents and a deletion: {made}");
    idle(&streams, "index").await;
    let answer = ask(&nerve, question).await;
    assert_eq!(answer["answer"], "The night train to Lisbon leaves at nine.");
    let answer = ask(&nerve, "What do late invoices cost?").await;
    assert_eq!(answer["answer"], "Late invoices cost nothing.");
    assert_eq!(ask(&nerve, "When does the old office close?").await["answered"], false);
    // A replay publishes its results, too.
    assert_eq!(streams.count("EVENTS", "events.document.indexed").await, 10);
    assert_eq!(streams.count("DEAD", "dead.>").await, 0);
}

#[tokio::test]
async fn removal_says_what_is_unfinished_and_a_replay_takes_it_up() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("seen");
    let stuck = "import sys\nfor line in sys.stdin: print(line.strip(), file=sys.stderr, flush=True)\n";
    nerve.cli().deploy(guest::python("keep", "events.a", "kept", "concurrency = 1", stuck).path()).await;
    post_event(&nerve, "other", "x", "{}").await;
    for id in ["1", "2", "3"] {
        post_event(&nerve, "a", id, "{}").await;
    }
    let removed = nerve.cli().run(&["remove", "keep", "--output", "json"]).await.ok().json();
    assert_eq!(removed["unfinished"], json!({"messages": 3, "from": 1}), "{removed}");
    nerve.cli().deploy(recorder(&file).path()).await;
    nerve.cli().run(&["replay", "keep", "--since", "1"]).await.ok();
    streams.reaches("EVENTS", "events.kept", 3, seconds(30)).await;
    idle(&streams, "keep").await;
    assert_eq!(lines(&file), ["1", "2", "3"]);
    let removed = nerve.cli().run(&["remove", "keep"]).await.ok();
    assert_eq!(removed.stdout.trim(), "removed function keep");
}

#[tokio::test]
async fn logs_end_with_the_newest_lines() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let script = "import json, sys\n\
                  for line in sys.stdin:\n    \
                      call = json.loads(line)\n    \
                      print('took ' + call['event']['id'], file=sys.stderr, flush=True)\n    \
                      print(json.dumps({'id': call['id'], 'events': []}), flush=True)\n";
    nerve.cli().deploy(guest::python("keep", "events.a", "kept", "concurrency = 1", script).path()).await;
    for id in ["1", "2", "3", "4", "5"] {
        post_event(&nerve, "a", id, "{}").await;
    }
    idle(&streams, "keep").await;
    let last = eventually("all lines are stored", seconds(20), || async {
        let logs = nerve.cli().run(&["logs", "keep", "-n", "2"]).await.ok();
        logs.stdout.contains("took 5").then_some(logs.stdout)
    })
    .await;
    assert!(last.lines().count() == 2 && last.contains("took 4"), "{last}");
}

#[tokio::test]
async fn event_that_is_published_twice_is_counted_as_a_duplicate() {
    let nerve = Nerve::up().await;
    let publish = ["publish", "a", "--data", "1", "--id", "same"];
    nerve.cli().run(&publish).await.ok();
    let again = nerve.cli().run(&["publish", "a", "--data", "2", "--id", "same"]).await.ok();
    assert!(again.stdout.contains("already stored") && again.stdout.contains("was dropped"), "{again:?}");
    let streams = Streams::connect(&nerve.nats).await;
    let counted = streams.read("DROPS", "drops.caller.cli.window").await;
    assert_eq!(counted.last().map(|count| &count.data[..]), Some(&br#"{"val":"1"}"#[..]));
}

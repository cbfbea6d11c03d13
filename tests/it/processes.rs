//! The line protocol of long-lived processes.

use crate::post_event;
use nerve_tests::{Nerve, Streams, guest, seconds};
use std::collections::BTreeSet;

#[tokio::test]
async fn a_process_may_answer_in_any_order_and_publish_before_the_end() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    // Collects four calls before it answers them backwards, so four must be in flight at once.
    let script = r#"import json, sys
calls = []
for line in sys.stdin:
    calls.append(json.loads(line))
    if len(calls) == 4:
        for call in reversed(calls):
            of = call["event"]["id"]
            print(json.dumps({"id": call["id"], "emit": {"type": "early", "data": of}}))
            print(json.dumps({"id": call["id"], "events": [{"type": "late", "data": of}, {"type": "late", "data": of}]}))
        sys.stdout.flush()
        calls = []
"#;
    let manifest = "[function.four]\nruntime = \"process\"\ncommand = [\"python3\", \"four.py\"]\non = [\"events.a\"]\n\
                    emits = [\"early\", \"late\"]\nconcurrency = 4\n";
    nerve.cli().deploy(nerve_tests::Folder::new(manifest).with("four.py", script).path()).await;
    for n in 0..8 {
        post_event(&nerve, "a", &n.to_string(), "{}").await;
    }
    streams.reaches("EVENTS", "events.late", 16, seconds(30)).await;
    for (ty, each) in [("early", 1), ("late", 2)] {
        let events = streams.read("EVENTS", &format!("events.{ty}")).await;
        let causes: BTreeSet<_> = events.iter().map(|event| event.header("ce-causationid").to_owned()).collect();
        assert_eq!((events.len(), causes.len()), (8 * each, 8), "{ty}");
        assert!(events.iter().all(|event| event.data == format!("\"{}\"", event.header("ce-causationid"))));
    }
}

#[tokio::test]
async fn a_line_that_is_no_json_fails_nobody_else() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let script = r#"import json, sys
print("a greeting that is not the protocol", flush=True)
for line in sys.stdin:
    call = json.loads(line)
    print(json.dumps({"id": call["id"], "events": [{"type": "b", "data": 1}]}), flush=True)
"#;
    let extra = "retry = { attempts = 2, backoff = [\"100ms\"] }\ntimeout = \"2s\"";
    nerve.cli().deploy(guest::python("polite", "events.a", "b", extra, script).path()).await;
    post_event(&nerve, "a", "1", "{}").await;
    // Either answered, or dead with a message about that line: never silence.
    nerve_tests::eventually("an answer or a dead letter", seconds(30), || async {
        let answered = streams.count("EVENTS", "events.b").await + streams.count("DEAD", ">").await;
        (answered == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn nearly_right_line_is_a_dead_letter_at_once() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    // Writes what the event's data says, where `ID` stands for the call's id.
    let script = r#"import json, sys
for line in sys.stdin:
    call = json.loads(line)
    print(call["event"]["data"]["line"].replace("ID", str(call["id"])), flush=True)
"#;
    // With any wait for the timeout, or any retry, the test runs out of time.
    let extra = "retry = { attempts = 5, backoff = [\"1h\"] }\ntimeout = \"10m\"\nconcurrency = 8";
    nerve.cli().deploy(guest::python("parrot", "events.a", "b", extra, script).path()).await;
    let right = r#"{"id":ID,"events":[{"type":"b","data":1}]}"#;
    let wrong = [
        r#"{"id":ID}"#,
        r#"{"id":ID,"result":{"words":3}}"#,
        r#"{"type":"b","payload":{"words":3}}"#,
        r#"{"id":ID,"error":"boom"}"#,
        r#"{"id":ID,"events":{"type":"b","data":1}}"#,
        r#"{"id":ID,"events":[{"type":"b","data":NaN}]}"#,
        r#"{"id":1,"events":[]}"#,
        r#"{"id":ID,"events":[],"results":[1]}"#,
        r#"{"id":ID,"emit":{"data":1}}"#,
    ];
    let lines: Vec<&str> = wrong.iter().flat_map(|line| [*line, right]).chain([r#"{"id":ID,"events":[]}"#]).collect();
    for (index, line) in lines.iter().enumerate() {
        post_event(&nerve, "a", &index.to_string(), &serde_json::json!({"line": line}).to_string()).await;
    }
    streams.reaches("DEAD", ">", wrong.len(), seconds(60)).await;
    streams.reaches("EVENTS", "events.b", wrong.len(), seconds(60)).await;
    let dead = nerve.cli().run(&["dlq", "list", "--output", "json"]).await.ok().stdout;
    for line in wrong {
        let quote = serde_json::to_string(line.rsplit("ID").next().unwrap()).unwrap();
        assert!(dead.contains(quote.trim_matches('"')), "{line}: {dead}");
    }
    assert_eq!(dead.matches("broke the process protocol").count(), wrong.len(), "{dead}");
    assert_eq!(streams.count("DEAD", ">").await, wrong.len());
}

#[tokio::test]
async fn a_guest_has_nothing_of_the_hosts_environment() {
    let envs = vec![("ON_THE_HOST".to_owned(), "1".to_owned())];
    let nerve = Nerve::up_with(nerve_tests::nerve::Options { envs, ..Default::default() }).await;
    let streams = Streams::connect(&nerve.nats).await;
    let script = "import json, os, sys\n\
                  for line in sys.stdin:\n    \
                      call = json.loads(line)\n    \
                      data = sorted(os.environ)\n    \
                      print(json.dumps({'id': call['id'], 'events': [{'type': 'b', 'data': data}]}), flush=True)\n";
    nerve.cli().deploy(guest::python("nosy", "events.a", "b", "env = { GIVEN = \"1\" }", script).path()).await;
    post_event(&nerve, "a", "1", "{}").await;
    streams.reaches("EVENTS", "events.b", 1, seconds(20)).await;
    let names: Vec<String> = serde_json::from_slice(&streams.read("EVENTS", "events.b").await[0].data).unwrap();
    assert!(names.contains(&"GIVEN".to_owned()), "{names:?}");
    assert!(!names.iter().any(|name| name == "ON_THE_HOST" || name.starts_with("NERVE_")), "{names:?}");
}

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

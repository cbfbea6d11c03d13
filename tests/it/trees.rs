//! A process function and all that it starts: they end together, and share one limit of memory.

use crate::post_event;
use nerve_tests::{Nerve, Streams, daemon, eventually, guest, seconds};
use nix::unistd::Pid;
use serde_json::Value;

/// Starts processes that leave its session, and its parents; says their ids.
const DAEMONS: &str = r"
import json, os, subprocess, sys, time
def twice():
    # The middle one ends at once, so that the last one has another parent.
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        pid = os.fork()
        if pid == 0:
            os.execvp('sleep', ['sleep', '1000'])
        os.write(writer, str(pid).encode())
        os._exit(0)
    os.wait()
    return int(os.read(reader, 20))
for line in sys.stdin:
    call = json.loads(line)
    pids = [subprocess.Popen(['sleep', '1000'], start_new_session=True, stdout=subprocess.DEVNULL).pid for _ in range(4)]
    pids.append(twice())
    print(json.dumps({'id': call['id'], 'events': [{'type': 'b', 'data': pids}]}), flush=True)
";

/// A function with daemons; their ids.
async fn daemons(nerve: &Nerve) -> Vec<Pid> {
    nerve.cli().deploy(guest::python("daemons", "events.a", "b", "", DAEMONS).path()).await;
    post_event(nerve, "a", "1", "{}").await;
    let streams = Streams::connect(&nerve.nats).await;
    streams.reaches("EVENTS", "events.b", 1, seconds(30)).await;
    let said: Value = serde_json::from_slice(&streams.read("EVENTS", "events.b").await[0].data).unwrap();
    let pids: Vec<Pid> =
        said.as_array().unwrap().iter().map(|pid| Pid::from_raw(pid.as_i64().unwrap().try_into().unwrap())).collect();
    assert_eq!(
        pids.iter().filter(|pid| daemon::command_name(**pid).as_deref() == Some("sleep")).count(),
        5,
        "{pids:?}"
    );
    pids
}

async fn have_ended(pids: &[Pid]) {
    eventually("all that the function started has ended", seconds(20), || async {
        pids.iter().all(|pid| daemon::command_name(*pid).is_none()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn daemons_end_with_their_function() {
    let nerve = Nerve::up().await;
    let pids = daemons(&nerve).await;
    nerve.cli().run(&["remove", "daemons"]).await.ok();
    have_ended(&pids).await;
}

#[tokio::test]
async fn daemons_end_with_a_worker_that_is_killed() {
    let mut nerve = Nerve::up().await;
    let pids = daemons(&nerve).await;
    nerve.kill9();
    have_ended(&pids).await;
}

#[tokio::test]
async fn memory_of_a_function_counts_what_it_starts() {
    let nerve = Nerve::up().await;
    // Each is within the limit, and all together are not.
    let script = "import json, os, subprocess, sys\nfor line in sys.stdin:\n    call = json.loads(line)\n    \
                  hold = 'import time; held = b\"x\" * (60 << 20); time.sleep(60)'\n    \
                  several = [subprocess.Popen([sys.executable, '-c', hold], start_new_session=True) for _ in range(4)]\n    \
                  [one.wait() for one in several]\n    \
                  print(json.dumps({'id': call['id'], 'events': []}), flush=True)\n";
    let extra = "memory = \"128MiB\"\nretry = { attempts = 1 }\ntimeout = \"50s\"";
    nerve.cli().deploy(guest::python("large", "events.a", "b", extra, script).path()).await;
    post_event(&nerve, "a", "1", "{}").await;
    let streams = Streams::connect(&nerve.nats).await;
    streams.reaches("DEAD", "dead.large", 1, seconds(30)).await;
    let letter = nerve.cli().run(&["dlq", "list", "--output", "json"]).await.ok().json().to_string();
    assert!(letter.contains("`memory` allows them 134217728 together"), "{letter}");
}

#[tokio::test]
async fn function_that_fails_at_its_start_ends_with_its_own_status() {
    let nerve = Nerve::up().await;
    let extra = "retry = { attempts = 1 }";
    // The last one closes its stdout long before it ends.
    let scripts = [
        ("missing", "import nothere\n", "exit status: 1"),
        ("seven", "import os\nos._exit(7)\n", "exit status: 7"),
        ("closing", "import os, time\nos.close(1)\ntime.sleep(0.05)\nos._exit(9)\n", "exit status: 9"),
    ];
    for (name, script, _) in scripts {
        nerve.cli().deploy(guest::python(name, &format!("events.{name}"), "b", extra, script).path()).await;
        for id in 0..4 {
            post_event(&nerve, name, &format!("{name}-{id}"), "{}").await;
        }
    }
    let streams = Streams::connect(&nerve.nats).await;
    for (name, _, status) in scripts {
        streams.reaches("DEAD", &format!("dead.{name}"), 4, seconds(30)).await;
        let letters = nerve.cli().run(&["dlq", "list", name, "--output", "json"]).await.ok().json();
        let letters = letters.to_string();
        assert_eq!(letters.matches(status).count(), 4, "{name}: {letters}");
        assert!(!letters.contains("SIGKILL"), "{letters}");
    }
}

//! A server process that dies costs the requests that it was answering: its supervisor keeps the socket, and starts it again.

use crate::{identity::function, post_event};
use nerve_tests::{Nats, Nerve, Streams, daemon::command_name, eventually, nerve, seconds};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Waits until another process than `before` serves.
async fn next_server(nerve: &Nerve, before: Pid) -> Pid {
    eventually("another process serves", seconds(30), || async {
        let servers = nerve.daemon.children("nerve");
        servers.into_iter().find(|pid| *pid != before)
    })
    .await
}

async fn ends(pid: Pid) {
    eventually("the process has ended", seconds(20), || async { command_name(pid).is_none().then_some(()) }).await;
}

#[tokio::test]
async fn server_process_that_dies_is_started_again_and_requests_wait_for_it() {
    let nerve = Nerve::up().await;
    let streams = Streams::connect(&nerve.nats).await;
    let folder = tempfile::tempdir().unwrap();
    let flag = folder.path().join("begun").display().to_string();
    let handle = format!(
        "if id == 'held' and not os.path.exists({flag:?}):\n    open({flag:?}, 'w').close()\n    time.sleep(600)\n\
         say(call, events=results('c.out'))"
    );
    nerve.cli().deploy(function("\"c.*\"", "", &handle).path()).await;
    post_event(&nerve, "in", "held", "{}").await;
    eventually("it runs", seconds(30), || async { std::path::Path::new(&flag).exists().then_some(()) }).await;
    for signal in [Signal::SIGABRT, Signal::SIGKILL, Signal::SIGTRAP] {
        let (server, broker) = (nerve.server(), nerve.nats_child());
        kill(server, signal).unwrap();
        // Sent while nobody serves: it waits in the socket instead of being refused.
        assert_eq!(post_event(&nerve, "elsewhere", signal.as_str(), "{}").await, 202);
        assert_ne!(next_server(&nerve, server).await, server);
        assert_eq!(nerve.nats_child(), broker, "the broker goes on");
    }
    post_event(&nerve, "in", "after", "{}").await;
    streams.reaches("EVENTS", "events.c.out", 2, seconds(60)).await;
    nerve.daemon.logs("each death is logged", &["SIGABRT", "SIGKILL", "SIGTRAP"]).await;
    let log = nerve.daemon.stderr();
    for name in ["SIGABRT", "SIGKILL", "SIGTRAP"] {
        let line = log.lines().find(|line| line.contains("the server process crashed") && line.contains(name));
        let line = line.unwrap_or_else(|| panic!("nothing of {name}: {log}"));
        assert!(line.contains("last_lines=") && line.contains("in_flight="), "{line}");
    }
    let first = log.lines().find(|line| line.contains("the server process crashed")).unwrap();
    assert!(first.contains("of EVENTS in f"), "{first}");
}

#[tokio::test]
async fn server_and_broker_end_with_their_supervisor() {
    let mut nerve = Nerve::up().await;
    let (server, broker) = (nerve.server(), nerve.nats_child());
    nerve.kill9();
    ends(server).await;
    ends(broker).await;
    nerve.restart().await;
    let (server, broker) = (nerve.server(), nerve.nats_child());
    assert!(nerve.sigterm(seconds(30)).await.success());
    assert_eq!((command_name(server), command_name(broker)), (None, None), "both have ended before it");
}

#[tokio::test]
async fn service_manager_that_signals_all_processes_ends_them_in_order() {
    let mut nerve = Nerve::up().await;
    nerve.cli().deploy(function("\"c.*\"", "", "time.sleep(1)\nsay(call, events=results('c.out'))").path()).await;
    post_event(&nerve, "in", "1", "{}").await;
    kill(nerve.server(), Signal::SIGTERM).unwrap();
    assert!(nerve.sigterm(seconds(30)).await.success(), "{}", nerve.daemon.stderr());
    assert!(!nerve.daemon.stderr().contains("stopped immediately"), "{}", nerve.daemon.stderr());
}

#[tokio::test]
async fn server_process_that_fails_at_its_start_ends_its_supervisor_with_its_error() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("nerve-server.toml");
    std::fs::write(&settings, "[gateway]\ntls_cert = \"nowhere.pem\"\ntls_key = \"nowhere.key\"\n").unwrap();
    let data = folder.path().join("data");
    let mut command = nerve::command(["up", "--listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0"]);
    command.arg("--config").arg(&settings).arg("--data").arg(&data);
    let failed = nerve::call(command, "").await.failed(1);
    assert_eq!(failed.stderr.matches("nowhere.pem").count(), 1, "{failed:?}");
    let unattached = nerve::call(nerve::command(["up", "--supervised", "plain"]), "").await.failed(1);
    assert!(unattached.stderr.contains("this process has no supervisor"), "{unattached:?}");
}

#[tokio::test]
async fn gateway_and_worker_have_a_supervisor_unless_a_service_manager_is_theirs() {
    let nats = Nats::start().await;
    let gateway = Nerve::gateway(&nats.url()).await;
    let server = gateway.server();
    kill(server, Signal::SIGKILL).unwrap();
    assert_eq!(reqwest::get(gateway.url("/healthz")).await.unwrap().status(), 200);
    next_server(&gateway, server).await;
    let data = tempfile::tempdir().unwrap();
    let managed = nerve::worker_with(&nats.url(), data.path(), &[("INVOCATION_ID", "1")]).await;
    assert!(managed.children("nerve").is_empty());
    let worker = nerve::worker(&nats.url(), data.path()).await;
    assert_eq!(worker.children("nerve").len(), 1);
}

/// Bytes of a process's memory that are in no file.
fn anonymous_bytes(pid: Pid) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss_Anon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn supervisor_takes_little_memory() {
    let nerve = Nerve::up().await;
    let bytes = anonymous_bytes(nerve.daemon.pid());
    assert!(bytes < 6 << 20, "{bytes} bytes");
}

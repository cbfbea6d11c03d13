//! Servers on other machines: they join with a token, and are cut off when they are revoked.

use crate::post_event;
use nerve_tests::{
    Cli, Folder, Nerve, eventually, guest,
    joined::{Machine, token},
    nerve::{self, Options},
    seconds,
    tls::SelfSigned,
};
use serde_json::Value;
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

const SECRET: &str = "hunter2-hunter2";

/// A function that appends where it runs and which secret it has to a file.
fn teller(file: &Path) -> Folder {
    let script = "import json, os, sys\n\
                  for line in sys.stdin:\n    \
                      call = json.loads(line)\n    \
                      with open(os.environ['REPORT'], 'a') as report:\n        \
                          report.write(os.getcwd() + ' ' + os.environ['TOKEN'] + '\\n')\n    \
                      print(json.dumps({'id': call['id'], 'events': []}), flush=True)\n";
    let extra = format!("secrets = [\"TOKEN\"]\nenv = {{ REPORT = {:?} }}", file.display().to_string());
    guest::python("teller", "events.a", "told", &extra, script)
}

/// Sends events until one was handled on this machine, by a function with this secret.
async fn is_handled_by(nerve: &Nerve, machine: &Machine, report: &Path, secret: &str) {
    let handled = async || {
        Cli::with(&["--data-dir", nerve.data()]).run(&["publish", "a", "--data", "{}"]).await.ok();
        let report = std::fs::read_to_string(report).unwrap_or_default();
        let mut lines = report.lines().filter_map(|line| line.split_once(' '));
        lines.any(|(folder, token)| machine.has(folder) && token == secret).then_some(())
    };
    eventually("an event is handled on the other machine", seconds(30), handled).await;
}

/// The files in a folder, and their modes.
fn files(folder: &Path) -> Vec<(PathBuf, u32)> {
    let (mut found, mut next) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = next.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let kept = entry.metadata().unwrap();
            found.push((entry.path(), kept.permissions().mode() & 0o777));
            if kept.is_dir() {
                next.push(entry.path());
            }
        }
    }
    found
}

#[tokio::test]
async fn worker_joins_over_tls_with_one_token_and_is_cut_off_when_revoked() {
    let certificate = SelfSigned::of("nerve.example");
    let nerve = Nerve::up_with_nats_tls("127.0.0.1:0", &certificate).await;
    let on_data = Cli::with(&["--data", nerve.data()]);
    on_data.secret("TOKEN", SECRET).await;
    let report = tempfile::NamedTempFile::new().unwrap();
    on_data.deploy(teller(report.path()).path()).await;
    let (machine, other) = (Machine::new("build-2"), Machine::new("build-3"));
    let text = token(&nerve, &["--ttl", "5m"]).await;
    let joined = machine.join(&format!("{text}\n")).await.ok();
    assert_eq!(joined.json()["role"], "worker", "{joined:?}");
    assert_eq!(std::fs::metadata(machine.data()).unwrap().permissions().mode() & 0o777, 0o700);
    for (file, mode) in files(&machine.data()) {
        assert_eq!(mode & 0o077, 0, "{}", file.display());
    }
    let worker = machine.worker().await;
    is_handled_by(&nerve, &machine, report.path(), SECRET).await;

    // The token is used up, and is in no file and no log; a damaged one is noticed where it is read.
    let again = other.join(&text).await.failed(1);
    assert!(again.stderr.contains("`build-2` has used this token") && !again.text().contains(&text), "{again:?}");
    let damaged = other.join(&text.replace(&text[40..44], "AAAA")).await.failed(2);
    assert!(damaged.stderr.contains("not whole"), "{damaged:?}");
    assert!(!other.file("secrets.key").exists() && !other.file("join/nats.json").exists());
    let secret_part = &text[30..80];
    for (file, _) in files(&Path::new(nerve.data()).join("nats")) {
        assert!(!std::fs::read_to_string(&file).unwrap().contains(secret_part), "{}", file.display());
    }
    assert!(!nerve.daemon.stderr().contains(secret_part));

    // Joining again replaces its credentials, while its worker runs.
    let copy = other.file("old.creds");
    std::fs::create_dir_all(other.data()).unwrap();
    std::fs::copy(machine.file("join/nats.creds"), &copy).unwrap();
    machine.join(&token(&nerve, &[]).await).await.ok();
    let url = nerve.nats.url.clone();
    let old = ["--nats", &url, "--creds", &copy.display().to_string(), "--data", nerve.data()].map(str::to_owned);
    let old = Cli::with(&old.each_ref().map(String::as_str));
    let refused = || async { (old.run(&["list"]).await.code == Some(1)).then_some(()) };
    eventually("the old credentials are refused", seconds(10), refused).await;
    let cut_off = |times| {
        let log = worker.stderr();
        async move { (log.matches("NATS refuses the credentials of this server").count() >= times).then_some(()) }
    };
    eventually("the worker is cut off", seconds(10), || cut_off(1)).await;

    let listed = on_data.run(&["access", "list", "--output", "json"]).await.ok().json();
    let row = listed.as_array().unwrap().iter().find(|row| row["name"] == "build-2").unwrap().clone();
    assert_eq!((&row["kind"], &row["role"]), (&"machine".into(), &"worker".into()), "{listed}");
    assert!(row["rotated"].is_string() && row["public_key"].as_str().unwrap().starts_with('U'), "{row}");
    let unknown = on_data.run(&["access", "revoke", "build-9"]).await.failed(1);
    assert!(unknown.stderr.contains("no machine or token `build-9`"), "{unknown:?}");
    let nats_server = nerve.nats_child();
    let revoked = on_data.run(&["access", "revoke", "build-2"]).await.ok();
    assert!(revoked.stdout.contains("connections are closed") && revoked.stdout.contains("rotate-key"), "{revoked:?}");
    eventually("the worker is cut off again", seconds(10), || cut_off(2)).await;
    let mut late = machine.worker_to_come();
    assert_eq!(late.exit(seconds(20)).await.code(), Some(1));
    assert!(late.stderr().contains("refuses the credentials file"), "{}", late.stderr());
    assert_eq!((nerve.nats_child(), post_event(&nerve, "a", "1", "{}").await), (nats_server, 202));
}

#[tokio::test]
async fn token_is_refused_when_expired_revoked_or_shown_another_certificate() {
    let (certificate, other) = (SelfSigned::of("nerve.example"), SelfSigned::of("nerve.example"));
    let nerve = Nerve::up_with_nats_tls("127.0.0.1:0", &certificate).await;
    let impostor = Nerve::up_with_nats_tls("127.0.0.1:0", &other).await;
    let machine = Machine::new("build-2");
    let short = token(&nerve, &["--ttl", "1s"]).await;
    let made = Instant::now();
    let address = impostor.nats.url.trim_start_matches("tls://").to_owned();
    let redirected = machine.join(&token(&nerve, &["--address", &address]).await).await.failed(1);
    assert!(redirected.stderr.contains("not the server of this token"), "{redirected:?}");
    // Asked before, it would be good.
    eventually("the token is expired", seconds(10), || async { (made.elapsed() > seconds(2)).then_some(()) }).await;
    let expired = machine.join(&short).await.failed(1);
    assert!(expired.stderr.contains("it expired at"), "{expired:?}");
    let on_data = Cli::with(&["--data", nerve.data()]);
    let token = on_data.run(&["access", "token", "--role", "gateway", "--output", "json"]).await.ok().json();
    on_data.run(&["access", "revoke", token["name"].as_str().unwrap()]).await.ok();
    let refused = machine.join(token["token"].as_str().unwrap()).await.failed(1);
    assert!(refused.stderr.contains("unknown token"), "{refused:?}");
    assert!(!machine.file("secrets.key").exists());
    for bad in [["--ttl", "25h"], ["--ttl", "0s"]] {
        on_data.run(&["access", "token", bad[0], bad[1]]).await.failed(2);
    }
    let elsewhere = nerve::call(nerve::command(["access", "token", "--data", "/nonexistent"]), "").await.failed(1);
    assert!(elsewhere.stderr.contains("--data"), "{elsewhere:?}");
}

#[tokio::test]
async fn machine_that_joined_as_gateway_serves_and_is_no_worker() {
    let nerve = Nerve::up().await;
    let machine = Machine::new("edge-1");
    machine.join(&token(&nerve, &["--role", "gateway"]).await).await.ok();
    let data = machine.data().display().to_string();
    let args = ["gateway", "--listen", "127.0.0.1:0", "--data", &data, "--output", "json"];
    let mut gateway = nerve_tests::daemon::Daemon::spawn("nerve gateway", &mut nerve::command(args));
    let ready = gateway.line(seconds(30), |line| serde_json::from_str::<Value>(line).ok()).await;
    let url = format!("{}/v1/events", ready["gateway"].as_str().unwrap());
    let headers = [("ce-specversion", "1.0"), ("ce-type", "a"), ("ce-id", "1"), ("ce-source", "/tests")];
    let mut request = reqwest::Client::new().post(url).header("content-type", "application/json").body("{}");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    assert_eq!(request.send().await.unwrap().status(), 202);
    let refused = nerve::call(nerve::command(["worker", "--data", &data]), "").await.failed(1);
    assert!(refused.stderr.contains("joined as gateway"), "{refused:?}");
    let refused = nerve::call(nerve::command(["up", "--data", &data]), "").await.failed(1);
    assert!(refused.stderr.contains("has joined the NATS of another one"), "{refused:?}");
}

#[tokio::test]
async fn server_without_the_secrets_key_says_which_it_lacks_and_how_to_get_it() {
    let nerve = Nerve::up_with(Options::default()).await;
    nerve.cli().secret("TOKEN", SECRET).await;
    nerve.cli().deploy(teller(Path::new("/dev/null")).path()).await;
    let creds = nerve.nats.credentials.as_ref().unwrap().with_file_name("worker.creds").display().to_string();
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().display().to_string();
    let args = ["worker", "--nats", &nerve.nats.url, "--creds", &creds, "--data", &folder, "--output", "json"];
    let worker = nerve_tests::daemon::Daemon::spawn("nerve worker", &mut nerve::command(args));
    let said = ["does not have the secrets key", "secret TOKEN is encrypted for the secrets key", "nerve access token"];
    worker.logs("it says what it lacks", &said).await;
    assert!(!worker.stderr().contains("nerve secrets set"), "which would change nothing");
}

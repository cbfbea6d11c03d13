//! A server's files are its user's alone, and it believes no files that somebody else may have put there.

use crate::post_event;
use nerve_tests::{
    Nerve, Streams,
    broker::OfNerve,
    daemon::Daemon,
    eventually, guest,
    nerve::{self, Options},
    seconds,
};
use serde_json::Value;
use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

/// A user that runs nothing here.
pub(crate) const OTHER: u32 = 65_534;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Everything in a folder, and the folder.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut next) = (vec![folder.to_owned()], vec![folder.to_owned()]);
    while let Some(folder) = next.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            found.push(entry.path());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                next.push(entry.path());
            }
        }
    }
    found
}

#[tokio::test]
async fn data_folder_is_private_whatever_the_umask_and_whatever_was_there() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    fs::create_dir_all(data.join("artifacts")).unwrap();
    fs::write(data.join("artifacts/old"), "").unwrap();
    for (path, mode) in [(data.join("artifacts/old"), 0o644), (data.join("artifacts"), 0o755), (data.clone(), 0o755)] {
        set_mode(&path, mode);
    }
    let nerve = Nerve::up_with(Options { data: Some(data.clone()), ..Options::default() }).await;
    nerve.cli().deploy(guest::wasm("echo", "events.a", "b", "", &guest::echo("b")).path()).await;
    post_event(&nerve, "a", "1", "{}").await;
    Streams::connect(&nerve.nats).await.reaches("EVENTS", "events.b", 1, seconds(20)).await;
    let files = tree(&data);
    assert!(files.len() > 10, "{files:?}");
    for file in files.iter().filter(|file| !file.is_symlink() && file.exists()) {
        assert_eq!(mode(file) & 0o077, 0, "{}: {:o}", file.display(), mode(file));
    }
}

/// `nerve up` in that folder, which must end by itself.
async fn up_in(folder: &Path, data: &Path) -> nerve::Output {
    let mut command = nerve::command(["up", "--listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0", "--data"]);
    command.arg(data).env_remove("NERVE_NATS_SERVER").env("PATH", "/usr/bin:/bin").current_dir(folder);
    nerve::call(command, "").await.failed(1)
}

#[tokio::test]
async fn settings_programs_and_endpoints_of_somebody_else_are_not_believed() {
    let (theirs, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = theirs.path();
    fs::write(folder.join("nerve-server.toml"), "[nats]\nurl = \"nats://127.0.0.1:1\"\n").unwrap();
    chown(folder.join("nerve-server.toml"), Some(OTHER), None).unwrap();
    let refused = up_in(folder, data.path()).await;
    for said in ["nerve-server.toml belongs to another user (uid 65534)", "--config"] {
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
    fs::remove_file(folder.join("nerve-server.toml")).unwrap();

    // A program that would say so, if it ran.
    let bin = folder.join(".tools/bin");
    fs::create_dir_all(&bin).unwrap();
    let program = bin.join("nats-server");
    let ran = folder.join("ran");
    fs::write(&program, format!("#!/bin/sh\ntouch {}\necho nats-server: v2.15.1\n", ran.display())).unwrap();
    set_mode(&program, 0o755);
    chown(&program, Some(OTHER), None).unwrap();
    let refused = up_in(folder, data.path()).await;
    assert!(refused.stderr.contains("ignoring") && refused.stderr.contains("belongs to another user"), "{refused:?}");
    assert!(!ran.exists(), "their program ran");
    // One of this user's that everybody may write to is no better.
    chown(&program, Some(0), None).unwrap();
    set_mode(&bin, 0o777);
    let refused = up_in(folder, data.path()).await;
    assert!(refused.stderr.contains("other users may write to") && !ran.exists(), "{refused:?}");

    // What says where a server is says where secrets are sent.
    let endpoint = folder.join("endpoint.json");
    let text =
        format!(r#"{{"gateway":"http://127.0.0.1:1","nats":"nats://127.0.0.1:1","pid":{}}}"#, std::process::id());
    fs::write(&endpoint, text).unwrap();
    chown(&endpoint, Some(OTHER), None).unwrap();
    let mut command = nerve::command(["list", "--data"]);
    command.arg(folder);
    let refused = nerve::call(command, "").await.failed(1);
    assert!(refused.stderr.contains("belongs to another user"), "{refused:?}");
}

#[tokio::test]
async fn library_of_somebody_else_is_not_loaded() {
    let (theirs, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let lib = theirs.path().join(".tools/lib");
    fs::create_dir_all(&lib).unwrap();
    let library = lib.join("libonnxruntime.so");
    fs::write(&library, "no library").unwrap();
    chown(&library, Some(OTHER), None).unwrap();
    let mut command = nerve::command(["up", "--listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0", "--data"]);
    command.arg(data.path()).args(["--output", "json"]).env_remove("ORT_DYLIB_PATH").current_dir(theirs.path());
    let mut daemon = Daemon::spawn("nerve up", &mut command);
    daemon.line(seconds(30), |line| serde_json::from_str::<Value>(line).ok()).await;
    let log = daemon.stderr();
    assert!(
        log.contains("libonnxruntime.so") && log.contains("ignoring") && log.contains("belongs to another user"),
        "{log}"
    );
}

/// `nerve up` of another user than this one, who is root, with these variables.
pub(crate) async fn up_as_other(root: &Path, envs: &[(&str, &str)]) -> (Daemon, OfNerve) {
    up_as(OTHER, root, |command| {
        command.envs(envs.iter().copied());
    })
    .await
}

/// `nerve up` of a user, with data in `root`, and the command changed so.
pub(crate) async fn up_as(user: u32, root: &Path, change: impl FnOnce(&mut Command)) -> (Daemon, OfNerve) {
    set_mode(root, 0o755);
    let data = root.join("data");
    fs::create_dir(&data).unwrap();
    chown(&data, Some(user), Some(user)).unwrap();
    let mut command = nerve::command(["up", "--listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0", "--data"]);
    command.arg(&data).args(["--output", "json"]).uid(user).gid(user);
    change(&mut command);
    let mut daemon = Daemon::spawn("nerve up", &mut command);
    let ready = daemon.line(seconds(30), |line| serde_json::from_str::<Value>(line).ok()).await;
    let text = |key: &str| ready[key].as_str().unwrap().to_owned();
    let nats = OfNerve { url: text("nats"), credentials: Some(text("nats_credentials").into()) };
    (daemon, nats)
}

#[tokio::test]
async fn process_of_the_same_user_cannot_read_the_servers_environment() {
    let root = tempfile::tempdir().unwrap();
    let key = "6e65727665206e65727665206e65727665206e65727665206e65727665212121";
    let (_daemon, nats) = up_as_other(root.path(), &[("NERVE_SECRETS_KEY", key)]).await;
    // It looks at every process that it may look at.
    let script = "import glob, json, os, sys\nfor line in sys.stdin:\n    call = json.loads(line)\n    found = []\n    \
                  for path in glob.glob('/proc/[0-9]*/environ'):\n        \
                      try:\n            found += [path] if b'NERVE_SECRETS_KEY=' in open(path, 'rb').read() else []\n        \
                      except OSError: pass\n    \
                  data = {'found': found, 'uid': os.getuid()}\n    \
                  print(json.dumps({'id': call['id'], 'events': [{'type': 'b', 'data': data}]}), flush=True)\n";
    let cli = nerve_tests::Cli::new(&nats);
    cli.deploy(guest::python("curious", "events.a", "b", "", script).path()).await;
    cli.run(&["publish", "a", "--data", "1"]).await.ok();
    let streams = Streams::connect(&nats).await;
    let seen = eventually("it has looked", seconds(30), || async {
        let events = streams.read("EVENTS", "events.b").await;
        Some(serde_json::from_slice::<Value>(&events.first()?.data).unwrap())
    })
    .await;
    assert_eq!(seen, serde_json::json!({"found": [], "uid": OTHER}));
}

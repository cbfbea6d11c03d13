//! What people get wrong at a command line: each is told at once what it is, and no secret in it is shown.

use nerve_tests::{
    Cli, Folder, Nerve,
    joined::{Machine, token},
    nerve, seconds,
};
use nix::{sys::stat::Mode, unistd::mkfifo};
use std::{path::Path, time::Instant};

/// A secret that nothing may show.
const SECRET: &str = "hunter2-p4ss";
const PIPE: &str = "it is a named pipe, and not a regular file";

fn pipe(folder: &Path, name: &str) -> String {
    let path = folder.join(name);
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn pipe_is_refused_wherever_a_command_reads_a_file() {
    let nerve = Nerve::up().await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (manifest, file) = (pipe(folder, "nerve.toml"), pipe(folder, "file"));
    std::fs::create_dir(folder.join("model")).unwrap();
    pipe(&folder.join("model"), "model.onnx");
    let (model, body) = (folder.join("model").display().to_string(), format!("@{file}"));
    let commands: [&[&str]; 6] = [
        &["deploy", &manifest],
        &["models", "add", &model],
        &["ingest", &file],
        &["publish", "a", "--data", &body],
        &["eval", &file],
        &["list", "--creds", &file],
    ];
    for command in commands {
        let started = Instant::now();
        let mut call = nerve::command(command);
        call.env("NERVE_DATA_DIR", nerve.data());
        let refused = nerve::call(call, "").await.failed(1);
        assert!(refused.stderr.contains(PIPE) && refused.stderr.contains("next:"), "{command:?}: {refused:?}");
        assert!(started.elapsed() < seconds(10), "{command:?} took {:?}", started.elapsed());
    }
    // A sink's template is read before anything is deployed, and a name without a log is none.
    let sink = "[sink.pay]\nurl = \"https://h.example/\"\non = [\"events.a\"]\ntemplate = \"{{ oops\"\n";
    let refused = nerve.cli().run(&["deploy", &Folder::new(sink).path().display().to_string()]).await.failed(1);
    assert!(refused.stderr.contains("the sink pay") && refused.stderr.contains("invalid `template`"), "{refused:?}");
    let refused = nerve.cli().run(&["logs", "nope"]).await.failed(1);
    assert!(refused.stderr.contains("`nope` is deployed"), "{refused:?}");
    Cli::with(&["--data", nerve.data()]).run(&["access", "rotate"]).await.ok();
    nerve.daemon.logs("that the connection is back", &["reconnected to NATS"]).await;
}

#[tokio::test]
async fn settings_that_cannot_be_read_stop_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nerve-server.toml");
    let up = |args: &[&str]| {
        let data = folder.path().join("data").display().to_string();
        let mut up = nerve::command([&["up", "--data", &data, "--listen", "127.0.0.1:0"], args].concat());
        up.current_dir(folder.path());
        nerve::call(up, "")
    };
    pipe(folder.path(), "nerve-server.toml");
    let refused = up(&[]).await.failed(1);
    assert!(refused.stderr.contains("nerve-server.toml cannot be read: it is a named pipe"), "{refused:?}");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let refused = up(&[]).await.failed(1);
    assert!(refused.stderr.contains("it is a folder, and not a regular file"), "{refused:?}");
    let refused = up(&["--config", "/dev/zero"]).await.failed(1);
    assert!(refused.stderr.contains("/dev/zero cannot be read: it is a device"), "{refused:?}");
}

#[tokio::test]
async fn mistaken_url_shows_no_password() {
    for url in [format!("nats:/ada:{SECRET}@127.0.0.1:1"), format!("ada/{SECRET}@127.0.0.1:1")] {
        let refused = Cli::with(&["--nats", &url]).run(&["list"]).await.failed(2);
        assert!(refused.stderr.contains("nats://user:password@host:4222"), "{refused:?}");
        assert!(!refused.text().contains(SECRET), "{refused:?}");
    }
    for url in [format!("ada:{SECRET}@h.example/p"), format!("https:/ada:{SECRET}@h.example/p")] {
        let sink = Folder::new(&format!("[sink.a]\nurl = \"{url}\"\non = [\"events.a\"]\n"));
        let refused = nerve::call(nerve::command(["deploy", &sink.path().display().to_string()]), "").await.failed(1);
        assert!(refused.stderr.contains("***@h.example/p`"), "{refused:?}");
        assert!(!refused.text().contains(SECRET), "{refused:?}");
    }
}

#[tokio::test]
async fn joined_machine_is_told_at_once_what_it_may_not_do() {
    let nerve = Nerve::up().await;
    let machine = Machine::new("build-2");
    let token = token(&nerve, &[]).await;
    machine.join(&token).await.ok();
    let again = machine.join(&token).await.failed(1);
    assert!(again.stderr.contains("has already joined as `build-2`"), "{again:?}");

    let cli = Cli::with(&["--data", &machine.data().display().to_string()]);
    let source = Folder::new("[source.open]\nprovider = \"cloudevents\"\nverify = \"none\"\n");
    let source = source.path().display().to_string();
    let commands: [(&[&str], &str); 3] = [
        (&["deploy", &source], "$KV.functions.source.open"),
        (&["secrets", "set", "A"], "$KV.secrets.A"),
        (&["collections", "quota", "red", "--documents", "1"], "$KV.functions.collection."),
    ];
    for (command, subject) in commands {
        let started = Instant::now();
        let refused = cli.run_with(command, "value").await.failed(1);
        assert!(started.elapsed() < seconds(4), "{command:?} took {:?}", started.elapsed());
        let thing = format!("these credentials may not publish to {subject}");
        for text in [thing.as_str(), "Permissions Violation", "joined as worker"] {
            assert!(refused.stderr.contains(text), "{command:?}: {refused:?}");
        }
        assert!(!refused.stderr.contains("WARN"), "{refused:?}");
    }
    cli.run(&["list"]).await.ok();
}

//! What a process function cannot open, read or signal: the data folder, other files with keys, and processes that are not its own.

use crate::home::up_as_other;
use nerve_tests::{Broker, Cli, Nerve, Streams, eventually, guest, seconds};
use serde_json::{Value, json};
use std::{fs, path::Path};

/// Tries what its event lists, and says what became of each.
const TRIES: &str = r"
import glob, json, os, signal, subprocess, sys, tempfile
def environments(word):
    found = []
    for path in glob.glob('/proc/[0-9]*/environ'):
        try:
            if word.encode() in open(path, 'rb').read() and path != '/proc/%d/environ' % os.getpid():
                found.append(path)
        except OSError:
            pass
    return found
def child():
    child = subprocess.Popen(['sleep', '1000'], stdout=subprocess.DEVNULL)
    os.kill(child.pid, signal.SIGTERM)
    return child.wait()
def replace():
    os.mkdir('inner')
    open('moved', 'w').write('mine')
    os.replace('moved', 'inner/moved')
    return open('inner/moved').read()
acts = {
    'read': lambda path: len(open(path, 'rb').read()),
    'list': lambda path: len(os.listdir(path)),
    'write': lambda path: open(path, 'w').write('x'),
    'link': lambda path: os.symlink(path, 'link') or len(open('link', 'rb').read()),
    'signal': lambda pid: os.kill(os.getppid() if pid == 'parent' else pid, 0) or 'sent',
    'environments': environments,
    'child': lambda _: child(),
    'replace': lambda _: replace(),
    'temporary': lambda _: len(tempfile.NamedTemporaryFile().name) > 0,
}
def attempt(act, on):
    try:
        return acts[act](on)
    except OSError as error:
        return type(error).__name__
for line in sys.stdin:
    call = json.loads(line)
    data = [attempt(*each) for each in call['event']['data']]
    print(json.dumps({'id': call['id'], 'events': [{'type': 'b', 'data': data}]}), flush=True)
";

/// What became of each of `tries`.
async fn outcomes(nats: &impl Broker, tries: Value) -> Value {
    let cli = Cli::new(nats);
    cli.deploy(guest::python("curious", "events.a", "b", "", TRIES).path()).await;
    cli.run(&["publish", "a", "--data", &tries.to_string()]).await.ok();
    let streams = Streams::connect(nats).await;
    eventually("it has tried", seconds(30), || async {
        let events = streams.read("EVENTS", "events.b").await;
        Some(serde_json::from_slice(&events.first()?.data).unwrap())
    })
    .await
}

fn path(at: &Path) -> &str {
    at.to_str().unwrap()
}

#[tokio::test]
async fn process_function_cannot_open_the_data_folder_or_a_file_with_keys() {
    let root = tempfile::tempdir().unwrap();
    let (settings, beside) = (root.path().join("settings.toml"), root.path().join("beside.txt"));
    fs::write(&settings, "[rag]\npostgres = \"\"\n").unwrap();
    fs::write(&beside, "beside").unwrap();
    let nerve = Nerve::up_configured(&settings).await;
    let data = Path::new(nerve.data());
    let files = ["secrets.key", "nats/operator.creds", "nats/account.nk", "new"].map(|file| data.join(file));
    let [key, operator, account, new] = files.each_ref().map(|file| path(file));
    for file in [key, operator, account] {
        assert!(Path::new(file).exists(), "{file}");
    }
    let processes = data.join("processes");
    let root = format!("/proc/self/root{}", data.display());
    let refused = [
        json!(["read", key]),
        json!(["read", operator]),
        json!(["link", account]),
        json!(["write", new]),
        json!(["write", account]),
        json!(["list", data]),
        json!(["list", processes]),
        json!(["list", root]),
        json!(["read", settings]),
        json!(["write", settings]),
    ];
    let allowed = [
        json!(["read", beside]),
        json!(["write", beside]),
        json!(["replace", 0]),
        json!(["temporary", 0]),
        json!(["list", "/usr"]),
    ];
    let tries: Vec<Value> = refused.iter().chain(&allowed).cloned().collect();
    let seen = outcomes(&nerve.nats, json!(tries)).await;
    let (first, rest) = seen.as_array().unwrap().split_at(refused.len());
    for (tried, outcome) in refused.iter().zip(first) {
        assert_eq!(outcome, "PermissionError", "{tried}");
    }
    assert_eq!(rest[..4], [json!(6), json!(1), json!("mine"), json!(true)]);
    assert!(rest[4].as_u64() > Some(1), "{rest:?}");
    assert_eq!(fs::read_to_string(&beside).unwrap(), "x");
    assert!(!Path::new(new).exists());
}

#[tokio::test]
async fn process_function_neither_reads_nor_signals_other_processes() {
    // Root may read every environment, whatever else is closed to it.
    let root = tempfile::tempdir().unwrap();
    let (daemon, nats) = up_as_other(root.path(), &[]).await;
    let other = "import sys\nfor line in sys.stdin: pass\n";
    let cli = Cli::new(&nats);
    cli.secret("WORD", "hunter2").await;
    let folder = guest::python("other", "events.other", "c", "secrets = [\"WORD\"]", other);
    cli.deploy(folder.path()).await;
    let pid = eventually("the other function runs", seconds(20), || async { holder_of("WORD=hunter2") }).await;
    let tries = json!([
        ["environments", "hunter2"],
        ["signal", pid],
        ["signal", "parent"],
        ["signal", daemon.server().as_raw()],
        ["child", 0],
    ]);
    let seen = outcomes(&nats, tries).await;
    assert_eq!(seen, json!([[], "PermissionError", "PermissionError", "PermissionError", -15]));
    assert_eq!(holder_of("WORD=hunter2"), Some(pid));
}

/// The process that has this in its environment, and whose parent has it too.
fn holder_of(word: &str) -> Option<i32> {
    let mut found: Vec<i32> = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let holds = fs::read(entry.path().join("environ")).unwrap_or_default();
        if holds.split(|&byte| byte == 0).any(|variable| variable == word.as_bytes()) {
            found.push(pid);
        }
    }
    // The function has the larger id of the two: its parent came first.
    (found.len() > 1).then(|| found.into_iter().max()).flatten()
}

//! What a process function cannot open, read or signal: the data folder, other files with keys, and processes that are not its own.

use crate::home::{OTHER, up_as, up_as_other};
use nerve_tests::{Broker, Cli, Nerve, Streams, daemon::Daemon, eventually, guest, seconds};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::{
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Tries what its event lists, and says what became of each.
const TRIES: &str = r"
import glob, json, os, resource, signal, socket, subprocess, sys, tempfile, threading
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
def network():
    with socket.create_server(('127.0.0.1', 0)) as server:
        socket.create_connection(server.getsockname()).close()
    return 'connected'
def threads():
    done = []
    several = [threading.Thread(target=done.append, args=(n,)) for n in range(8)]
    [one.start() for one in several]
    [one.join() for one in several]
    return len(done)
def run(command):
    return subprocess.run(command, capture_output=True, text=True).stdout
acts = {
    'chmod': lambda path: os.chmod(path, 0o777),
    'chown': lambda path: os.chown(path, os.getuid(), os.getgid()),
    'utime': lambda path: os.utime(path, (0, 0)),
    'setxattr': lambda path: os.setxattr(path, 'user.nerve', b'x'),
    'limit': lambda pid: resource.prlimit(pid, resource.RLIMIT_CPU, (1000, 1000)),
    'nice': lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 10),
    'nice_user': lambda _: os.setpriority(os.PRIO_USER, 0, 10),
    'schedule': lambda pid: os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0)),
    'victim': lambda pid: open('/proc/%d/oom_score_adj' % pid, 'w').write('500'),
    'ionice': lambda pid: subprocess.run(['ionice', '-c', '3', '-p', str(pid)]).returncode,
    'own_limit': lambda _: resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000)),
    'own_nice': lambda _: os.setpriority(os.PRIO_PROCESS, 0, 10),
    'network': lambda _: network(),
    'threads': lambda _: threads(),
    'run': run,
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

/// Whether something was refused: there is no such path, or it is read-only, or not allowed.
fn is_refusal(outcome: &Value) -> bool {
    ["PermissionError", "FileNotFoundError", "OSError"].iter().any(|error| outcome == error)
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
        assert!(is_refusal(outcome), "{tried}: {outcome}");
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

/// What the owner of a file may change, and when it was changed.
fn state_of(file: &Path) -> (u32, u32, u32, i64) {
    let found = fs::symlink_metadata(file).unwrap();
    (found.mode(), found.uid(), found.gid(), found.ctime())
}

/// Has a process function of that user's server try to open the data folder to all users.
async fn opens_nothing(user: u32) {
    let root = tempfile::tempdir().unwrap();
    let (_daemon, nats) = up_as(user, root.path(), |_| ()).await;
    let data = root.path().canonicalize().unwrap().join("data");
    let paths = ["nats", "nats/operator.creds", "nats/account.nk", "secrets.key"].map(|path| data.join(path));
    let before = paths.each_ref().map(|path| state_of(path));
    let relative = PathBuf::from("../../..");
    let acts = ["chmod", "chown", "utime", "setxattr"];
    let on = paths.iter().cloned().chain([data.clone(), relative.clone(), relative.join("secrets.key")]);
    let tries: Vec<Value> = on.flat_map(|path| acts.map(|act| json!([act, path]))).collect();
    let seen = outcomes(&nats, json!(tries)).await;
    for (tried, outcome) in tries.iter().zip(seen.as_array().unwrap()) {
        assert!(is_refusal(outcome), "{tried}: {outcome}");
    }
    assert_eq!(paths.each_ref().map(|path| state_of(path)), before);
    assert_eq!(fs::symlink_metadata(&data).unwrap().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn process_function_changes_no_mode_or_owner_in_the_data_folder() {
    opens_nothing(OTHER).await;
}

#[tokio::test]
async fn process_function_of_root_changes_no_mode_in_the_data_folder() {
    opens_nothing(0).await;
}

/// The limits of a process, its priority, and how soon it is ended where memory runs out.
fn limits_of(pid: Pid) -> [String; 3] {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let nice = stat.rsplit(") ").next().unwrap().split(' ').nth(16).unwrap().to_owned();
    let read = |file| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    [nice, read("limits"), read("oom_score_adj")]
}

/// The supervisor, the server and the broker.
fn processes_of(daemon: &Daemon) -> [Pid; 3] {
    [daemon.pid(), daemon.server(), daemon.children("nats-server")[0]]
}

async fn slows_nothing_down(user: u32) {
    let root = tempfile::tempdir().unwrap();
    let (daemon, nats) = up_as(user, root.path(), |_| ()).await;
    let processes = processes_of(&daemon);
    let before = processes.map(limits_of);
    let acts = ["limit", "nice", "schedule", "victim", "ionice"];
    let tries = processes.iter().flat_map(|pid| acts.map(|act| json!([act, pid.as_raw()])));
    let tries: Vec<Value> = tries.chain([json!(["nice_user", 0])]).collect();
    let seen = outcomes(&nats, json!(tries)).await;
    for (tried, outcome) in tries.iter().zip(seen.as_array().unwrap()) {
        assert!(outcome == "PermissionError" || *outcome == json!(1), "{tried}: {outcome}");
    }
    assert_eq!(processes_of(&daemon), processes);
    assert_eq!(processes.map(limits_of), before);
}

#[tokio::test]
async fn process_function_limits_no_other_process() {
    slows_nothing_down(OTHER).await;
}

#[tokio::test]
async fn process_function_of_root_limits_no_other_process() {
    slows_nothing_down(0).await;
}

#[tokio::test]
async fn confined_process_function_does_what_harmless_programs_do() {
    let root = tempfile::tempdir().unwrap();
    let (daemon, nats) = up_as_other(root.path(), &[]).await;
    let shell = "echo x > /dev/stderr; echo made > file; cat file; cd \"$TMPDIR\"; [ \"$PWD\" -ef . ] && ls; id -u";
    let node = "const {Worker} = require('worker_threads'); new Worker('', {eval: true}).on('exit', console.log)";
    let tries = json!([
        ["read", "curious.py"],
        ["replace", 0],
        ["temporary", 0],
        ["child", 0],
        ["threads", 0],
        ["network", 0],
        ["own_limit", 0],
        ["own_nice", 0],
        ["run", ["sh", "-c", shell]],
        ["run", ["node", "-e", node]],
        ["chmod", "curious.py"],
    ]);
    let seen = outcomes(&nats, tries).await;
    let files = "made\ncurious.py\nfile\ninner\n65534\n";
    let expected = json!([TRIES.len(), "mine", true, -15, 8, "connected", null, null, files, "0\n", null]);
    assert_eq!(seen, expected);
    let log = daemon.stderr();
    assert!(!log.contains("process functions can") && !log.contains("run without"), "{log}");
}

/// A program that has the kernel refuse `seccomp` (ENOSYS) and `unshare` (EPERM) to the command in its arguments.
const LACKING: &str = r"
import ctypes, os, platform, struct, sys
numbers = {'x86_64': (317, 272), 'aarch64': (277, 97)}[platform.machine()]
code = struct.pack('HBBI', 0x20, 0, 0, 0)
for number, errno in zip(numbers, (38, 1)):
    code += struct.pack('HBBI', 0x15, 0, 1, number) + struct.pack('HBBI', 0x06, 0, 0, 0x50000 | errno)
code += struct.pack('HBBI', 0x06, 0, 0, 0x7fff0000)
held = ctypes.create_string_buffer(code)
program = struct.pack('HxxxxxxP', len(code) // 8, ctypes.addressof(held))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_char_p(program)) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
";

/// The same command, under a program that takes its calls away.
fn lack(command: &mut Command) {
    let arguments: Vec<OsString> =
        [command.get_program()].into_iter().chain(command.get_args()).map(ToOwned::to_owned).collect();
    let mut lacking = Command::new("python3");
    lacking
        .args(["-c", LACKING])
        .args(arguments)
        .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    *command = lacking;
}

#[tokio::test]
async fn server_says_which_confinement_its_kernel_lacks() {
    let root = tempfile::tempdir().unwrap();
    let (daemon, nats) = up_as(0, root.path(), lack).await;
    let said = [
        "helper processes that read untrusted bytes run without seccomp filters",
        "process functions can change limits and priorities",
        "process functions can change modes, owners and times",
        "a user namespace is refused",
    ];
    daemon.logs("what the kernel lacks", &said).await;
    let seen = outcomes(&nats, json!([["threads", 0], ["read", root.path().join("data/secrets.key")]])).await;
    assert_eq!(seen, json!([8, "PermissionError"]));
    // A helper process compiles it.
    Cli::new(&nats).deploy(guest::wasm("echo", "events.c", "d", "", &guest::echo("d")).path()).await;
    Cli::new(&nats).run(&["publish", "c", "--data", "1"]).await.ok();
    Streams::connect(&nats).await.reaches("EVENTS", "events.d", 1, seconds(30)).await;
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

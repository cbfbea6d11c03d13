//! Everything hostile at once: documents, models, components, manifests and requests go through one `nerve up` while good
//! neighbors send. Each hostile one ends in a clear error, and costs nobody else anything.

mod components;
mod documents;
mod manifests;
mod models;
mod requests;

use crate::post_event;
use nerve_tests::{Folder, Nerve, Streams, daemon, eventually, guest, nerve::Output, seconds};
use nix::unistd::Pid;
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinSet;

/// What the server, its supervisor and its helpers may hold together, in bytes.
const MEMORY: u64 = 1 << 30;
/// How often the good neighbors send.
const SEND_INTERVAL: Duration = Duration::from_millis(150);

/// What good neighbors have deployed, and what hostile documents and events are given to.
const FUNCTIONS: &str = "[source.github]\nprovider = \"github\"\nsecrets = [\"GITHUB_WEBHOOK_SECRET\"]\n\
    [function.chunk]\nruntime = \"builtin\"\nuse = \"rag/chunk\"\non = [\"events.document.uploaded\"]\n\
    emits = [\"document.chunked\"]\ntimeout = \"15s\"\nretry = { attempts = 1 }\nconcurrency = 4\n\
    [function.good]\nruntime = \"wasm\"\nsource = \"good.wasm\"\non = [\"events.good.asked\"]\nemits = [\"good.answered\"]\n\
    [function.process]\nruntime = \"process\"\ncommand = [\"python3\", \"process.py\"]\non = [\"events.good.asked\"]\n\
    emits = [\"good.processed\"]\n";
const PROCESS: &str = "import json, sys\nfor line in sys.stdin:\n    call = json.loads(line)\n    \
    emitted = {'type': 'good.processed', 'data': call['event']['data']}\n    \
    print(json.dumps({'id': call['id'], 'events': [emitted]}), flush=True)\n";

/// The processes below one, with their command lines.
fn descendants(of: Pid) -> BTreeMap<i32, String> {
    let mut parents: HashMap<i32, (i32, String)> = HashMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let parent = read("status").lines().find_map(|line| line.strip_prefix("PPid:\t")?.parse().ok());
        parents.insert(pid, (parent.unwrap_or_default(), read("cmdline").replace('\0', " ")));
    }
    let is_below = |pid: i32| {
        let chain = std::iter::successors(Some(pid), |pid| parents.get(pid).map(|(parent, _)| *parent));
        chain.take(64).any(|pid| pid == of.as_raw())
    };
    parents.iter().filter(|(pid, _)| is_below(**pid)).map(|(pid, (_, command))| (*pid, command.clone())).collect()
}

fn is_helper(command: &str) -> bool {
    command.split(' ').nth(1) == Some("sandbox")
}

/// What a process takes of the memory, in bytes: shared pages are divided among those who share them.
fn proportional_bytes(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() << 10
}

/// Looks at the memory of a server again and again.
struct Memory {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    looker: std::thread::JoinHandle<()>,
}

impl Memory {
    fn watch(server: Pid) -> Self {
        let (peak, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (seen, stopped) = (peak.clone(), stop.clone());
        let looker = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // What a function's own program holds is bounded by its manifest.
                let counted = descendants(server)
                    .into_iter()
                    .filter(|(_, command)| !command.contains("nats-server") && !command.contains("process.py"));
                let bytes = counted.map(|(pid, _)| proportional_bytes(pid)).sum();
                seen.fetch_max(bytes, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Self { peak, stop, looker }
    }

    fn peak(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.looker.join().unwrap();
        self.peak.load(Ordering::Relaxed)
    }
}

/// Those who send what is right all the while.
struct Neighbors {
    stop: Arc<AtomicBool>,
    /// Each ends with its number, and how much it has sent.
    senders: JoinSet<(usize, usize)>,
}

impl Neighbors {
    fn start(nerve: &Nerve) -> Self {
        let mut neighbors = Self { stop: Arc::default(), senders: JoinSet::new() };
        let client = reqwest::Client::new();
        let (to, url) = (client.clone(), nerve.url("/v1/events"));
        neighbors.send(0, move |number| {
            let request = to.post(&url).header("ce-specversion", "1.0").header("ce-type", "good.asked");
            let request = request.header("ce-source", "/good").header("ce-id", number.to_string());
            request.header("content-type", "application/json").body(number.to_string()).send()
        });
        let (to, url) = (client, nerve.url("/v1/documents?collection=good&document="));
        neighbors.send(1, move |number| {
            let request = to.post(format!("{url}{number}.txt")).header("content-type", "text/plain");
            request.body(format!("Invoice {number} is paid late.")).send()
        });
        let url = nerve.url("/hooks/github");
        neighbors.send(2, move |number| {
            let body = r#"{"zen":"Mind your words."}"#;
            nerve_tests::github::delivery(&url, "ping", &format!("good-{number}"), body).send()
        });
        neighbors
    }

    fn send<S>(&mut self, sender: usize, one: impl Fn(usize) -> S + Send + 'static)
    where
        S: Future<Output = reqwest::Result<reqwest::Response>> + Send,
    {
        let stop = self.stop.clone();
        self.senders.spawn(async move {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                let answer = one(sent).await.expect("the gateway answers a good neighbor");
                assert!(answer.status().is_success(), "{answer:?}");
                sent += 1;
                tokio::time::sleep(SEND_INTERVAL).await;
            }
            (sender, sent)
        });
    }

    /// Events, documents and webhooks that were sent and accepted.
    async fn stop(self) -> [usize; 3] {
        self.stop.store(true, Ordering::Relaxed);
        let mut sent = self.senders.join_all().await;
        sent.sort_unstable();
        [0, 1, 2].map(|sender| sent[sender].1)
    }
}

/// What `nerve dlq show` says of each dead letter, by the subject of its event, or its id where it has none.
async fn dead_letters(nerve: &Nerve, streams: &Streams) -> BTreeMap<String, String> {
    let mut shown = BTreeMap::new();
    for letter in streams.read("DEAD", ">").await {
        let name = [letter.header("ce-subject"), letter.header("ce-id")].into_iter().find(|name| !name.is_empty());
        let text = nerve.cli().run(&["dlq", "show", &letter.sequence.to_string()]).await.ok().stdout;
        shown.insert(name.expect("an event has an id").to_owned(), text);
    }
    shown
}

/// What was not as it should be; all of it is shown at the end.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    /// Notes `what` unless `holds`.
    fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.0.push(what().chars().take(600).collect());
        }
    }

    /// Checks that a command refused with a message that has this in it, and that it shows no control character.
    fn check_refused(&mut self, name: &str, output: &Output, said: &str) {
        let text = &output.stderr;
        let is_shown = text.len() < 16 << 10 && text.chars().all(|letter| letter == '\n' || !letter.is_control());
        let is_refused = matches!(output.code, Some(1 | 2)) && text.contains(said) && !text.contains("panicked");
        self.check(is_refused && is_shown, || format!("{name}: no `{said}`, code {:?}: {text}", output.code));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_hostile_inputs_cost_nothing_but_themselves() {
    let nerve = Nerve::up().await;
    nerve.cli().secret("GITHUB_WEBHOOK_SECRET", nerve_tests::github::SECRET).await;
    let folder = Folder::new(FUNCTIONS).with("good.wasm", guest::echo("good.answered")).with("process.py", PROCESS);
    nerve.cli().deploy(folder.path()).await;
    crate::source_is_served(&nerve, "github").await;
    let streams = Streams::connect(&nerve.nats).await;
    post_event(&nerve, "good.asked", "first", "0").await;
    streams.reaches("EVENTS", "events.good.processed", 1, seconds(30)).await;
    let before = descendants(nerve.daemon.pid());
    let lasting: Vec<i32> = before.iter().filter(|(_, command)| !is_helper(command)).map(|(pid, _)| *pid).collect();
    assert!(lasting.len() >= 5, "a supervisor, a server, a broker, a function and its parent: {before:?}");
    let memory = Memory::watch(nerve.daemon.pid());
    let neighbors = Neighbors::start(&nerve);

    let (mut faults, mut count) = (Faults::default(), 0);
    count += requests::send(&nerve, &mut faults).await;
    count += manifests::deploy(&nerve, &mut faults).await;
    count += models::add(&nerve, &mut faults).await;
    let documents = documents::upload(&nerve).await;
    let components = components::run(&nerve, &mut faults).await;
    count += components.refused;
    let expected: Vec<(String, &str)> = documents.into_iter().chain(components.dead).collect();
    count += expected.len();
    assert!(count >= 60, "{count} hostile inputs");
    eventually("each hostile document and event is a dead letter", seconds(120), || async {
        (streams.count("DEAD", ">").await >= expected.len()).then_some(())
    })
    .await;

    let [events, documents, webhooks] = neighbors.stop().await;
    assert!(events > 20, "{events}");
    streams.reaches("EVENTS", "events.good.answered", events + 1, seconds(60)).await;
    streams.reaches("EVENTS", "events.good.processed", events + 1, seconds(60)).await;
    streams.reaches("EVENTS", "events.document.chunked", documents, seconds(60)).await;
    assert_eq!(streams.count("EVENTS", "events.github.ping").await, webhooks);
    let letters = dead_letters(&nerve, &streams).await;
    for (name, said) in &expected {
        let reason = letters.get(name).map_or("no dead letter", String::as_str);
        faults.check(reason.contains(said), || format!("{name}: no `{said}` in {reason}"));
    }
    assert_eq!(letters.len(), expected.len(), "nothing good is a dead letter: {:?}", letters.keys());
    let ended: Vec<&String> = lasting
        .iter()
        .filter(|pid| daemon::command_name(Pid::from_raw(**pid)).is_none())
        .map(|pid| &before[pid])
        .collect();
    assert!(ended.is_empty(), "these have ended: {ended:?}");
    assert_eq!(reqwest::get(nerve.url("/readyz")).await.unwrap().status(), 200);
    let peak = memory.peak();
    assert!(peak < MEMORY, "{} MiB at most", peak >> 20);
    assert!(faults.0.is_empty(), "{:#?}", faults.0);
    println!("{count} hostile inputs, {events} good events, {} MiB at most", peak >> 20);
}

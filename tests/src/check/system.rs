//! The real parts of one run: a nats-server, a gateway and workers; commands, faults, and the end. [`sender`]: what comes in.

mod sender;

use super::{
    history::{End, Entry, Fact, Letter},
    model::{Consumer, Fault, Function, Model, Moment, Post, Step},
};
use crate::{Cli, Folder, Nats, Nerve, Proxy, Streams, daemon::Daemon, github, guest, nerve, seconds};
use futures::{StreamExt, future::join_all};
use nix::sys::signal::Signal;
use reqwest::Client;
use sender::{KEY, Sender};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio_util::task::TaskTracker;

/// The windows in which an id is known; `nerve` takes no shorter one.
pub const WINDOW: Duration = seconds(10);
/// Attempts of a function at an event.
pub const ATTEMPTS: usize = 2;
/// The longest that a step waits for its moment.
const MOMENT: Duration = Duration::from_millis(1500);
/// The longest that a deployment is refused.
const DEPLOY: Duration = seconds(10);
/// The longest that everything takes to come to rest.
const REST: Duration = seconds(20);
/// A killed worker's events come again after this long; how long a worker that is stopped goes on.
const ENVS: [(&str, &str); 2] = [("NERVE_WORKER_ACK_WAIT", "1s"), ("NERVE_WORKER_GRACE", "200ms")];

/// A Nerve of one run, and the history of what was done to it.
pub struct System {
    nats: Nats,
    gateway: Nerve,
    workers: Vec<Daemon>,
    /// Between the first worker and the broker: what a worker has written when it is killed would arrive otherwise.
    proxy: Proxy,
    streams: Streams,
    folder: TempDir,
    version: u32,
    history: History,
}

/// Facts in the order in which they ended.
#[derive(Clone, Default)]
struct History(Arc<Mutex<Vec<Entry>>>);

impl History {
    fn add(&self, at: OffsetDateTime, fact: Fact) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Entry { at, fact });
    }

    fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl System {
    /// Starts all of it, and deploys the sources and functions.
    pub async fn start(workers: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("runs"), "").expect("a file for runs");
        fs::write(folder.path().join("settings.toml"), settings()).expect("a settings file");
        let nats = Nats::start().await;
        let url = nats.url();
        let settings = folder.path().join("settings.toml");
        let gateway = Nerve::gateway_configured(&url, &settings, &ENVS);
        let proxy = Proxy::start(url.trim_start_matches("nats://").to_owned()).await;
        let proxied = format!("nats://{}", proxy.address);
        let urls = std::iter::once(&proxied).chain(std::iter::repeat(&url)).take(workers).enumerate();
        let workers = join_all(urls.map(|(index, url)| worker(url, folder.path(), index)));
        let (gateway, workers) = tokio::join!(gateway, workers);
        let streams = Streams::connect(&url).await;
        let history = History::default();
        let mut system = Self { nats, gateway, workers, proxy, streams, folder, version: 0, history };
        system.cli().secret("GITHUB_WEBHOOK_SECRET", github::SECRET).await;
        system.deploy().await;
        system.serves().await;
        system
    }

    /// Takes one step; `model` is what it is after it.
    pub async fn take(&mut self, model: &Model, step: &Step) {
        match step {
            Step::Send(posts) => self.sender().send_all(model, posts).await,
            Step::Break(fault, moment, posts) => self.breaking(model, *fault, *moment, posts).await,
            Step::Call(tenant, key, request) => self.sender().call(*tenant, *key, *request).await,
            Step::Deploy => self.deploy().await,
            Step::Redrive => self.redrive().await,
            Step::Drop => self.drop_letters().await,
            Step::Replay(function) => self.replay(*function).await,
            Step::Settle => drop(self.settle(REST / 2).await),
            Step::Wait => {
                tokio::time::sleep(WINDOW + seconds(1)).await;
                self.history.add(now(), Fact::Waited);
            }
        }
    }

    /// Waits until everything is at rest, and reads what there is.
    pub async fn end(self) -> (Vec<Entry>, End) {
        let restless = self.settle(REST).await;
        let described = self.cli().run(&["describe", "work", "--output", "json"]).await;
        let listed = self.listed().await;
        let letters = letters(&listed);
        let runs = fs::read_to_string(self.folder.path().join("runs")).expect("the file of runs");
        let runs = runs.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let (events, dead) = (self.streams.read("EVENTS", ">").await, self.streams.read("DEAD", ">").await);
        let listed = vec![listed, serde_json::from_str(&described.stdout).unwrap_or_default()];
        (self.history.take(), End { events, dead, letters, listed, runs, restless })
    }

    fn cli(&self) -> Cli {
        Cli::new(&self.nats.url())
    }

    /// Waits until the gateway knows the sources and the secret.
    async fn serves(&self) {
        crate::eventually("the gateway verifies for the source", seconds(20), || async {
            let forged = github::unsigned(&self.gateway.url("/hooks/gh"), "x", "x").body("{}");
            let status = forged.header("X-Hub-Signature-256", "sha256=00").send().await.ok()?.status();
            (status == 401).then_some(())
        })
        .await;
    }

    fn sender(&self) -> Sender {
        Sender { client: Client::new(), gateway: self.gateway.url(""), history: self.history.clone() }
    }

    /// Sends events, and breaks something at that moment.
    async fn breaking(&mut self, model: &Model, fault: Fault, moment: Moment, posts: &[Post]) {
        let mut results = self.streams.jetstream.client().subscribe("events.work.done").await.expect("a subscription");
        let runs = self.folder.path().join("runs");
        let length = fs::metadata(&runs).map_or(0, |file| file.len());
        if moment == Moment::Before {
            self.strike(fault, moment).await;
        }
        let (sender, model, posts) = (self.sender(), model.clone(), posts.to_vec());
        let sending = TaskTracker::new().spawn(async move { sender.send_all(&model, &posts).await });
        let comes = async {
            match moment {
                // Long enough for senders to be refused.
                Moment::Before => tokio::time::sleep(Duration::from_millis(300)).await,
                Moment::Run => grown(&runs, length).await,
                Moment::Result => drop(results.next().await),
            }
        };
        // Nothing need come of these events: then it breaks a little later.
        tokio::time::timeout(MOMENT, comes).await.ok();
        if moment != Moment::Before {
            self.strike(fault, moment).await;
        }
        if fault == Fault::KillBroker {
            self.nats.restart().await;
        }
        sending.await.expect("the senders end");
        self.mend(fault).await;
    }

    /// Breaks it now.
    async fn strike(&mut self, fault: Fault, moment: Moment) {
        self.history.add(now(), Fact::Broke(fault, moment));
        match fault {
            Fault::KillWorker => {
                self.proxy.cut();
                self.workers[0].kill9();
            }
            Fault::StopWorker => self.workers[0].signal(Signal::SIGTERM),
            Fault::KillBroker => self.nats.kill9(),
            Fault::DeleteConsumer(consumer) => {
                let (stream, function) = match consumer {
                    Consumer::Work => ("EVENTS", "work"),
                    Consumer::Next => ("EVENTS", "next"),
                    Consumer::Redriven => ("DEAD", "work"),
                };
                // It may be gone already.
                if let Some(info) = self.streams.consumer(stream, function).await {
                    self.streams.stream(stream).await.delete_consumer(&info.name).await.ok();
                }
            }
        }
    }

    /// Starts again what does not come back by itself.
    async fn mend(&mut self, fault: Fault) {
        if !matches!(fault, Fault::KillWorker | Fault::StopWorker) {
            return;
        }
        self.workers[0].exit(seconds(30)).await;
        self.workers[0] = worker(&format!("nats://{}", self.proxy.address), self.folder.path(), 0).await;
    }

    async fn deploy(&mut self) {
        self.version += 1;
        let at = now();
        let runs = self.folder.path().join("runs").display().to_string();
        let manifest = include_str!("nerve.toml").replace("${RUNS}", &runs);
        let manifest = manifest.replace("${VERSION}", &self.version.to_string());
        let folder = Folder::new(&manifest.replace("${ATTEMPTS}", &ATTEMPTS.to_string()));
        let folder = folder.with("work.py", include_str!("work.py")).with("answer.py", include_str!("answer.py"));
        let folder = folder.with("next.wasm", guest::echo("next.done"));
        let (cli, path) = (self.cli(), folder.path().display().to_string());
        let deadline = Instant::now() + DEPLOY;
        // While a consumer that was deleted is made again, the broker may refuse to change it.
        loop {
            let output = cli.run(&["deploy", &path]).await;
            if output.code == Some(0) {
                break;
            }
            assert!(Instant::now() < deadline, "nothing can be deployed for {DEPLOY:?}: {output:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.history.add(at, Fact::Deployed(self.version));
    }

    async fn redrive(&self) {
        let letters = self.letters().await;
        if letters.is_empty() {
            return;
        }
        let ids: Vec<String> = letters.iter().map(|letter| letter.id.to_string()).collect();
        let ids = ids.iter().map(String::as_str);
        let at = now();
        let args: Vec<&str> = ["dlq", "redrive", "--output", "json"].into_iter().chain(ids).collect();
        let output = self.cli().run(&args).await;
        // What a command that failed half-way did counts, too.
        let done: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        let is_done = |letter: &Letter| done["redriven"].as_array().is_some_and(|ids| ids.contains(&letter.id.into()));
        for letter in letters.into_iter().filter(is_done) {
            self.history.add(at, Fact::Redriven(letter));
        }
    }

    async fn drop_letters(&self) {
        let letters = self.letters().await;
        if !letters.is_empty() {
            let ids: Vec<String> = letters.iter().map(|letter| letter.id.to_string()).collect();
            let args: Vec<&str> = ["dlq", "drop"].into_iter().chain(ids.iter().map(String::as_str)).collect();
            self.cli().run(&args).await.ok();
        }
    }

    /// The dead letters that there are, or come within a moment; each is written into the history.
    async fn letters(&self) -> Vec<Letter> {
        let deadline = Instant::now() + MOMENT;
        loop {
            let letters = letters(&self.listed().await);
            if !letters.is_empty() || Instant::now() > deadline {
                letters.iter().for_each(|letter| self.history.add(now(), Fact::Letter(letter.clone())));
                return letters;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn listed(&self) -> Value {
        self.cli().run(&["dlq", "list", "--limit", "100000", "--output", "json"]).await.ok().json()
    }

    async fn replay(&self, function: Function) {
        let at = now();
        let name = match function {
            Function::Work => "work",
            Function::Next => "next",
        };
        let replayed = self.cli().run(&["replay", name, "--since", "first"]).await;
        // A function whose consumer was deleted a moment ago cannot go back.
        if replayed.code == Some(0) {
            self.history.add(at, Fact::Replayed { function, until: now() });
        }
    }

    /// Waits until no consumer has anything left to do, and says what has if that takes too long.
    async fn settle(&self, longest: Duration) -> Option<String> {
        let (at, deadline) = (now(), Instant::now() + longest);
        let mut calm = 0;
        loop {
            let busy = self.busy().await;
            calm = if busy.is_none() { calm + 1 } else { 0 };
            if calm == 3 || Instant::now() > deadline {
                self.history.add(at, Fact::Settled(busy.is_none()));
                return busy;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn busy(&self) -> Option<String> {
        for (stream, names) in [("EVENTS", &["work", "next", "answer"][..]), ("DEAD", &["work"])] {
            for name in names {
                let Some(info) = self.streams.consumer(stream, name).await else {
                    return Some(format!("the consumer of {name} on {stream} is not there"));
                };
                let (pending, delivered) = (info.num_pending, info.num_ack_pending);
                if pending > 0 || delivered > 0 {
                    return Some(format!("{name} on {stream} has {pending} to come and {delivered} in hand"));
                }
            }
        }
        None
    }
}

/// Starts a worker of the run whose folder this is.
async fn worker(nats: &str, folder: &Path, index: usize) -> Daemon {
    let data = folder.join(format!("worker-{index}"));
    nerve::worker_configured(nats, &data, &folder.join("settings.toml"), &ENVS).await
}

/// Waits until a file is longer than that.
async fn grown(file: &Path, length: u64) {
    while fs::metadata(file).map_or(0, |file| file.len()) <= length {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Dead letters out of what `nerve dlq list` prints.
fn letters(listed: &Value) -> Vec<Letter> {
    let letters = listed.as_array().into_iter().flatten();
    let read = |letter: &Value| {
        let time = OffsetDateTime::parse(letter["time"].as_str()?, &Rfc3339).ok()?;
        let n = letter["event"]["data"]["n"].as_u64().and_then(|n| usize::try_from(n).ok());
        Some(Letter { id: letter["id"].as_u64()?, n, time })
    };
    letters.map(|letter| read(letter).unwrap_or_else(|| panic!("no dead letter: {letter}"))).collect()
}

fn settings() -> String {
    let window = format!("{}s", WINDOW.as_secs());
    format!(
        "[streams]\ndedupe_window = \"{window}\"\nseen_window = \"{window}\"\n\
         [gateway]\nkeys = [\"{KEY}\"]\n[gateway.collection_keys]\n\
         alpha = [\"{KEY}-alpha\"]\nbeta = [\"{KEY}-beta\"]\n"
    )
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

//! The real parts of one run: a nats-server, a gateway and workers; faults, and the end.
//!
//! # Layout
//! - [`sender`]: what comes in.
//! - [`operator`]: what is deployed, removed, replayed, redriven and dropped.

mod operator;
mod sender;

use super::{
    history::{End, Entry, Fact},
    model::{Consumer, Fault, Model, Moment, Post, Request, Step, Tenant},
    verdict,
};
use crate::{Cli, Nats, Nerve, Proxy, Streams, daemon::Daemon, github, nerve, seconds, streams::Stored};
use futures::{StreamExt, future::join_all};
use nix::sys::signal::Signal;
use operator::{letters, make_own};
use parking_lot::Mutex;
use reqwest::Client;
use sender::{KEY, Sender};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio_util::task::TaskTracker;

/// The windows in which an id is known: those that pass within a run, and those that do not. `nerve` takes no shorter ones: it must
/// know an id for longer than a publish that nobody acknowledges may take.
pub const WINDOWS: [Duration; 2] = [seconds(10), seconds(600)];
/// Attempts of a function at an event.
pub const ATTEMPTS: usize = 2;
/// The longest that a step waits for its moment.
const MOMENT: Duration = Duration::from_millis(1500);
/// The longest until what was dropped as a duplicate is counted.
const COUNTED: Duration = seconds(5);
/// The user's own stream.
const OWN: &str = "OWN";
/// The longest that everything takes to come to rest.
const REST: Duration = seconds(20);
/// So many times as long it may take while something is done.
const STANDSTILL: u32 = 6;
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
    window: Duration,
    version: u32,
    history: History,
    /// What was in the user's own stream when it was deleted.
    gone: Vec<Stored>,
}

/// Facts in the order in which they ended.
#[derive(Clone, Default)]
struct History(Arc<Mutex<Vec<Entry>>>);

impl History {
    fn add(&self, at: OffsetDateTime, fact: Fact) {
        self.0.lock().push(Entry { at, fact });
    }

    fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.0.lock())
    }

    /// The first answer that a tenant got.
    fn answer_of(&self, of: Tenant) -> Option<String> {
        let entries = self.0.lock();
        entries.iter().find_map(|entry| match &entry.fact {
            Fact::Called { tenant, request: Request::Ask(_), status: Some(200), body, .. } if *tenant == of => {
                body["id"].as_str().map(str::to_owned)
            }
            _ => None,
        })
    }
}

impl System {
    /// Starts all of it, and deploys the sources and functions.
    pub async fn start(model: &Model) -> Self {
        let [short, long] = WINDOWS;
        let window = if model.short_windows { short } else { long };
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("runs"), "").expect("a file for runs");
        fs::write(folder.path().join("settings.toml"), settings(window)).expect("a settings file");
        let nats = Nats::start().await;
        let url = nats.url();
        let settings = folder.path().join("settings.toml");
        let gateway = Nerve::gateway_configured(&url, &settings, &ENVS);
        let proxy = Proxy::start(url.trim_start_matches("nats://").to_owned()).await;
        let proxied = format!("nats://{}", proxy.address);
        let urls = std::iter::once(&proxied).chain(std::iter::repeat(&url)).take(model.workers).enumerate();
        let workers = join_all(urls.map(|(index, url)| worker(url, folder.path(), index)));
        let (gateway, workers) = tokio::join!(gateway, workers);
        let streams = Streams::connect(&url).await;
        make_own(&streams).await;
        let (version, history, gone) = (0, History::default(), Vec::new());
        let mut system = Self { nats, gateway, workers, proxy, streams, folder, window, version, history, gone };
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
            Step::Redrive(times) => self.redrive_often(*times).await,
            Step::Drop => self.drop_letters().await,
            Step::Replay(function) => self.replay(*function).await,
            Step::Remove(function) => self.remove(*function).await,
            Step::Remake => self.remake().await,
            Step::Settle => drop(self.settle(REST / 2).await),
            Step::Wait => {
                tokio::time::sleep(self.window + seconds(1)).await;
                self.history.add(now(), Fact::Waited);
            }
        }
    }

    /// Waits until everything is at rest, and reads what there is.
    pub async fn end(mut self) -> (Vec<Entry>, End) {
        let restless = self.settle(REST).await;
        let history = self.history.take();
        let dropped = self.dropped(&history).await;
        let described = self.cli().run(&["describe", "work", "--output", "json"]).await;
        let listed = self.listed().await;
        let letters = letters(&listed);
        let runs = fs::read_to_string(self.folder.path().join("runs")).expect("the file of runs");
        let runs = runs.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let (mut events, dead) = (self.streams.read("EVENTS", ">").await, self.streams.read("DEAD", ">").await);
        events.append(&mut self.gone);
        events.extend(self.streams.read(OWN, ">").await);
        let listed = vec![listed, serde_json::from_str(&described.stdout).unwrap_or_default()];
        (history, End { window: self.window, events, dead, letters, listed, dropped, runs, restless })
    }

    /// The counters of dropped duplicates, once they are what was answered, or after a while.
    async fn dropped(&self, history: &[Entry]) -> Vec<(String, u64)> {
        let deadline = Instant::now() + COUNTED;
        loop {
            let counters = self.streams.read("DROPS", ">").await;
            let dropped = counters.into_iter().filter_map(|counter| {
                let total: Value = serde_json::from_slice(&counter.data).ok()?;
                Some((counter.subject, total["val"].as_str()?.parse().ok()?))
            });
            let dropped: Vec<_> = dropped.collect();
            if verdict::uncounted(history, &dropped).is_empty() || Instant::now() > deadline {
                return dropped;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
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
        let (gateway, jetstream) = (self.gateway.url(""), self.streams.jetstream.clone());
        Sender { client: Client::new(), gateway, jetstream, history: self.history.clone() }
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
                    Consumer::Own => (OWN, "own"),
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

    /// Waits until no consumer has anything left to do, and says what has if nothing changes for too long.
    async fn settle(&self, longest: Duration) -> Option<String> {
        let (at, mut deadline, last) = (now(), Instant::now() + longest, Instant::now() + STANDSTILL * longest);
        let (mut calm, mut before) = (0, None);
        loop {
            let busy = self.busy().await;
            calm = if busy.is_none() { calm + 1 } else { 0 };
            if busy != before {
                // A slow machine is no fault.
                deadline = last.min(Instant::now() + longest);
                before.clone_from(&busy);
            }
            if calm == 3 || Instant::now() > deadline {
                self.history.add(at, Fact::Settled(busy.is_none()));
                return busy;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn busy(&self) -> Option<String> {
        for (stream, names) in
            [("EVENTS", &["work", "next", "answer"][..]), ("DEAD", &["work", "own"]), (OWN, &["own"])]
        {
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

fn settings(window: Duration) -> String {
    let window = format!("{}s", window.as_secs());
    format!(
        "[streams]\ndedupe_window = \"{window}\"\nseen_window = \"{window}\"\n\
         [gateway]\nkeys = [\"{KEY}\"]\n[gateway.collection_keys]\n\
         alpha = [\"{KEY}-alpha\"]\nbeta = [\"{KEY}-beta\"]\n"
    )
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

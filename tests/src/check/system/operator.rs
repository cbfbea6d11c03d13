//! What an operator does: deploys, removals, replays, and dead letters redriven or dropped.

use super::{ATTEMPTS, MOMENT, OWN, REST, System, now};
use crate::{
    Folder, Streams,
    check::{
        history::{Fact, Letter},
        model::Function,
    },
    guest, seconds,
};
use async_nats::jetstream::stream;
use serde_json::Value;
use std::time::{Duration, Instant};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The longest that a deployment is refused.
const DEPLOY: Duration = seconds(10);

impl System {
    pub(super) async fn deploy(&mut self) {
        self.version += 1;
        self.install().await;
    }

    /// Deploys what is to be deployed now.
    async fn install(&self) {
        let at = now();
        let runs = self.folder.path().join("runs").display().to_string();
        let manifest = include_str!("../nerve.toml").replace("${RUNS}", &runs);
        let manifest = manifest.replace("${VERSION}", &self.version.to_string());
        let folder = Folder::new(&manifest.replace("${ATTEMPTS}", &ATTEMPTS.to_string()));
        let folder = folder.with("work.py", include_str!("../work.py")).with("answer.py", include_str!("../answer.py"));
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

    /// A function that has something to do would lose it.
    pub(super) async fn remove(&self, function: Function) {
        if self.settle(REST / 2).await.is_some() {
            return;
        }
        let at = now();
        self.cli().run(&["remove", function.name()]).await.ok();
        self.history.add(at, Fact::Removed(function));
        self.install().await;
    }

    pub(super) async fn remake(&mut self) {
        if self.settle(REST / 2).await.is_some() {
            return;
        }
        let at = now();
        self.gone.extend(self.streams.read(OWN, ">").await);
        self.streams.delete(OWN).await;
        make_own(&self.streams).await;
        self.history.add(at, Fact::Remade);
    }

    /// Redrives what fails each time again, too.
    pub(super) async fn redrive_often(&self, times: u8) {
        self.redrive().await;
        for _ in 1..times {
            self.settle(2 * MOMENT).await;
            self.redrive().await;
        }
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

    pub(super) async fn drop_letters(&self) {
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

    pub(super) async fn listed(&self) -> Value {
        self.cli().run(&["dlq", "list", "--limit", "100000", "--output", "json"]).await.ok().json()
    }

    pub(super) async fn replay(&self, function: Function) {
        let at = now();
        let replayed = self.cli().run(&["replay", function.name(), "--since", "first"]).await;
        // A function whose consumer was deleted a moment ago cannot go back.
        if replayed.code == Some(0) {
            self.history.add(at, Fact::Replayed { function, until: now() });
        }
    }
}

/// Makes the user's own stream.
pub(super) async fn make_own(streams: &Streams) {
    let subjects = vec!["own.>".to_owned()];
    let config = stream::Config { name: OWN.to_owned(), subjects, ..stream::Config::default() };
    streams.jetstream.create_stream(config).await.expect("a stream of the user's own");
}

/// Dead letters out of what `nerve dlq list` prints, without those on their way back.
pub(super) fn letters(listed: &Value) -> Vec<Letter> {
    let letters = listed.as_array().into_iter().flatten().filter(|letter| letter["state"] != "redriven");
    let read = |letter: &Value| {
        let time = OffsetDateTime::parse(letter["time"].as_str()?, &Rfc3339).ok()?;
        let n = letter["event"]["data"]["n"].as_u64().and_then(|n| usize::try_from(n).ok());
        Some(Letter { id: letter["id"].as_u64()?, n, time })
    };
    letters.map(|letter| read(letter).unwrap_or_else(|| panic!("no dead letter: {letter}"))).collect()
}

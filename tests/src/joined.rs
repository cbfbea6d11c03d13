//! A server in a data folder of its own, as on another machine: it has what `nerve join` gave it, and nothing else.

use crate::{
    Nerve,
    daemon::Daemon,
    nerve::{self, Output},
    seconds,
};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Another machine.
pub struct Machine {
    folder: TempDir,
    name: String,
}

/// A token that `nerve access token` makes with these options.
pub async fn token(nerve: &Nerve, options: &[&str]) -> String {
    let args = [&["access", "token", "--data", nerve.data(), "--output", "json"], options].concat();
    let made = nerve::call(nerve::command(args), "").await.ok().json();
    made["token"].as_str().expect("a token").to_owned()
}

impl Machine {
    /// One that has not joined.
    pub fn new(name: &str) -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder"), name: name.to_owned() }
    }

    /// One that has joined this `nerve up` as a worker.
    pub async fn joined(nerve: &Nerve, name: &str) -> Self {
        let machine = Self::new(name);
        machine.join(&token(nerve, &[]).await).await.ok();
        machine
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.data().join(name)
    }

    /// `nerve join`, with the token on standard input.
    pub async fn join(&self, token: &str) -> Output {
        let data = self.data().display().to_string();
        nerve::call(nerve::command(["join", "--name", &self.name, "--data", &data, "--output", "json"]), token).await
    }

    /// `nerve worker` with no option but the data folder, ready when this returns.
    pub async fn worker(&self) -> Daemon {
        let mut daemon = self.worker_to_come();
        daemon.line(seconds(30), |line| serde_json::from_str::<Value>(line).ok()).await;
        daemon
    }

    /// The same, ready or not.
    pub fn worker_to_come(&self) -> Daemon {
        let data = self.data().display().to_string();
        Daemon::spawn("nerve worker", &mut nerve::command(["worker", "--data", &data, "--output", "json"]))
    }

    /// Whether a path is in its data folder.
    pub fn has(&self, path: &str) -> bool {
        let data = self.data();
        Path::new(path).starts_with(data.canonicalize().unwrap_or(data))
    }
}

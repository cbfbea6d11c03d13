//! Senders and receivers written with other people's packages, under `tests/node` and `tests/python`.

use crate::{checkout, daemon::Daemon};
use serde_json::Value;
use std::{process::Command, time::Duration};

/// A running script.
pub struct Script(Daemon);

impl Script {
    /// Starts `tests/node/SCRIPT` with these arguments.
    pub fn node(script: &str, args: &[&str]) -> Self {
        let folder = checkout().join("tests/node");
        assert!(
            folder.join("node_modules").is_dir(),
            "the node packages are missing: run `make setup`, or `npm ci` in {}",
            folder.display()
        );
        Self(Daemon::spawn(script, Command::new("node").current_dir(folder).arg(script).args(args)))
    }

    /// Starts `tests/python/SCRIPT` with these arguments.
    pub fn python(script: &str, args: &[&str]) -> Self {
        let python = checkout().join(".tools/venv/bin/python");
        assert!(python.exists(), "{} is missing: run `make setup`", python.display());
        Self(Daemon::spawn(script, Command::new(python).arg(checkout().join("tests/python").join(script)).args(args)))
    }

    /// The first line that it has printed and that `pick` takes.
    pub async fn line<T>(&mut self, timeout: Duration, pick: impl Fn(&str) -> Option<T>) -> T {
        self.0.line(timeout, pick).await
    }

    /// Waits until it has printed this line.
    pub async fn says(&mut self, line: &str, timeout: Duration) {
        self.0.line(timeout, |said| (said == line).then_some(())).await;
    }

    /// Everything that it has printed so far, by lines.
    pub fn lines(&self) -> Vec<String> {
        self.0.stdout().lines().map(str::to_owned).collect()
    }

    /// What it printed, if it has ended: the last line as JSON, and whether it exited with 0.
    pub async fn finish(mut self, timeout: Duration) -> (Value, bool) {
        let status = self.0.exit(timeout).await;
        let output = self.0.stdout();
        let last = output.lines().last().unwrap_or_default();
        let value = serde_json::from_str(last);
        let value = value.unwrap_or_else(|e| panic!("{e} in the last line: {output}\n{}", self.0.stderr()));
        (value, status.success())
    }
}

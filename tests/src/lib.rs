//! The harness: everything a test needs to run Nerve as a user does, from outside.
//!
//! # Layout
//! - [`check`]: random steps against a real Nerve, and what was lost or doubled by them.
//! - [`daemon`]: one child process with its output in files, ended by pid when dropped.
//! - [`broker`]: where a NATS server is, and what it wants to be shown.
//! - [`nats`]: a nats-server of the test's own, which can be killed, stopped and started again on its data.
//! - [`cluster`]: three of them that replicate for each other.
//! - [`nerve`]: the `nerve` binary in each of its roles, and its commands.
//! - [`streams`]: what is really in JetStream, read past Nerve.
//! - [`guest`]: components made from WAT, and manifests around them.
//! - [`models`]: the fixtures' models, and clients written in Python.
//! - [`postgres`]: a PostgreSQL with pgvector of the test's own, likewise.
//! - [`openai`]: llama.cpp's server with a small model, and an endpoint before it that records, refuses and breaks off.
//! - [`proxy`]: a TCP proxy that cuts its connections.
//! - [`receiver`]: an endpoint that takes webhooks, and answers each as it is told to.
//! - [`script`]: independent senders and receivers, written in JavaScript and Python.
//! - [`sse`]: a reader of server-sent events that can be cut anywhere.
//! - [`tls`]: certificates of a test's own.
//! - [`github`]: signed GitHub webhooks without node.
//! - [`manual`]: the pages of the manuals, and their commands.
//!
//! A part that is missing (the binary, nats-server, the node packages) fails the test that needs it and says
//! how to get it; nothing is skipped. The harness serves tests, so it panics with a message where a library
//! would return an error.

pub mod broker;
pub mod check;
pub mod cluster;
pub mod daemon;
pub mod github;
pub mod guest;
pub mod joined;
pub mod manual;
pub mod models;
pub mod nats;
pub mod nerve;
pub mod openai;
pub mod postgres;
pub mod proxy;
pub mod receiver;
pub mod script;
pub mod sse;
pub mod streams;
pub mod tls;

pub use broker::Broker;
pub use guest::Folder;
pub use nats::Nats;
pub use nerve::{Cli, Nerve};
pub use postgres::Postgres;
pub use proxy::Proxy;
pub use receiver::Receiver;
pub use script::Script;
pub use streams::Streams;

use std::{
    future::Future,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Runs `probe` every 50 ms until it gives `Some`, and fails the test with `what` after `timeout`.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    timeout: Duration,
    mut probe: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {timeout:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Gives reqwest what it wants to have before its first client, whether that will speak TLS or not.
pub fn install_tls() {
    // The first caller installs it; a second installation is not an error.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Whole seconds, for shorter tests.
pub const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The checkout that this crate was built in.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ stands in the checkout")
}

/// The `nerve` binary of the same build: `NERVE_BIN`, or beside this test in the target folder.
pub fn nerve_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("NERVE_BIN") {
        return path.into();
    }
    let exe = std::env::current_exe().expect("a test knows its own path");
    let beside = exe.ancestors().skip(1).take(2).map(|folder| folder.join("nerve")).find(|path| path.is_file());
    beside.unwrap_or_else(|| panic!("no `nerve` beside {}: run `cargo build --release --workspace`", exe.display()))
}

/// A nats-server: `NERVE_NATS_SERVER`, or the one `make setup` put into `.tools/bin`.
pub fn nats_server_binary() -> PathBuf {
    let path = match std::env::var_os("NERVE_NATS_SERVER") {
        Some(path) => path.into(),
        None => checkout().join(".tools/bin/nats-server"),
    };
    assert!(path.is_file(), "no nats-server at {}: run `make setup` or set NERVE_NATS_SERVER", path.display());
    path
}

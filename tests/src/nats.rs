//! A nats-server of the test's own.

use crate::{
    daemon::{Daemon, is_stopped},
    eventually, nats_server_binary, seconds,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
};

/// A nats-server with JetStream on a free port of 127.0.0.1, its store in a temporary folder.
pub struct Nats {
    daemon: Daemon,
    port: u16,
    store: TempDir,
    config: String,
}

impl Nats {
    /// Starts one and waits until it answers.
    pub async fn start() -> Self {
        Self::start_with(free_port(), JETSTREAM).await
    }

    /// Starts one with more in its configuration, and waits until it greets clients with JetStream.
    pub async fn configured(config: &str) -> Self {
        Self::start_with(free_port(), &format!("{JETSTREAM}{config}")).await
    }

    /// Starts one with this configuration alone, where `STORE` is a folder of its own.
    pub async fn exactly(config: &str) -> Self {
        Self::start_with(free_port(), config).await
    }

    /// Starts one on this port.
    pub async fn on_port(port: u16) -> Self {
        Self::start_with(port, JETSTREAM).await
    }

    /// One whose disk, as far as it knows, has room for so many bytes.
    pub async fn with_room_for(bytes: u64) -> Self {
        Self::start_with(free_port(), &format!("jetstream {{ store_dir: STORE, max_file_store: {bytes} }}\n")).await
    }

    async fn start_with(port: u16, config: &str) -> Self {
        let store = tempfile::tempdir().expect("a temporary folder");
        let config = config.replace("STORE", &format!("{:?}", store.path().join("js")));
        let daemon = spawn(port, store.path(), &config);
        let nats = Self { daemon, port, store, config };
        nats.ready().await;
        nats
    }

    /// Where it listens: `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// `kill -9`.
    pub fn kill9(&mut self) {
        self.daemon.kill9();
    }

    /// Starts it again after [`kill9`](Self::kill9), on the same port and data.
    pub async fn restart(&mut self) {
        self.daemon = spawn(self.port, self.store.path(), &self.config);
        self.ready().await;
    }

    /// Stops it in its tracks: connections stay open and nothing is answered.
    pub fn freeze(&self) {
        self.daemon.signal(Signal::SIGSTOP);
        // On a busy machine its threads go on for a moment.
        let deadline = Instant::now() + seconds(5);
        while !is_stopped(self.daemon.pid()) {
            assert!(Instant::now() < deadline, "nats-server does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets it go on after [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        self.daemon.signal(Signal::SIGCONT);
    }

    async fn ready(&self) {
        let (url, address) = (self.url(), self.address());
        eventually("nats-server answers", seconds(10), || async {
            let greeting = greeting(&address).await?;
            // One that greets with credentials to show, or in TLS, is not asked for more.
            if greeting["auth_required"] == true || greeting["tls_required"] == true || greeting["jetstream"] != true {
                return Some(());
            }
            let client = async_nats::connect(&url).await.ok()?;
            async_nats::jetstream::new(client).query_account().await.ok().map(drop)
        })
        .await;
    }
}

/// JetStream, in the test's folder.
const JETSTREAM: &str = "jetstream { store_dir: STORE }\n";

/// What the server says first; nothing where it speaks TLS first.
async fn greeting(address: &str) -> Option<Value> {
    let mut line = String::new();
    let stream = TcpStream::connect(address).await.ok()?;
    match tokio::time::timeout(seconds(1), BufReader::new(stream).read_line(&mut line)).await {
        Ok(read) => serde_json::from_str(line.strip_prefix("INFO ").filter(|_| read.is_ok())?).ok(),
        Err(_) => Some(Value::Null),
    }
}

fn spawn(port: u16, store: &Path, config: &str) -> Daemon {
    let text = format!("listen: 127.0.0.1:{port}\n{config}");
    let config = store.join("nats.conf");
    fs::write(&config, text).expect("a configuration file");
    Daemon::spawn("nats-server", Command::new(nats_server_binary()).arg("-c").arg(config))
}

/// A port that nobody listens on now. Servers that can take port 0 themselves should.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound address").port()
}

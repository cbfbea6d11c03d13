//! A nats-server of the test's own.

use crate::{daemon::Daemon, eventually, nats_server_binary, seconds};
use nix::sys::signal::Signal;
use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A nats-server with JetStream on a free port of 127.0.0.1, its store in a temporary folder.
pub struct Nats {
    daemon: Daemon,
    port: u16,
    store: TempDir,
    room: Option<u64>,
}

impl Nats {
    /// Starts one and waits until it answers.
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// One whose disk, as far as it knows, has room for so many bytes.
    pub async fn with_room_for(bytes: u64) -> Self {
        Self::start_with(Some(bytes)).await
    }

    async fn start_with(room: Option<u64>) -> Self {
        let store = tempfile::tempdir().expect("a temporary folder");
        let port = free_port();
        let daemon = spawn(port, store.path(), room);
        let nats = Self { daemon, port, store, room };
        nats.ready().await;
        nats
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
        self.daemon = spawn(self.port, self.store.path(), self.room);
        self.ready().await;
    }

    /// Stops it in its tracks: connections stay open and nothing is answered.
    pub fn freeze(&self) {
        self.daemon.signal(Signal::SIGSTOP);
        // On a busy machine its threads go on for a moment.
        let deadline = Instant::now() + seconds(5);
        while !self.daemon.is_stopped() {
            assert!(Instant::now() < deadline, "nats-server does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets it go on after [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        self.daemon.signal(Signal::SIGCONT);
    }

    async fn ready(&self) {
        let url = self.url();
        eventually("nats-server answers", seconds(10), || async {
            let client = async_nats::connect(&url).await.ok()?;
            async_nats::jetstream::new(client).query_account().await.ok()
        })
        .await;
    }
}

fn spawn(port: u16, store: &Path, room: Option<u64>) -> Daemon {
    let config = store.join("nats.conf");
    let room = room.map(|bytes| format!(", max_file_store: {bytes}")).unwrap_or_default();
    let text = format!("listen: 127.0.0.1:{port}\njetstream {{ store_dir: {:?}{room} }}\n", store.join("js"));
    fs::write(&config, text).expect("a configuration file");
    Daemon::spawn("nats-server", Command::new(nats_server_binary()).arg("-c").arg(config))
}

/// A port that nobody listens on now. Servers that can take port 0 themselves should.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound address").port()
}

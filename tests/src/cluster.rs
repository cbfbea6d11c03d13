//! A cluster of three nats-servers of the test's own.

use crate::{Streams, daemon::Daemon, eventually, nats::free_port, nats_server_binary, seconds};
use std::{fs, process::Command};
use tempfile::TempDir;

/// Three nats-servers with JetStream that replicate for each other.
pub struct Cluster {
    nodes: [Node; 3],
    _store: TempDir,
}

struct Node {
    config: std::path::PathBuf,
    port: u16,
    daemon: Daemon,
}

impl Cluster {
    /// Starts one and waits until it answers.
    pub async fn start() -> Self {
        let store = tempfile::tempdir().expect("a temporary folder");
        let routes: [u16; 3] = std::array::from_fn(|_| free_port());
        let urls = routes.map(|port| format!("nats://127.0.0.1:{port}")).join(", ");
        let nodes = std::array::from_fn(|n| {
            let (port, route) = (free_port(), routes[n]);
            let folder = store.path().join(format!("n{n}"));
            let text = format!(
                "server_name: n{n}\nlisten: 127.0.0.1:{port}\njetstream {{ store_dir: {folder:?} }}\n\
                 cluster {{ name: test, listen: 127.0.0.1:{route}, routes: [{urls}] }}\n"
            );
            let config = store.path().join(format!("n{n}.conf"));
            fs::write(&config, text).expect("a configuration file");
            let daemon = spawn(&config);
            Node { config, port, daemon }
        });
        let cluster = Self { nodes, _store: store };
        cluster.answers().await;
        cluster
    }

    /// The URL of one server; clients hear of the others there.
    pub fn url(&self, node: usize) -> String {
        format!("nats://127.0.0.1:{}", self.nodes[node].port)
    }

    /// The URLs of all servers, as a list.
    pub fn urls(&self) -> String {
        [0, 1, 2].map(|node| self.url(node)).join(",")
    }

    /// The server that leads a stream.
    pub async fn leader(&self, stream: &str) -> usize {
        let what = format!("{stream} has a leader");
        eventually(&what, seconds(20), || async {
            for node in 0..self.nodes.len() {
                let Ok(client) = async_nats::connect(self.url(node)).await else { continue };
                let jetstream = async_nats::jetstream::new(client);
                let Ok(stream) = jetstream.get_stream(stream).await else { continue };
                let leader = stream.cached_info().cluster.as_ref()?.leader.clone()?;
                return leader.strip_prefix('n')?.parse().ok();
            }
            None
        })
        .await
    }

    /// `kill -9`.
    pub fn kill9(&mut self, node: usize) {
        self.nodes[node].daemon.kill9();
    }

    /// Starts it again on the same port and data.
    pub async fn restart(&mut self, node: usize) {
        self.nodes[node].daemon = spawn(&self.nodes[node].config);
        self.answers().await;
    }

    /// What is in its streams.
    pub async fn streams(&self) -> Streams {
        Streams::connect(&self.url(0)).await
    }

    async fn answers(&self) {
        for node in 0..self.nodes.len() {
            let url = self.url(node);
            eventually("the cluster answers", seconds(20), || async {
                let client = async_nats::connect(&url).await.ok()?;
                async_nats::jetstream::new(client).query_account().await.ok()
            })
            .await;
        }
    }
}

fn spawn(config: &std::path::Path) -> Daemon {
    Daemon::spawn("nats-server", Command::new(nats_server_binary()).arg("-c").arg(config))
}

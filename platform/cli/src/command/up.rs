//! `nerve up`

use super::{
    Process,
    serve::{self, Role, Stop, SupervisedServer},
};
use crate::{
    broker::{self, Broker, BrokerOptions, TlsFiles},
    failure::Failure,
    globals::{DataFolder, Globals},
    lock::Lock,
    membership::{self, Membership},
    output::Format,
    settings,
    supervisor::SupervisionRole,
};
use clap::Args;
use nerve_config::Config;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};
use tokio_util::sync::CancellationToken;

/// Start NATS with JetStream, a gateway and a worker on this machine
#[derive(Debug, Args)]
#[command(after_help = "\
Without --nats it starts its own nats-server, whose data is in the data directory. The server requires \
credentials, which are created at the first start: commands on this machine find them in the data \
directory, and `nerve nats context` prints those for other programs. The gateway and the worker run in a \
process that is restarted after a crash; new requests wait meanwhile. Graceful shutdown on SIGTERM or \
Ctrl-C, up to `worker.grace`; a second signal stops immediately.

Examples:
  nerve up
  nerve up --data /var/lib/nerve --listen 127.0.0.1:9000
  nerve up --listen 127.0.0.1:0 --nats-listen 127.0.0.1:4222 --output json
  nerve up --nats nats://nats.example.com:4222")]
pub(crate) struct Up {
    /// Listen address of the gateway; port 0 selects a free port [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Listen address of the nats-server; port 0 selects a free port, which the next start reuses
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0", conflicts_with = "nats")]
    nats_listen: SocketAddr,
    /// Certificate of the nats-server, in PEM; required for non-loopback addresses
    #[arg(long, value_name = "FILE", requires = "nats_tls_key")]
    nats_tls_cert: Option<PathBuf>,
    /// Private key of that certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "nats_tls_cert")]
    nats_tls_key: Option<PathBuf>,
    /// Path of the nats-server [default: searched for]
    #[arg(long, value_name = "FILE", env = "NERVE_NATS_SERVER", hide_env_values = true)]
    nats_server: Option<PathBuf>,
    /// Settings file [default: nerve-server.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    folder: DataFolder,
    #[command(flatten)]
    supervision: SupervisionRole,
}

impl Up {
    pub(crate) fn process(&self) -> Process {
        self.supervision.log_style().map_or(Process::Supervisor, |style| Process::Server(Some(style)))
    }

    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let mut config = settings::load(self.config.as_deref(), globals, self.folder.data.as_deref())?;
        config.gateway.listen = self.listen.unwrap_or(config.gateway.listen);
        config.nats.server = self.nats_server.or(config.nats.server);
        config.nats.server_tls_cert = self.nats_tls_cert.or(config.nats.server_tls_cert);
        config.nats.server_tls_key = self.nats_tls_key.or(config.nats.server_tls_key);
        config.data.dir = create_data_directory(&config.data.dir)?;
        if config.nats.url.is_empty() && Membership::exists(&config.data.dir) {
            return Err(membership::member_cannot_run_up(&config.data.dir).into());
        }
        if self.supervision.log_style().is_some() {
            return serve::serve_supervised(config, Role::Both).await;
        }
        let lock = Lock::take(&config.data.dir).await?;
        serve::until_stopped(async |stop| run(config, lock, self.nats_listen, globals.output, stop).await).await
    }
}

/// Supervises a nats-server, unless another one is configured, and a server process.
async fn run(config: Config, lock: Lock, listen: SocketAddr, format: Format, stop: Stop) -> anyhow::Result<()> {
    let shared_lock = Some(lock.descriptor()?);
    if !config.nats.url.is_empty() {
        return SupervisedServer { config: &config, role: Role::Both, format, lock: shared_lock, broker: None }
            .run(&stop)
            .await;
    }
    let binary = broker::find(config.nats.server.as_deref()).await?;
    let tls = config.nats.server_tls_cert.clone().zip(config.nats.server_tls_key.clone());
    let tls = tls.map(|(cert, key)| TlsFiles { cert, key });
    let options = BrokerOptions { binary, data: config.data.dir.clone(), listen, lock, tls };
    let Some(broker) = stop.unless_stopped(Broker::start(options)).await else { return Ok(()) };
    let broker = broker?;
    let local = Some(broker.local());
    // The broker stops last, because the gateway and the worker need it for their shutdown.
    let end = CancellationToken::new();
    let server = async {
        let served = SupervisedServer { config: &config, role: Role::Both, format, lock: shared_lock, broker: local }
            .run(&stop)
            .await;
        end.cancel();
        served
    };
    let (served, ()) = tokio::join!(server, broker.supervise(&end));
    served
}

/// Creates the data directory, private to this user, and returns its absolute path.
fn create_data_directory(data: &Path) -> Result<PathBuf, Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let created =
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data).and_then(|()| data.canonicalize());
    created.map_err(|error| {
        let next = "pass a writable directory: --data DIR";
        Failure::new(format!("cannot use the data directory {}", data.display())).because(error).next(next)
    })
}

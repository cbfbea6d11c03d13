//! `nerve up`

use super::{
    Process,
    serve::{self, Role, Stop, Supervised},
};
use crate::{
    args::{DataFolder, Globals},
    broker::{self, Broker, BrokerOptions, TlsFiles},
    failure::Failure,
    joined::{self, Joined},
    lock::Lock,
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

/// Start everything on this machine: NATS with JetStream, the gateway and a worker
#[derive(Debug, Args)]
#[command(after_help = "\
Without --nats it starts a nats-server of its own, whose data is in the data folder. That asks for \
credentials, which are made at the first start: commands on this machine find them by the data \
folder, and `nerve nats context` prints those of other programs. The gateway and the worker run in a \
process that is started again when it dies; requests that come meanwhile wait. It stops at SIGTERM or \
Ctrl-C, once what is running has ended or `worker.grace` is over; a second signal stops at once.

Examples:
  nerve up
  nerve up --data /var/lib/nerve --listen 127.0.0.1:9000
  nerve up --listen 127.0.0.1:0 --nats-listen 127.0.0.1:4222 --output json
  nerve up --nats nats://nats.example.com:4222")]
pub(crate) struct Up {
    /// Where the gateway listens; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where its nats-server listens; port 0 takes a free one, and the same again next time
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0", conflicts_with = "nats")]
    nats_listen: SocketAddr,
    /// The certificate that its nats-server shows, in PEM; needed where that listens off loopback
    #[arg(long, value_name = "FILE", requires = "nats_tls_key")]
    nats_tls_cert: Option<PathBuf>,
    /// The private key of that certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "nats_tls_cert")]
    nats_tls_key: Option<PathBuf>,
    /// The nats-server to start [default: searched for]
    #[arg(long, value_name = "FILE", env = "NERVE_NATS_SERVER", hide_env_values = true)]
    nats_server: Option<PathBuf>,
    /// The settings [default: nerve-server.toml, if there is one]
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
        config.data.dir = made(&config.data.dir)?;
        if config.nats.url.is_empty() && Joined::is_in(&config.data.dir) {
            return Err(joined::is_another_machines(&config.data.dir).into());
        }
        if self.supervision.log_style().is_some() {
            return serve::attached(config, Role::Both).await;
        }
        let lock = Lock::take(&config.data.dir).await?;
        serve::until_stopped(async |stop| work(config, lock, self.nats_listen, globals.output, stop).await).await
    }
}

/// Keeps a nats-server, unless there is one to use, and a server process running.
async fn work(config: Config, lock: Lock, listen: SocketAddr, format: Format, stop: Stop) -> anyhow::Result<()> {
    let held = Some(lock.descriptor()?);
    if !config.nats.url.is_empty() {
        return Supervised { config: &config, role: Role::Both, format, lock: held, broker: None }.run(&stop).await;
    }
    let binary = broker::find(config.nats.server.as_deref()).await?;
    let tls = config.nats.server_tls_cert.clone().zip(config.nats.server_tls_key.clone());
    let tls = tls.map(|(cert, key)| TlsFiles { cert, key });
    let options = BrokerOptions { binary, data: config.data.dir.clone(), listen, lock, tls };
    let Some(broker) = stop.unless_stopped(Broker::start(options)).await else { return Ok(()) };
    let broker = broker?;
    let local = Some(broker.local());
    // The broker goes last: the gateway and the worker drain into it.
    let end = CancellationToken::new();
    let serving = async {
        let served =
            Supervised { config: &config, role: Role::Both, format, lock: held, broker: local }.run(&stop).await;
        end.cancel();
        served
    };
    let (served, ()) = tokio::join!(serving, broker.supervise(&end));
    served
}

/// The data folder, made where it is not there, for this user alone; absolute.
fn made(data: &Path) -> Result<PathBuf, Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data).and_then(|()| data.canonicalize());
    made.map_err(|error| {
        let next = "name a folder that can be written to: --data DIR";
        Failure::new(format!("cannot use the data folder {}", data.display())).because(error).next(next)
    })
}

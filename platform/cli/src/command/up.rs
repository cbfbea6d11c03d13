//! `nerve up`

use super::serve::{self, Role, Stop};
use crate::{
    args::{DataFolder, Globals},
    broker::{self, Broker, BrokerOptions},
    failure::Failure,
    lock::Lock,
    output::Format,
    settings,
};
use clap::Args;
use nerve_server::config::Config;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};
use tokio_util::sync::CancellationToken;

/// Start everything on this machine: NATS with JetStream, the gateway and a worker
#[derive(Debug, Args)]
#[command(after_help = "\
Without --nats it starts a nats-server of its own, whose data is in the data folder. It stops at
SIGTERM or Ctrl-C, once what is running has ended or `worker.grace` is over; a second signal stops
at once.

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
    /// The nats-server to start [default: searched for]
    #[arg(long, value_name = "FILE", env = "NERVE_NATS_SERVER", hide_env_values = true)]
    nats_server: Option<PathBuf>,
    /// The settings [default: nerve-server.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    folder: DataFolder,
}

impl Up {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let mut config = settings::load(self.config.as_deref(), globals, self.folder.data.as_deref())?;
        config.gateway.listen = self.listen.unwrap_or(config.gateway.listen);
        config.nats.server = self.nats_server.or(config.nats.server);
        config.data.dir = made(&config.data.dir)?;
        let lock = Lock::take(&config.data.dir).await?;
        serve::until_stopped(async |stop| work(config, lock, self.nats_listen, globals.output, stop).await).await
    }
}

async fn work(mut config: Config, lock: Lock, listen: SocketAddr, format: Format, stop: Stop) -> anyhow::Result<()> {
    if !config.nats.url.is_empty() {
        let served = serve::serve(config, Role::Both, format, stop).await;
        drop(lock);
        return served;
    }
    let binary = broker::find(config.nats.server.as_deref()).await?;
    let options = BrokerOptions { binary, data: config.data.dir.clone(), listen, lock };
    let Some(broker) = stop.unless_stopped(Broker::start(options)).await else { return Ok(()) };
    let broker = broker?;
    config.nats.url = broker.url();
    // The broker goes last: the gateway and the worker drain into it.
    let end = CancellationToken::new();
    let serving = async {
        let served = serve::serve(config, Role::Both, format, stop).await;
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

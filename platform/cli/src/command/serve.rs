//! `nerve gateway` and `nerve worker`, and code shared with `nerve up`.

use super::Process;
use crate::server::Inherited;
use crate::server::Roles;
use crate::server::Server;
use crate::{
    broker::{Admission, LocalBroker, reachable},
    endpoint::{Endpoint, find_nats},
    failure::Failure,
    globals::{DataFolder, Globals},
    hosts::{self, ModelRunner},
    open_files,
    output::Format,
    sandbox, settings,
    signals::Signals,
    supervisor::{Ready, Supervision, Supervisor, SupervisorLink},
};
use clap::Args;
use nerve_broker::roles;
use nerve_config::Config;
use nerve_worker::Runners;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Timeout for closing helper processes at shutdown.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Start a gateway: webhooks and the HTTP API. Any number of gateways can share one NATS
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve gateway --nats nats://127.0.0.1:4222 --listen 127.0.0.1:8081
  nerve gateway --config /etc/nerve/nerve-server.toml")]
pub(crate) struct Gateway {
    /// Listen address; port 0 selects a free port [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Settings file [default: nerve-server.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    folder: DataFolder,
    #[command(flatten)]
    supervision: Supervision,
}

/// Start a worker, which runs the deployed functions. Any number of workers can share one NATS
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve worker --nats nats://127.0.0.1:4222
  nerve worker --data /var/lib/nerve --output json")]
pub(crate) struct Worker {
    /// Settings file [default: nerve-server.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    folder: DataFolder,
    #[command(flatten)]
    supervision: Supervision,
}

impl Gateway {
    pub(crate) fn process(&self) -> Process {
        process_of(&self.supervision)
    }

    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let mut config = settings::load(self.config.as_deref(), globals, self.folder.data.as_deref())?;
        config.gateway.listen = self.listen.unwrap_or(config.gateway.listen);
        serve_role(config, Role::Gateway, globals.output, &self.supervision).await
    }
}

impl Worker {
    pub(crate) fn process(&self) -> Process {
        process_of(&self.supervision)
    }

    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let config = settings::load(self.config.as_deref(), globals, self.folder.data.as_deref())?;
        serve_role(config, Role::Worker, globals.output, &self.supervision).await
    }
}

fn process_of(supervision: &Supervision) -> Process {
    match supervision.role.log_style() {
        Some(style) => Process::Server(Some(style)),
        None if supervision.is_enabled() => Process::Supervisor,
        None => Process::Server(None),
    }
}

async fn serve_role(mut config: Config, role: Role, format: Format, supervision: &Supervision) -> anyhow::Result<()> {
    let user = if role == Role::Gateway { roles::Role::Gateway } else { roles::Role::Worker };
    config.nats = find_nats(config.nats, &config.data.dir, user)?;
    if supervision.role.log_style().is_some() {
        return serve_supervised(config, role).await;
    }
    let is_supervised = supervision.is_enabled();
    until_stopped(async |stop| match is_supervised {
        true => SupervisedServer { config: &config, role, format, lock: None, broker: None }.run(&stop).await,
        false => {
            let server = InProcessServer { config, role, inherited: Inherited::default() };
            server.run(stop, async |ready| print_ready(&ready, None, format)).await
        }
    })
    .await
}

/// The role of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Serves HTTP.
    Gateway,
    /// Runs functions.
    Worker,
    /// Both, with an endpoint file for commands on its data directory.
    Both,
}

/// Canceled by the first signal.
#[derive(Debug, Clone)]
pub(super) struct Stop(CancellationToken);

impl Stop {
    /// Returns the result of `start`, or `None` if the signal arrives first.
    pub(super) async fn unless_stopped<T>(&self, start: impl Future<Output = T>) -> Option<T> {
        self.0.run_until_cancelled(start).await
    }
}

/// Runs `work`. The first signal requests its end, the second drops it.
pub(super) async fn until_stopped(work: impl AsyncFnOnce(Stop) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let signals = Signals::listen()?;
    let stop = Stop(CancellationToken::new());
    tokio::select! {
        result = work(stop.clone()) => result,
        () = signals.until_second(&stop.0) => {
            Err(Failure::new("stopped immediately").cause("a second signal arrived during the graceful shutdown").into())
        }
    }
}

/// A server in a supervised process.
pub(super) struct SupervisedServer<'c> {
    pub(super) config: &'c Config,
    pub(super) role: Role,
    pub(super) format: Format,
    /// The lock of the data directory, shared with the process.
    pub(super) lock: Option<OwnedFd>,
    /// The nats-server that this process has started.
    pub(super) broker: Option<LocalBroker>,
}

impl SupervisedServer<'_> {
    /// Supervises the process until `stop`. Prints its addresses when it is ready.
    pub(super) async fn run(self, stop: &Stop) -> anyhow::Result<()> {
        let Self { config, role, format, lock, broker } = self;
        let listener = if role == Role::Worker { None } else { Some(crate::server::listen(&config.gateway)?) };
        let credentials = broker.as_ref().map(|broker| broker.access.join(roles::Role::Operator.file()));
        let mut endpoint_file = None;
        let ready = |ready: &Ready| {
            if let (Role::Both, Some(gateway)) = (role, ready.gateway.clone()) {
                let (nats, pid) = (ready.nats.clone(), std::process::id());
                let access = broker.as_ref().map(|broker| broker.access.clone());
                let certificate = broker.as_ref().and_then(|broker| broker.certificate.clone());
                let nats_listen = broker.as_ref().map(|broker| broker.listen);
                let endpoint = Endpoint { gateway, nats, access, certificate, nats_listen, pid };
                endpoint_file = Some(endpoint.write(&config.data.dir)?);
            }
            print_ready(ready, credentials.as_deref(), format)
        };
        let served = Supervisor { listener, broker: broker.as_ref(), lock }.run(&stop.0, ready).await;
        drop(endpoint_file);
        served
    }
}

/// Runs a server for the supervisor that started this process.
pub(super) async fn serve_supervised(mut config: Config, role: Role) -> anyhow::Result<()> {
    let SupervisorLink { broker, inherited, mut reports, orders, lock } = SupervisorLink::receive()?;
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    if let Some(broker) = broker {
        let admission = Admission::new(&config, broker.clone());
        tasks.spawn(admission.run(stop.clone()));
        config.gateway_nats = Some(broker.client(config.nats.clone(), roles::Role::Gateway));
        config.nats = broker.client(config.nats, roles::Role::Worker);
    }
    let signals = Signals::listen()?;
    let server = InProcessServer { config, role, inherited };
    let served = tokio::select! {
        served = server.run(Stop(stop.clone()), async |ready| reports.ready(&ready).await) => served,
        () = orders.follow(signals, &stop) => Err(Failure::new("the supervisor of this process has exited").into()),
    };
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    drop(lock);
    served
}

/// A server in this process.
struct InProcessServer {
    config: Config,
    role: Role,
    inherited: Inherited,
}

impl InProcessServer {
    /// Runs the server until `stop`. Calls `ready` when it is ready.
    async fn run(self, stop: Stop, ready: impl AsyncFnOnce(Ready) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let Self { config, role, inherited } = self;
        let nats = config.nats.url.to_string();
        sandbox::warn_about_missing_isolation();
        let helpers = sandbox::pool(&config.sandbox);
        let models = ModelRunner::start(&config, &helpers)?;
        let worker = match role {
            Role::Gateway => None,
            Role::Worker | Role::Both => {
                Some(Runners { host: hosts::function_host(&config, &helpers, &models)?, helpers: helpers.clone() })
            }
        };
        let roles = Roles { gateway: role != Role::Worker, worker, inference: models.inference() };
        let scheme = if config.gateway.tls_cert.is_some() { "https" } else { "http" };
        open_files::raise_limit();
        let Some(server) = stop.unless_stopped(Server::bind(config, roles, inherited)).await else { return Ok(()) };
        let server = server?;
        let gateway = server.gateway_addr().map(|address| format!("{scheme}://{}", reachable(address)));
        ready(Ready { gateway, nats }).await?;
        let served = server.run(stop.0).await;
        // Model checks use helper processes.
        models.close().await;
        if tokio::time::timeout(CLOSE_TIMEOUT, helpers.close()).await.is_err() {
            tracing::warn!("a helper process did not exit within {CLOSE_TIMEOUT:?}");
        }
        Ok(served?)
    }
}

fn print_ready(ready: &Ready, credentials: Option<&Path>, format: Format) -> anyhow::Result<()> {
    let mut addresses = vec![("nats", ready.nats.clone())];
    addresses.extend(ready.gateway.clone().map(|gateway| ("gateway", gateway)));
    addresses.extend(credentials.map(|file| ("nats_credentials", file.display().to_string())));
    let addresses: BTreeMap<&str, String> = addresses.into_iter().collect();
    format.show(&addresses, |addresses| {
        let line = |(name, value): (&&str, &String)| format!("\n  {:<12} {value}", name.replace("nats_", ""));
        format!("nerve is ready{}", addresses.iter().map(line).collect::<String>())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    #[tokio::test]
    async fn first_signal_shuts_down_and_second_stops_immediately() {
        let graceful = until_stopped(async |stop| {
            kill(Pid::this(), Signal::SIGTERM)?;
            stop.0.cancelled().await;
            Ok(())
        });
        graceful.await.unwrap();
        let immediate = until_stopped(async |stop| {
            kill(Pid::this(), Signal::SIGTERM)?;
            stop.0.cancelled().await;
            kill(Pid::this(), Signal::SIGINT)?;
            std::future::pending().await
        });
        assert!(immediate.await.unwrap_err().to_string().contains("stopped immediately"));
    }
}

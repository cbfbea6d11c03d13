//! `nerve gateway` and `nerve worker`, and what they share with `nerve up`.

use super::Process;
use crate::server::Inherited;
use crate::server::Roles;
use crate::server::Server;
use crate::{
    args::{DataFolder, Globals},
    broker::{Admission, LocalBroker, reachable},
    endpoint::{Endpoint, find_nats},
    failure::Failure,
    limits, onnx,
    output::Format,
    sandbox, settings,
    signals::Signals,
    supervisor::{Attached, Ready, Supervision, Supervisor},
};
use anyhow::Context;
use async_trait::async_trait;
use clap::Args;
use nerve_broker::roles;
use nerve_config::{Config, OnnxConfig};
use nerve_core::{Deployment, Function, Host, Inference, LoadError, manifest::RuntimeSpec};
use nerve_inference::{Onnx, Trials};
use nerve_onnx::OnnxHost;
use nerve_rag::{DocumentReaders, Rag, Settings};
use nerve_runtime::{Compiler, HttpHost, ProcessConfig, ProcessHost, Runtimes, WasmConfig, WasmHost};
use nerve_worker::Runners;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long shutdown waits for models and for helper processes, each once nobody waits for them.
const CLOSING: Duration = Duration::from_secs(5);

/// Start a gateway: webhooks and the HTTP API. Any number of them serve one NATS
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve gateway --nats nats://127.0.0.1:4222 --listen 127.0.0.1:8081
  nerve gateway --config /etc/nerve/nerve-server.toml")]
pub(crate) struct Gateway {
    /// Where it listens; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// The settings [default: nerve-server.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    folder: DataFolder,
    #[command(flatten)]
    supervision: Supervision,
}

/// Start a worker: it runs the deployed functions. Any number of them share one NATS
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve worker --nats nats://127.0.0.1:4222
  nerve worker --data /var/lib/nerve --output json")]
pub(crate) struct Worker {
    /// The settings [default: nerve-server.toml, if there is one]
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
        alone(config, Role::Gateway, globals.output, &self.supervision).await
    }
}

impl Worker {
    pub(crate) fn process(&self) -> Process {
        process_of(&self.supervision)
    }

    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let config = settings::load(self.config.as_deref(), globals, self.folder.data.as_deref())?;
        alone(config, Role::Worker, globals.output, &self.supervision).await
    }
}

fn process_of(supervision: &Supervision) -> Process {
    match supervision.role.log_style() {
        Some(style) => Process::Server(Some(style)),
        None if supervision.is_wanted() => Process::Supervisor,
        None => Process::Server(None),
    }
}

async fn alone(mut config: Config, role: Role, format: Format, supervision: &Supervision) -> anyhow::Result<()> {
    let user = if role == Role::Gateway { roles::Role::Gateway } else { roles::Role::Worker };
    config.nats = find_nats(config.nats, &config.data.dir, user)?;
    if supervision.role.log_style().is_some() {
        return attached(config, role).await;
    }
    let is_supervised = supervision.is_wanted();
    until_stopped(async |stop| match is_supervised {
        true => Supervised { config: &config, role, format, lock: None, broker: None }.run(&stop).await,
        false => {
            let serving = Serving { config, role, inherited: Inherited::default() };
            serving.run(stop, async |ready| say_ready(&ready, None, format)).await
        }
    })
    .await
}

/// What a server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It serves HTTP.
    Gateway,
    /// It runs functions.
    Worker,
    /// It does both, and tells commands on its data folder where it is.
    Both,
}

/// Cancelled by the first signal.
#[derive(Debug, Clone)]
pub(super) struct Stop(CancellationToken);

impl Stop {
    /// What `start` yields, or none if the signal comes first.
    pub(super) async fn unless_stopped<T>(&self, start: impl Future<Output = T>) -> Option<T> {
        self.0.run_until_cancelled(start).await
    }
}

/// Does `work` until it ends, which the first signal asks it to; the second signal drops it.
pub(super) async fn until_stopped(work: impl AsyncFnOnce(Stop) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let signals = Signals::listen()?;
    let stop = Stop(CancellationToken::new());
    tokio::select! {
        result = work(stop.clone()) => result,
        () = signals.until_second(&stop.0) => {
            Err(Failure::new("stopped at once").cause("a second signal came before what was running had ended").into())
        }
    }
}

/// A server that runs in a process of its own.
pub(super) struct Supervised<'c> {
    pub(super) config: &'c Config,
    pub(super) role: Role,
    pub(super) format: Format,
    /// The lock of the data folder, which the process holds as well.
    pub(super) lock: Option<OwnedFd>,
    /// The nats-server that this process has started, if it has.
    pub(super) broker: Option<LocalBroker>,
}

impl Supervised<'_> {
    /// Keeps the process running until `stop`, and says where it serves once it does.
    pub(super) async fn run(self, stop: &Stop) -> anyhow::Result<()> {
        let Self { config, role, format, lock, broker } = self;
        let listener = if role == Role::Worker { None } else { Some(crate::server::listen(&config.gateway)?) };
        let credentials = broker.as_ref().map(|broker| broker.access.join(roles::Role::Operator.file()));
        let mut announced = None;
        let ready = |ready: &Ready| {
            if let (Role::Both, Some(gateway)) = (role, ready.gateway.clone()) {
                let (nats, pid) = (ready.nats.clone(), std::process::id());
                let access = broker.as_ref().map(|broker| broker.access.clone());
                let certificate = broker.as_ref().and_then(|broker| broker.certificate.clone());
                let nats_listen = broker.as_ref().map(|broker| broker.listen);
                let endpoint = Endpoint { gateway, nats, access, certificate, nats_listen, pid };
                announced = Some(endpoint.announce(&config.data.dir)?);
            }
            say_ready(ready, credentials.as_deref(), format)
        };
        let served = Supervisor { listener, broker: broker.as_ref(), lock }.run(&stop.0, ready).await;
        drop(announced);
        served
    }
}

/// Serves for the supervisor that started this process.
pub(super) async fn attached(mut config: Config, role: Role) -> anyhow::Result<()> {
    let Attached { broker, inherited, mut reports, orders, lock } = Attached::receive()?;
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    if let Some(broker) = broker {
        let admission = Admission::new(&config, broker.clone());
        tasks.spawn(admission.answer(stop.clone()));
        config.gateway_nats = Some(broker.client(config.nats.clone(), roles::Role::Gateway));
        config.nats = broker.client(config.nats, roles::Role::Worker);
    }
    let signals = Signals::listen()?;
    let serving = Serving { config, role, inherited };
    let served = tokio::select! {
        served = serving.run(Stop(stop.clone()), async |ready| reports.ready(&ready).await) => served,
        () = orders.follow(signals, &stop) => Err(Failure::new("the supervisor of this process has ended").into()),
    };
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    drop(lock);
    served
}

/// A server in this process.
struct Serving {
    config: Config,
    role: Role,
    inherited: Inherited,
}

impl Serving {
    /// Serves until it is stopped, and calls `ready` once it serves.
    async fn run(self, stop: Stop, ready: impl AsyncFnOnce(Ready) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let Self { config, role, inherited } = self;
        let (data, nats) = (config.data.dir.clone(), config.nats.url.to_string());
        sandbox::warn_of_what_is_missing();
        let helpers = sandbox::pool(&config.sandbox);
        let models = ModelRunner::start(&config.onnx, &data, sandbox::trials(&config.sandbox, &helpers))?;
        let worker = match role {
            Role::Gateway => None,
            Role::Worker | Role::Both => {
                let compiler = sandbox::compiler(&config.sandbox, &helpers);
                let readers = DocumentReaders::new(helpers.clone(), config.sandbox.document_memory);
                let host = runtimes(&config, compiler, Builtins::new(&config, models.onnx.clone(), readers)?)?;
                Some(Runners { host, helpers: helpers.clone() })
            }
        };
        let inference: Arc<dyn Inference> = models.onnx.clone();
        let roles = Roles { gateway: role != Role::Worker, worker, inference: Some(inference) };
        let scheme = if config.gateway.tls_cert.is_some() { "https" } else { "http" };
        limits::raise_open_files();
        let Some(server) = stop.unless_stopped(Server::bind(config, roles, inherited)).await else { return Ok(()) };
        let server = server?;
        let gateway = server.gateway_addr().map(|address| format!("{scheme}://{}", reachable(address)));
        ready(Ready { gateway, nats }).await?;
        let served = server.run(stop.0).await;
        // Models that are on trial have helper processes.
        models.close().await;
        if tokio::time::timeout(CLOSING, helpers.close()).await.is_err() {
            tracing::warn!("a helper process did not end within {CLOSING:?}");
        }
        Ok(served?)
    }
}

/// Everything that runs functions here; compiled code and processes' folders lie in the data folder.
fn runtimes(config: &Config, compiler: Compiler, builtin: Builtins) -> anyhow::Result<Arc<dyn Host>> {
    let (data, closed) = (&config.data.dir, config.private_paths()?);
    let wasm = WasmHost::new(WasmConfig { cache_dir: data.join("compiled"), compiler })?;
    let processes = ProcessConfig::new(data.join("processes"));
    let shim = Some(sandbox::shim(closed, &processes.work_dir));
    let process = ProcessHost::new(ProcessConfig { shim, ..processes });
    Ok(Arc::new(Runtimes::new(wasm, process, HttpHost::new()?, Arc::new(builtin))))
}

/// The functions that come with Nerve, by what their names begin with.
struct Builtins {
    onnx: OnnxHost,
    rag: Rag,
}

impl Builtins {
    /// Questions are embedded by the models that embed documents; the index lies in the data folder, or in a database.
    fn new(config: &Config, onnx: Arc<Onnx>, readers: DocumentReaders) -> anyhow::Result<Self> {
        let (folder, postgres) = (config.data.dir.join("index"), config.rag.postgres.clone());
        let settings = Settings { folder, postgres, readers };
        let rag = Rag::new(settings, onnx.clone()).context("`rag.postgres` is wrong")?;
        Ok(Self { rag, onnx: OnnxHost::new(onnx) })
    }
}

#[async_trait]
impl Host for Builtins {
    async fn load(&self, deployment: Deployment) -> Result<Arc<dyn Function>, LoadError> {
        match &deployment.spec.run {
            RuntimeSpec::Builtin { function, .. } if function.starts_with("rag/") => self.rag.load(deployment).await,
            _ => self.onnx.load(deployment).await,
        }
    }
}

/// What runs models in this process, and what ends it.
struct ModelRunner {
    onnx: Arc<Onnx>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl ModelRunner {
    /// Starts without a model, and even without ONNX Runtime: then it says what is missing.
    fn start(config: &OnnxConfig, data: &Path, trials: Trials) -> anyhow::Result<Self> {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let settings = onnx::engine_settings(config, data.join("models"), trials)?;
        let default = settings.bundled.contains_key(onnx::DEFAULT_MODEL);
        let onnx = Arc::new(Onnx::start(settings, stop.clone(), tasks.clone()));
        let loading = onnx.clone();
        tasks.spawn_blocking(move || match loading.library() {
            Ok(file) => tracing::debug!(library = %file.display(), "ONNX Runtime"),
            Err(error) => tracing::warn!("models cannot run: {error}"),
        });
        if !default {
            tracing::warn!(
                "the default model {name} does not come with this installation: `make setup` makes it, or \
                 `nerve models add DIR --name {name}` adds it",
                name = onnx::DEFAULT_MODEL
            );
        }
        Ok(Self { onnx, stop, tasks })
    }

    /// Drops every model, and waits until their threads have ended.
    async fn close(self) {
        let Self { onnx, stop, tasks } = self;
        drop(onnx);
        stop.cancel();
        tasks.close();
        if tokio::time::timeout(CLOSING, tasks.wait()).await.is_err() {
            tracing::warn!("a model did not end within {CLOSING:?}");
        }
    }
}

fn say_ready(ready: &Ready, credentials: Option<&Path>, format: Format) -> anyhow::Result<()> {
    let mut shown = vec![("nats", ready.nats.clone())];
    shown.extend(ready.gateway.clone().map(|gateway| ("gateway", gateway)));
    shown.extend(credentials.map(|file| ("nats_credentials", file.display().to_string())));
    let shown: BTreeMap<&str, String> = shown.into_iter().collect();
    format.show(&shown, |shown| {
        let line = |(name, value): (&&str, &String)| format!("\n  {:<12} {value}", name.replace("nats_", ""));
        format!("nerve is ready{}", shown.iter().map(line).collect::<String>())
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
    async fn the_first_signal_asks_and_the_second_does_not() {
        let asked = until_stopped(async |stop| {
            kill(Pid::this(), Signal::SIGTERM)?;
            stop.0.cancelled().await;
            Ok(())
        });
        asked.await.unwrap();
        let insisted = until_stopped(async |stop| {
            kill(Pid::this(), Signal::SIGTERM)?;
            stop.0.cancelled().await;
            kill(Pid::this(), Signal::SIGINT)?;
            std::future::pending().await
        });
        assert!(insisted.await.unwrap_err().to_string().contains("stopped at once"));
    }
}

//! A server: gateway, worker or both, over one connection to NATS.

use futures::FutureExt;
use metrics_exporter_prometheus::PrometheusHandle;
use nerve_broker::{
    bus::{
        Bus, BusError, DedupeStore, FastPublisher, Returns, Trimmer, consumer_name, disk_size, monitor_buckets,
        monitor_disk,
    },
    connection::Waiting,
};
use nerve_config::{Config, DataFolderError, GatewayConfig, make_private};
use nerve_core::Inference;
use nerve_gateway::{
    self as gateway, Check, Checks, ConnectionThreads, Drain, Fetch, Gateway, Listener, ModelParts, Models, Spool,
    SpoolError, ThreadError, Tls,
};
use nerve_registry::{self as registry, Catalogue, KeyringError, Registry};
use nerve_worker::{self as worker, FunctionStatus, InFlight, Runners, Statuses};
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Length of the socket's accept queue: connections beyond it are retried by the client after a second.
const BACKLOG: u32 = 4096;
/// Subfolder of the data folder for the JetStream store of `nerve up`.
const BROKER_STORE: &str = "jetstream";
/// Interval between attempts to provision streams.
const PROVISION_RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// The roles of a server.
#[derive(Clone)]
pub(crate) struct Roles {
    /// Whether it serves HTTP.
    pub(crate) gateway: bool,
    /// Runs functions; `None` without a worker.
    pub(crate) worker: Option<Runners>,
    /// Runs models for the gateway; `None` if it runs none.
    pub(crate) inference: Option<Arc<dyn Inference>>,
}

/// Resources that a server inherits from its supervisor.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    /// The gateway's socket, which keeps listening when this process ends; the server opens one if `None`.
    pub(crate) listener: Option<std::net::TcpListener>,
    /// Where the worker records events in flight.
    pub(crate) in_flight: Option<InFlight>,
}

/// A server that listens and is connected.
pub(crate) struct Server {
    config: Config,
    roles: Roles,
    bus: Bus,
    /// The same connection, or another if the gateway has its own credentials.
    gateway_bus: Bus,
    registry: Registry,
    /// Webhook intake, if it is a gateway.
    intake: Option<Intake>,
    catalogue: watch::Receiver<Arc<Catalogue>>,
    listener: Option<Listener>,
    in_flight: Option<InFlight>,
    metrics: PrometheusHandle,
    /// Tasks that run until the server has stopped.
    followers: TaskTracker,
    end: CancellationToken,
}

/// Why a server cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// The data folder cannot be used.
    #[error(transparent)]
    Home(#[from] DataFolderError),
    /// The address is not allowed.
    #[error(transparent)]
    Access(#[from] gateway::OpenToAll),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] gateway::TlsError),
    /// The address cannot be bound.
    #[error("the gateway cannot listen on {addr}: choose another address with --listen")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The broker cannot be used.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The connection threads cannot start.
    #[error(transparent)]
    Threads(#[from] ThreadError),
    /// The spool of an earlier run cannot be read.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The secrets key cannot be used.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The listener failed.
    #[error("the gateway's listener failed")]
    Serve(#[source] std::io::Error),
    /// Metrics cannot be recorded.
    #[error("metrics cannot be recorded: {0}")]
    Metrics(String),
}

/// Creates the streams. Retries while the broker is electing, recovering or waiting for other servers of its cluster.
async fn provision(bus: &Bus, config: &Config) -> Result<(), BusError> {
    let mut waiting = Waiting::default();
    let disk = broker_store(config).and_then(|store| disk_size(&store));
    loop {
        let provisioned = async {
            bus.provision(&config.streams, disk).await?;
            bus.provision_requests(config.gateway.idempotency_window, &config.streams).await
        };
        match provisioned.await {
            Err(BusError::Unavailable { what, source }) => {
                if waiting.is_due() {
                    tracing::warn!(what, cause = %source, "waiting for JetStream");
                }
                tokio::time::sleep(PROVISION_RETRY_INTERVAL).await;
            }
            done => {
                if waiting.was_logged() && done.is_ok() {
                    tracing::info!("JetStream is ready");
                }
                return done;
            }
        }
    }
}

impl Server {
    /// Listens, connects, creates missing streams and reads what is deployed.
    ///
    /// Waits until NATS is reachable; meanwhile a gateway responds that it is live and not ready.
    ///
    /// # Errors
    /// When it cannot listen or the broker refuses the connection.
    pub(crate) async fn bind(config: Config, roles: Roles, inherited: Inherited) -> Result<Self, ServerError> {
        make_private(&config.data.dir)?;
        let Inherited { listener, in_flight } = inherited;
        if !roles.gateway {
            return Ok(Self { in_flight, ..Self::start(config, roles).await? });
        }
        let listener = open(&config, listener)?;
        let awaited = format!("NATS at {}", config.nats.url);
        let server = gateway::respond_while(&listener, &awaited, Self::start(config, roles)).await?;
        Ok(Self { listener: Some(listener), in_flight, ..server })
    }

    /// Everything but listening.
    async fn start(config: Config, roles: Roles) -> Result<Self, ServerError> {
        let bus = Bus::connect_when_reachable(&config.nats, "nerve").await?;
        provision(&bus, &config).await?;
        bus.load_legacy_events(config.streams.dedupe_window).await?;
        let registry = Registry::open(&bus, config.worker.ack_wait).await?;
        let keyring = registry.keyring(&config).await?;
        let (followers, end) = (TaskTracker::new(), CancellationToken::new());
        // Before any meter is registered: meters registered earlier would not be recorded.
        let metrics = gateway::metrics::install(end.clone(), &followers);
        let metrics = metrics.map_err(|error| ServerError::Metrics(error.to_string()))?;
        bus.write_drops(end.clone(), &followers);
        let catalogue = registry.follow((keyring, config.collections), end.clone(), &followers).await?;
        let gateway_bus = match &config.gateway_nats {
            Some(nats) if roles.gateway => bus.connect_shared(nats, "nerve gateway").await?,
            _ => bus.clone(),
        };
        let intake =
            if roles.gateway { Some(Intake::start(&gateway_bus, &config, &end, &followers).await?) } else { None };
        let trimmer = Trimmer::new(&bus, &config.streams, returns(catalogue.clone()));
        followers.spawn(trimmer.run(end.clone()));
        if let Some(store) = broker_store(&config) {
            followers.spawn(monitor_disk(bus.clone(), store, config.streams.disk_reserve, end.clone()));
        }
        followers.spawn(monitor_buckets(bus.clone(), end.clone()));
        followers.spawn(registry::evict(config.artifacts(), catalogue.clone(), end.clone()));
        let (listener, in_flight) = (None, None);
        Ok(Self {
            config,
            roles,
            bus,
            gateway_bus,
            registry,
            intake,
            catalogue,
            listener,
            in_flight,
            metrics,
            followers,
            end,
        })
    }

    /// The gateway's address.
    pub(crate) fn gateway_addr(&self) -> Option<SocketAddr> {
        self.listener.as_ref().and_then(|listener| listener.listener.local_addr().ok())
    }

    /// Serves until `shutdown`, then stops intake, finishes or returns events in flight, flushes and returns.
    pub(crate) async fn run(self, shutdown: CancellationToken) -> Result<(), ServerError> {
        let (statuses, sink_statuses) = (Statuses::default(), Statuses::default());
        let tasks = TaskTracker::new();
        let gateway = async {
            let (Some(listener), Some(intake)) = (self.listener, self.intake) else {
                return Ok::<_, ServerError>(None);
            };
            let models = Models::new(ModelParts {
                inference: self.roles.inference,
                fetch: fetch_to(self.config.artifacts(), self.registry.clone()),
                config: self.config.onnx.clone(),
                tasks: tasks.clone(),
                stop: shutdown.clone(),
            });
            let gateway = Gateway::new(gateway::Parts {
                bus: self.gateway_bus.clone(),
                catalogue: self.catalogue.clone(),
                config: self.config.gateway.clone(),
                metrics: self.metrics,
                batches: intake.batches,
                dedupe_store: intake.dedupe_store,
                spool: intake.spool,
                models,
                checks: checks(statuses.clone(), sink_statuses.clone()),
                shutdown: shutdown.clone(),
            });
            gateway::serve(listener, gateway, &intake.threads, tasks.clone()).await.map_err(ServerError::Serve)?;
            Ok(Some(intake.threads))
        };
        let worker = async {
            let Some(runners) = self.roles.worker else { return };
            let parts = worker::Parts {
                bus: self.bus.clone(),
                registry: self.registry.clone(),
                runners,
                catalogue: self.catalogue.clone(),
                statuses: statuses.clone(),
                sink_statuses: sink_statuses.clone(),
                in_flight: self.in_flight,
            };
            worker::run(parts, &self.config, shutdown.clone()).await;
        };
        let (served, ()) = tokio::join!(gateway, worker);
        tasks.close();
        tasks.wait().await;
        self.end.cancel();
        self.followers.close();
        self.followers.wait().await;
        for bus in [&self.gateway_bus, &self.bus] {
            if let Err(error) = bus.flush().await {
                tracing::debug!(%error, "the connection to NATS ended before it was flushed");
            }
        }
        if let Some(threads) = served? {
            threads.end().await;
        }
        Ok(())
    }
}

/// Webhook intake: threads, batches, dedupe keys and the spool.
struct Intake {
    threads: ConnectionThreads,
    batches: FastPublisher,
    dedupe_store: DedupeStore,
    spool: Spool,
}

impl Intake {
    /// Starts intake, which runs until `end`.
    async fn start(
        bus: &Bus,
        config: &Config,
        end: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Self, ServerError> {
        let nats = config.gateway_nats.as_ref().unwrap_or(&config.nats);
        let threads = ConnectionThreads::start(config.gateway.threads(), (bus, nats), end, tasks).await?;
        let batches = FastPublisher::start(bus, end.clone(), tasks).await?;
        let dedupe_store = DedupeStore::follow(bus, config.streams.seen_window, end.clone(), tasks).await?;
        let spool = Spool::open(&config.spool(), config.gateway.spool_max_bytes, tasks).await?;
        let drain = Drain::new(
            spool.clone(),
            (bus.clone(), batches.clone()),
            dedupe_store.clone(),
            config.streams.dedupe_window,
        );
        tasks.spawn(drain.run(end.clone()));
        Ok(Self { threads, batches, dedupe_store, spool })
    }
}

/// The JetStream store of `nerve up`, if it started the broker.
fn broker_store(config: &Config) -> Option<PathBuf> {
    config.gateway_nats.as_ref()?;
    Some(config.data.dir.join(BROKER_STORE)).filter(|store| store.is_dir())
}

/// The event types that each function may emit; sinks emit none.
fn returns(catalogue: watch::Receiver<Arc<Catalogue>>) -> Returns {
    Returns::new(move || {
        let catalogue = catalogue.borrow().clone();
        let functions = catalogue.functions.iter();
        let functions = functions.map(|(name, entry)| (consumer_name(name), entry.record.spec.emits.clone()));
        functions.chain(catalogue.sinks.keys().map(|name| (consumer_name(name), Vec::new()))).collect()
    })
}

/// Fetches deployed files to `folder`, which the worker shares.
fn fetch_to(folder: PathBuf, registry: Registry) -> Fetch {
    Arc::new(move |reference| {
        let (folder, registry) = (folder.clone(), registry.clone());
        async move { registry.fetch(&reference, &folder).await }.boxed()
    })
}

/// Health checks of functions and sinks. One that cannot be loaded is reported but does not make the server unready.
fn checks(functions: Statuses, sinks: Statuses) -> Checks {
    let check = |kind: &str, name, status| Check {
        name: format!("{kind} {name}"),
        ok: !matches!(status, FunctionStatus::Running { alive: false, .. }),
        detail: match status {
            FunctionStatus::Running { alive: true, .. } => None,
            FunctionStatus::Running { alive: false, .. } => Some("its consumer does not respond".to_owned()),
            FunctionStatus::Loading => Some("loading".to_owned()),
            FunctionStatus::Failed { error } => Some(error),
        },
    };
    Checks::new(move || {
        let functions = functions.snapshot().into_iter().map(|(name, status)| check("function", name, status));
        let sinks = sinks.snapshot().into_iter().map(|(name, status)| check("sink", name, status));
        functions.chain(sinks).collect()
    })
}

/// Reads the certificate before binding.
fn open(config: &Config, listener: Option<std::net::TcpListener>) -> Result<Listener, ServerError> {
    let gateway = &config.gateway;
    let files = gateway.tls_cert.as_ref().zip(gateway.tls_key.as_ref());
    let tls = files.map(|(cert, key)| Tls::load(cert, key)).transpose()?;
    let listener = match listener {
        Some(listener) => listener,
        None => listen(gateway)?,
    };
    let listener = TcpListener::from_std(listener).map_err(ServerError::Serve)?;
    Ok(Listener { listener, tls })
}

/// Opens the socket of a gateway, inside a Tokio runtime.
///
/// # Errors
/// [`ServerError::Access`] if others could use the API without a key, [`ServerError::Listen`] if the address cannot be bound.
pub(crate) fn listen(config: &GatewayConfig) -> Result<std::net::TcpListener, ServerError> {
    let addr = config.listen;
    gateway::check_bind(addr, &config.keys)?;
    let open = || {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(BACKLOG)?.into_std()
    };
    open().map_err(|source| ServerError::Listen { addr, source })
}

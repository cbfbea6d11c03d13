//! One server: a gateway, a worker, or both, over one connection to NATS.

use futures::FutureExt;
use metrics_exporter_prometheus::PrometheusHandle;
use nerve_broker::{
    bus::{Batches, Bus, BusError, Returns, Seen, Trimmer, consumer_name, disk_size, watch_buckets, watch_disk},
    connection::Waiting,
};
use nerve_config::{Config, GatewayConfig, HomeError, make_private};
use nerve_core::Inference;
use nerve_gateway::{
    self as gateway, Check, Checks, Door, Drain, Fetch, Gateway, LaneError, Lanes, ModelParts, Models, Spool,
    SpoolError, Tls,
};
use nerve_registry::{self as registry, Catalogue, KeyringError, Registry};
use nerve_worker::{self as worker, FunctionStatus, InFlight, Runners, Statuses};
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections that the system holds until they are accepted: when a flood of them fills that, others lose a second.
const BACKLOG: u32 = 4096;
/// In the data folder: what the broker that `nerve up` starts stores.
const BROKER_STORE: &str = "jetstream";
/// The wait between two tries.
const AGAIN: Duration = Duration::from_millis(250);

/// What a server does.
#[derive(Clone)]
pub(crate) struct Roles {
    /// Whether it serves HTTP.
    pub(crate) gateway: bool,
    /// What runs its functions; none when it runs none.
    pub(crate) worker: Option<Runners>,
    /// What runs models for its gateway; none when it runs none.
    pub(crate) inference: Option<Arc<dyn Inference>>,
}

/// What a server is given by the process that started it.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    /// The socket that its gateway serves, which goes on listening when this process ends; it opens one of its own when none.
    pub(crate) listener: Option<std::net::TcpListener>,
    /// Where it records the events that run.
    pub(crate) in_flight: Option<InFlight>,
}

/// A server that is bound, connected and ready to run.
pub(crate) struct Server {
    config: Config,
    roles: Roles,
    bus: Bus,
    /// The same, or the gateway's own where it has credentials of its own.
    gateway_bus: Bus,
    registry: Registry,
    /// For its gateway, if it is one.
    taken: Option<Taken>,
    catalogue: watch::Receiver<Arc<Catalogue>>,
    door: Option<Door>,
    in_flight: Option<InFlight>,
    metrics: PrometheusHandle,
    /// What follows the broker until the very end.
    followers: TaskTracker,
    end: CancellationToken,
}

/// Why a server does not start, or does not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// Its data folder cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// It may not listen there.
    #[error(transparent)]
    Access(#[from] gateway::OpenToAll),
    /// It has no certificate that it could serve.
    #[error(transparent)]
    Tls(#[from] gateway::TlsError),
    /// It cannot listen there.
    #[error("the gateway cannot listen on {addr}: choose another address with --listen")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The broker cannot be used.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// Connections cannot be served.
    #[error(transparent)]
    Lanes(#[from] LaneError),
    /// What an earlier run left to be stored cannot be read.
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

/// Makes the streams. A broker that has just started may still be electing or recovering, and a cluster may wait for its
/// other servers: what may pass is waited for.
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
                tokio::time::sleep(AGAIN).await;
            }
            done => {
                if waiting.was_said() && done.is_ok() {
                    tracing::info!("JetStream is ready");
                }
                return done;
            }
        }
    }
}

impl Server {
    /// Listens, connects, makes what is missing on the broker and reads what is deployed.
    ///
    /// It waits for a broker that is not there yet; meanwhile a gateway answers that it lives and is not ready.
    ///
    /// # Errors
    /// When it cannot listen, or the broker refuses it.
    pub(crate) async fn bind(config: Config, roles: Roles, inherited: Inherited) -> Result<Self, ServerError> {
        make_private(&config.data.dir)?;
        let Inherited { listener, in_flight } = inherited;
        if !roles.gateway {
            return Ok(Self { in_flight, ..Self::start(config, roles).await? });
        }
        let door = open(&config, listener)?;
        let awaited = format!("NATS at {}", config.nats.url);
        let server = gateway::answer_while(&door, &awaited, Self::start(config, roles)).await?;
        Ok(Self { door: Some(door), in_flight, ..server })
    }

    /// All but listening.
    async fn start(config: Config, roles: Roles) -> Result<Self, ServerError> {
        let bus = Bus::connect_when_reachable(&config.nats, "nerve").await?;
        provision(&bus, &config).await?;
        bus.read_older_events(config.streams.dedupe_window).await?;
        let registry = Registry::open(&bus, config.worker.ack_wait).await?;
        let keyring = registry.keyring(&config).await?;
        let (followers, end) = (TaskTracker::new(), CancellationToken::new());
        // Before any part of the server takes a meter: those taken earlier would count for nobody.
        let metrics = gateway::metrics::install(end.clone(), &followers);
        let metrics = metrics.map_err(|error| ServerError::Metrics(error.to_string()))?;
        bus.write_drops(end.clone(), &followers);
        let catalogue = registry.follow((keyring, config.collections), end.clone(), &followers).await?;
        let gateway_bus = match &config.gateway_nats {
            Some(nats) if roles.gateway => bus.connect_beside(nats, "nerve gateway").await?,
            _ => bus.clone(),
        };
        let taken = match roles.gateway {
            true => Some(follow_taken(&gateway_bus, &config, &end, &followers).await?),
            false => None,
        };
        let trimmer = Trimmer::new(&bus, &config.streams, returns(catalogue.clone()));
        followers.spawn(trimmer.run(end.clone()));
        if let Some(store) = broker_store(&config) {
            followers.spawn(watch_disk(bus.clone(), store, config.streams.disk_reserve, end.clone()));
        }
        followers.spawn(watch_buckets(bus.clone(), end.clone()));
        followers.spawn(registry::evict(config.artifacts(), catalogue.clone(), end.clone()));
        let (door, in_flight) = (None, None);
        Ok(Self {
            config,
            roles,
            bus,
            gateway_bus,
            registry,
            taken,
            catalogue,
            door,
            in_flight,
            metrics,
            followers,
            end,
        })
    }

    /// Where the gateway listens.
    pub(crate) fn gateway_addr(&self) -> Option<SocketAddr> {
        self.door.as_ref().and_then(|door| door.listener.local_addr().ok())
    }

    /// Serves until `shutdown`, then stops intake, finishes or gives back what it has, flushes and returns.
    pub(crate) async fn run(self, shutdown: CancellationToken) -> Result<(), ServerError> {
        let (statuses, sink_statuses) = (Statuses::default(), Statuses::default());
        let tasks = TaskTracker::new();
        let gateway = async {
            let (Some(door), Some(taken)) = (self.door, self.taken) else { return Ok::<_, ServerError>(None) };
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
                batches: taken.batches,
                seen: taken.seen,
                spool: taken.spool,
                models,
                checks: checks(statuses.clone(), sink_statuses.clone()),
                shutdown: shutdown.clone(),
            });
            gateway::serve(door, gateway, &taken.lanes, tasks.clone()).await.map_err(ServerError::Serve)?;
            Ok(Some(taken.lanes))
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
                tracing::debug!(%error, "the connection ended before the last bytes left");
            }
        }
        if let Some(lanes) = served? {
            lanes.end().await;
        }
        Ok(())
    }
}

/// Webhooks that are being taken in, that were, and that wait for the broker.
struct Taken {
    lanes: Lanes,
    batches: Batches,
    seen: Seen,
    spool: Spool,
}

/// What takes webhooks into the log until `end`.
async fn follow_taken(
    bus: &Bus,
    config: &Config,
    end: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<Taken, ServerError> {
    let nats = config.gateway_nats.as_ref().unwrap_or(&config.nats);
    let lanes = Lanes::start(config.gateway.threads(), (bus, nats), end, tasks).await?;
    let batches = Batches::start(bus, end.clone(), tasks).await?;
    let seen = Seen::follow(bus, config.streams.seen_window, end.clone(), tasks).await?;
    let spool = Spool::open(&config.spool(), config.gateway.spool_max_bytes, tasks).await?;
    let drain = Drain::new(spool.clone(), (bus.clone(), batches.clone()), seen.clone(), config.streams.dedupe_window);
    tasks.spawn(drain.run(end.clone()));
    Ok(Taken { lanes, batches, seen, spool })
}

/// Where the broker stores, if it is that of `nerve up`, which has it in the data folder.
fn broker_store(config: &Config) -> Option<PathBuf> {
    config.gateway_nats.as_ref()?;
    Some(config.data.dir.join(BROKER_STORE)).filter(|store| store.is_dir())
}

/// What deployed functions may return; a sink returns nothing.
fn returns(catalogue: watch::Receiver<Arc<Catalogue>>) -> Returns {
    Returns::new(move || {
        let catalogue = catalogue.borrow().clone();
        let functions = catalogue.functions.iter();
        let functions = functions.map(|(name, entry)| (consumer_name(name), entry.record.spec.emits.clone()));
        functions.chain(catalogue.sinks.keys().map(|name| (consumer_name(name), Vec::new()))).collect()
    })
}

/// Brings deployed files to `folder`, which the worker shares.
fn fetch_to(folder: PathBuf, registry: Registry) -> Fetch {
    Arc::new(move |reference| {
        let (folder, registry) = (folder.clone(), registry.clone());
        async move { registry.fetch(&reference, &folder).await }.boxed()
    })
}

/// A function or a sink that cannot be loaded is told of but takes nobody out of service: the others, and the gateway, go
/// on.
fn checks(functions: Statuses, sinks: Statuses) -> Checks {
    let check = |kind: &str, name, status| Check {
        name: format!("{kind} {name}"),
        ok: !matches!(status, FunctionStatus::Running { alive: false, .. }),
        detail: match status {
            FunctionStatus::Running { alive: true, .. } => None,
            FunctionStatus::Running { alive: false, .. } => Some("its consumer does not answer".to_owned()),
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

/// Reads the certificate first, so that nothing is bound in vain.
fn open(config: &Config, listener: Option<std::net::TcpListener>) -> Result<Door, ServerError> {
    let gateway = &config.gateway;
    let files = gateway.tls_cert.as_ref().zip(gateway.tls_key.as_ref());
    let tls = files.map(|(cert, key)| Tls::load(cert, key)).transpose()?;
    let listener = match listener {
        Some(listener) => listener,
        None => listen(gateway)?,
    };
    let listener = TcpListener::from_std(listener).map_err(ServerError::Serve)?;
    Ok(Door { listener, tls })
}

/// Opens the socket of a gateway, from inside a runtime.
///
/// # Errors
/// [`ServerError::Access`] where everybody could use what listens there, [`ServerError::Listen`] where the system refuses the address.
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

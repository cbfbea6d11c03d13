//! Runs deployed functions and sinks: pulls events into free slots, invokes functions, publishes their results, and acknowledges
//! each event by its verdict.
//!
//! # Layout
//! - `supervisor`: one per function. Loads each revision and swaps it in while the old one finishes.
//! - `runner`: one per revision. Pulls from the stream, from delayed retries and from redriven dead letters, and accepts direct calls.
//! - `invocation`: one batch from delivery to verdict. `redelivery`: repeated deliveries. `isolation`: exclusive runs.
//! - `reopen`: consumers that failed. `collector`: the output events of a direct call.
//! - `emission`: output events, with ids that are stable across attempts. `input_state`: the emissions of one input event.
//! - `in_flight`: the running events, in memory shared with the parent process.
//! - `cancellations`: cancelled answers. `retries`: retry requests.
//! - `tools`: functions that an agent calls by events.
//! - `failure`: attempts, retries, dead letters.
//! - `sinks`: outbound webhooks. `schedules`: scheduled events.
//! - `log`: log lines of functions, sent to LOGS.
//!
//! # Flow
//! The catalogue changes → a supervisor loads the function → its runner pulls → an invocation runs the function,
//! publishes its results, and only then acknowledges the deliveries. The worker keeps no state: an event that it has not
//! acknowledged is redelivered to this worker or another one.

mod cancellations;
mod collector;
mod emission;
mod failure;
mod in_flight;
mod input_state;
mod invocation;
mod isolation;
mod log;
mod redelivery;
mod reopen;
mod retries;
mod runner;
mod schedules;
mod sinks;
mod supervisor;
mod tools;

pub use in_flight::{InFlight, InFlightEvent};
use nerve_broker::bus::{AckExtender, Bus, ProgressRecorder, PullContext, ResultSetPublisher};
use nerve_config::Config;
use nerve_core::{Host, Name, Secret, function::Views};
use nerve_registry::{Catalogue, Entry, FunctionRecord, MissingSecret, Registry};
use nerve_sandbox::Pool;
use parking_lot::Mutex;
use serde::Serialize;
pub use sinks::{SINK_TEMPLATES, check_template};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The wait before a failed consumer is reopened.
const REOPEN_INTERVAL: Duration = Duration::from_millis(500);

/// The state that all parts of a worker share.
#[derive(Clone)]
pub(crate) struct WorkerShared {
    pub(crate) bus: Bus,
    pub(crate) registry: Registry,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) helpers: Pool,
    pub(crate) pulling: PullContext,
    pub(crate) sets: ResultSetPublisher,
    isolation: isolation::Isolation,
    /// The record of running events, if one is kept.
    in_flight: Option<InFlight>,
    log_budgets: log::Budgets,
    /// The period in which JetStream rejects a repeated message id.
    pub(crate) dedupe_window: Duration,
    /// Maximum length of a chain of function results.
    max_hops: u32,
    pub(crate) artifacts: PathBuf,
    pub(crate) statuses: Statuses,
    pub(crate) sink_statuses: Statuses,
    pub(crate) stops: Stops,
    pub(crate) catalogue: watch::Receiver<Arc<Catalogue>>,
    pub(crate) views: Arc<dyn Views>,
    cancellations: cancellations::Cancellations,
    pub(crate) tasks: TaskTracker,
}

/// The two steps of a shutdown: `intake` stops pulling, `work` releases the events that still run.
#[derive(Debug, Clone)]
pub(crate) struct Stops {
    pub(crate) intake: CancellationToken,
    pub(crate) work: CancellationToken,
}

/// The status of a function on this worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum FunctionStatus {
    /// The worker is fetching, compiling or starting it.
    Loading,
    /// It receives events.
    Running {
        /// The running revision.
        revision: u64,
        /// Whether its consumer responded recently.
        alive: bool,
    },
    /// It cannot be loaded, or its consumer cannot be created.
    Failed {
        /// The cause.
        error: String,
    },
}

impl FunctionStatus {
    /// Whether the function receives events.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Running { alive: true, .. })
    }
}

/// The status of every function on this worker.
#[derive(Debug, Clone, Default)]
pub struct Statuses(Arc<Mutex<BTreeMap<Name, StatusEntry>>>);

#[derive(Debug)]
enum StatusEntry {
    Loading,
    Running { revision: u64, liveness: nerve_broker::bus::Liveness },
    Failed { error: String },
}

impl Statuses {
    /// Returns the current status of each function.
    pub fn snapshot(&self) -> BTreeMap<Name, FunctionStatus> {
        let status = |slot: &StatusEntry| match slot {
            StatusEntry::Loading => FunctionStatus::Loading,
            StatusEntry::Running { revision, liveness } => {
                FunctionStatus::Running { revision: *revision, alive: liveness.is_alive() }
            }
            StatusEntry::Failed { error } => FunctionStatus::Failed { error: error.clone() },
        };
        self.0.lock().iter().map(|(name, slot)| (name.clone(), status(slot))).collect()
    }

    fn set(&self, name: &Name, slot: StatusEntry) {
        self.0.lock().insert(name.clone(), slot);
    }

    fn remove(&self, name: &Name) {
        self.0.lock().remove(name);
    }
}

/// The executors of a worker.
#[derive(Clone)]
pub struct Runners {
    /// Runs functions.
    pub host: Arc<dyn Host>,
    /// Helper processes, which render the templates of sinks ([`SINK_TEMPLATES`]).
    pub helpers: Pool,
}

/// The parts of a worker.
pub struct Parts {
    /// The broker.
    pub bus: Bus,
    /// The deployed resources.
    pub registry: Registry,
    /// The executors of functions and templates.
    pub runners: Runners,
    /// A snapshot of the deployed resources, updated at each change.
    pub catalogue: watch::Receiver<Arc<Catalogue>>,
    /// The status of each function, which the worker writes.
    pub statuses: Statuses,
    /// The status of each sink, which the worker writes.
    pub sink_statuses: Statuses,
    /// The record of running events, if one is kept.
    pub in_flight: Option<InFlight>,
}

/// The desired state of one function. A change of any field causes a reload.
#[derive(Debug, Clone)]
struct Desired {
    entry: Entry<FunctionRecord>,
    /// Revisions of the secrets. A rotated secret causes a reload.
    secret_revisions: Vec<Option<u64>>,
    secrets: Result<BTreeMap<String, Secret>, MissingSecret>,
}

impl Desired {
    fn of(catalogue: &Catalogue, entry: &Entry<FunctionRecord>) -> Self {
        let names = &entry.record.spec.secrets;
        Self {
            entry: entry.clone(),
            secret_revisions: names.iter().map(|name| catalogue.secret_revision(name)).collect(),
            secrets: catalogue.secrets_of(names),
        }
    }

    fn is_same_load(&self, other: &Self) -> bool {
        self.entry.revision == other.entry.revision && self.secret_revisions == other.secret_revisions
    }
}

/// Runs functions and sinks until `shutdown`, then drains within `worker.grace` and returns.
pub async fn run(parts: Parts, config: &Config, shutdown: CancellationToken) {
    let stops = Stops { intake: shutdown.clone(), work: CancellationToken::new() };
    let timer = CancellationToken::new();
    let (tasks, timers) = (TaskTracker::new(), TaskTracker::new());
    let sets = match ResultSetPublisher::start(&parts.bus, timer.clone(), &timers).await {
        Ok(sets) => sets,
        Err(error) => return tracing::error!(error = &error as &dyn std::error::Error, "worker cannot start"),
    };
    let pulling = PullContext {
        bus: parts.bus.clone(),
        leases: AckExtender::start(&parts.bus, config.worker.ack_wait, timer.clone(), &timers),
        places: ProgressRecorder::start(&parts.bus, timer.clone(), &timers),
    };
    let shared = WorkerShared {
        pulling,
        sets,
        isolation: isolation::Isolation::default(),
        in_flight: parts.in_flight,
        log_budgets: log::Budgets::new(&config.worker),
        dedupe_window: config.streams.dedupe_window,
        max_hops: config.worker.max_hops,
        views: Arc::new(parts.bus.clone()),
        catalogue: parts.catalogue.clone(),
        cancellations: cancellations::Cancellations::default(),
        bus: parts.bus,
        registry: parts.registry,
        host: parts.runners.host,
        helpers: parts.runners.helpers,
        artifacts: config.artifacts(),
        statuses: parts.statuses,
        sink_statuses: parts.sink_statuses,
        stops: stops.clone(),
        tasks: tasks.clone(),
    };
    timers.spawn(cancellations::follow(shared.clone()));
    shared.tasks.spawn(retries::serve(shared.clone()));
    let functions = reconcile(&shared, parts.catalogue);
    tokio::join!(functions, sinks::reconcile(&shared, &config.sinks.allow), schedules::run(&shared));
    tasks.close();
    if tokio::time::timeout(config.worker.grace, tasks.wait()).await.is_err() {
        tracing::warn!("shutdown grace period (worker.grace) expired; releasing running events");
        stops.work.cancel();
        // Releasing takes one message per event. A function that does not return is abandoned.
        tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await.ok();
    }
    stops.work.cancel();
    timer.cancel();
    timers.close();
    timers.wait().await;
    if let Err(error) = shared.bus.flush().await {
        tracing::warn!(%error, "the last acknowledgements may not have been sent; their events will be redelivered");
    }
}

/// Keeps one supervisor per function and sends it each change, until the intake stops.
async fn reconcile(shared: &WorkerShared, mut catalogue: watch::Receiver<Arc<Catalogue>>) {
    let mut supervised: BTreeMap<Name, watch::Sender<Option<Desired>>> = BTreeMap::new();
    loop {
        let now = catalogue.borrow_and_update().clone();
        supervised.retain(|name, desired| {
            let stays = now.functions.contains_key(name);
            if !stays {
                desired.send_replace(None);
            }
            stays
        });
        for (name, entry) in &now.functions {
            let desired = Desired::of(&now, entry);
            match supervised.get(name) {
                Some(sender) => {
                    sender.send_if_modified(|current| {
                        let changed = current.as_ref().is_none_or(|current| !current.is_same_load(&desired));
                        if changed {
                            *current = Some(desired.clone());
                        }
                        changed
                    });
                }
                None => {
                    let (sender, receiver) = watch::channel(Some(desired));
                    shared.tasks.spawn(supervisor::supervise(shared.clone(), name.clone(), receiver));
                    supervised.insert(name.clone(), sender);
                }
            }
        }
        tokio::select! {
            changed = catalogue.changed() => if changed.is_err() { return },
            () = shared.stops.intake.cancelled() => return,
        }
    }
}

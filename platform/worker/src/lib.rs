//! Runs what is deployed: pulls events into free slots, hands them to functions, publishes what those return,
//! and settles each by its verdict.
//!
//! # Layout
//! - `supervisor`: one a function: loads each revision, and swaps it in while the old one finishes.
//! - `runner`: one a revision: the intake, from the stream, from redriven letters and from direct calls.
//! - `invocation`: one batch from delivery to verdict. `settle`: deliveries that came before. `isolation`: one that runs alone.
//! - `emission`: what a function returns, as events with ids that do not change from one try to the next. `input_state`: what one
//!   event has emitted so far.
//! - `in_flight`: which events are being run, told to the process that started this one.
//! - `cancels`: answers that nobody wants any more. `retries`: what is asked to be tried again.
//! - `tools`: functions that an agent calls by events.
//! - `failure`: attempts, retries, dead letters.
//! - `sinks`: outbound webhooks. `schedules`: events at certain times.
//! - `log`: what functions say, on its way to LOGS.
//!
//! # Flow
//! The catalogue changes → a supervisor loads the function → its runner pulls → an invocation runs the function,
//! publishes its results, and only then settles the deliveries. The worker keeps no state: whatever it has not
//! settled comes again, here or elsewhere.

mod cancels;
mod emission;
mod failure;
mod in_flight;
mod input_state;
mod invocation;
mod isolation;
mod log;
mod retries;
mod runner;
mod schedules;
mod settle;
mod sinks;
mod supervisor;
mod tools;

pub use in_flight::{InFlight, InFlightEvent};
use nerve_broker::bus::{AckExtender, Bus, ProgressRecorder, PullContext, ResultSetPublisher};
use nerve_config::Config;
use nerve_core::{Host, Name, Secret, function::Views};
use nerve_registry::{Catalogue, Entry, FunctionRecord, MissingSecret, Registry};
use nerve_sandbox::Pool;
use serde::Serialize;
pub use sinks::{SINK_TEMPLATES, check_template};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The wait before a broken intake is opened again.
const REOPEN: Duration = Duration::from_millis(500);

/// What every part of a worker shares.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) bus: Bus,
    pub(crate) registry: Registry,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) helpers: Pool,
    pub(crate) pulling: PullContext,
    pub(crate) sets: ResultSetPublisher,
    isolation: isolation::Isolation,
    /// Where the events that run are recorded, if anywhere.
    in_flight: Option<InFlight>,
    log_budgets: log::Budgets,
    /// How long JetStream itself knows an id.
    pub(crate) dedupe_window: Duration,
    /// The most results of functions in a row, each of the one before.
    max_hops: u32,
    pub(crate) artifacts: PathBuf,
    pub(crate) statuses: Statuses,
    pub(crate) sink_statuses: Statuses,
    pub(crate) stops: Stops,
    pub(crate) catalogue: watch::Receiver<Arc<Catalogue>>,
    pub(crate) views: Arc<dyn Views>,
    cancels: cancels::Cancels,
    pub(crate) tasks: TaskTracker,
}

/// The two steps of an end: first nothing new is taken, then what still runs is given back.
#[derive(Debug, Clone)]
pub(crate) struct Stops {
    pub(crate) intake: CancellationToken,
    pub(crate) work: CancellationToken,
}

/// How a function is doing on this worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum FunctionStatus {
    /// It is being fetched, compiled or started.
    Loading,
    /// It takes events.
    Running {
        /// The revision that does.
        revision: u64,
        /// Whether its consumer answered lately.
        alive: bool,
    },
    /// It cannot be loaded, or its consumer cannot be asked.
    Failed {
        /// Why.
        error: String,
    },
}

impl FunctionStatus {
    /// Whether events are being taken.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Running { alive: true, .. })
    }
}

/// How every function on this worker is doing.
#[derive(Debug, Clone, Default)]
pub struct Statuses(Arc<Mutex<BTreeMap<Name, Slot>>>);

#[derive(Debug)]
enum Slot {
    Loading,
    Running { revision: u64, liveness: nerve_broker::bus::Liveness },
    Failed { error: String },
}

impl Statuses {
    /// The state at this moment.
    pub fn snapshot(&self) -> BTreeMap<Name, FunctionStatus> {
        let status = |slot: &Slot| match slot {
            Slot::Loading => FunctionStatus::Loading,
            Slot::Running { revision, liveness } => {
                FunctionStatus::Running { revision: *revision, alive: liveness.is_alive() }
            }
            Slot::Failed { error } => FunctionStatus::Failed { error: error.clone() },
        };
        self.lock().iter().map(|(name, slot)| (name.clone(), status(slot))).collect()
    }

    fn set(&self, name: &Name, slot: Slot) {
        self.lock().insert(name.clone(), slot);
    }

    fn remove(&self, name: &Name) {
        self.lock().remove(name);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Name, Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What does the work of a worker.
#[derive(Clone)]
pub struct Runners {
    /// Runs functions.
    pub host: Arc<dyn Host>,
    /// Helper processes, which fill in the templates of sinks: [`SINK_TEMPLATES`].
    pub helpers: Pool,
}

/// What a worker is made of.
pub struct Parts {
    /// The broker.
    pub bus: Bus,
    /// What is deployed.
    pub registry: Registry,
    /// What runs functions.
    pub runners: Runners,
    /// A snapshot of what is deployed, which follows each change.
    pub catalogue: watch::Receiver<Arc<Catalogue>>,
    /// The status of each function, which the worker writes.
    pub statuses: Statuses,
    /// The status of each sink, which the worker writes.
    pub sink_statuses: Statuses,
    /// Where the worker records events in flight, if anywhere.
    pub in_flight: Option<InFlight>,
}

/// What one function should be running: a change in any of it is a new load.
#[derive(Debug, Clone)]
struct Desired {
    entry: Entry<FunctionRecord>,
    /// Revisions of the secrets, so that a rotated one is picked up.
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

/// Runs functions until `shutdown`, then drains within the configured grace and returns.
pub async fn run(parts: Parts, config: &Config, shutdown: CancellationToken) {
    let stops = Stops { intake: shutdown.clone(), work: CancellationToken::new() };
    let timer = CancellationToken::new();
    let (tasks, timers) = (TaskTracker::new(), TaskTracker::new());
    let sets = match ResultSetPublisher::start(&parts.bus, timer.clone(), &timers).await {
        Ok(sets) => sets,
        Err(error) => return tracing::error!(error = &error as &dyn std::error::Error, "the worker cannot start"),
    };
    let pulling = PullContext {
        bus: parts.bus.clone(),
        leases: AckExtender::start(&parts.bus, config.worker.ack_wait, timer.clone(), &timers),
        places: ProgressRecorder::start(&parts.bus, timer.clone(), &timers),
    };
    let shared = Shared {
        pulling,
        sets,
        isolation: isolation::Isolation::default(),
        in_flight: parts.in_flight,
        log_budgets: log::Budgets::new(&config.worker),
        dedupe_window: config.streams.dedupe_window,
        max_hops: config.worker.max_hops,
        views: Arc::new(parts.bus.clone()),
        catalogue: parts.catalogue.clone(),
        cancels: cancels::Cancels::default(),
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
    timers.spawn(cancels::follow(shared.clone()));
    shared.tasks.spawn(retries::serve(shared.clone()));
    let functions = reconcile(&shared, parts.catalogue);
    tokio::join!(functions, sinks::reconcile(&shared, &config.sinks.allow), schedules::run(&shared));
    tasks.close();
    if tokio::time::timeout(config.worker.grace, tasks.wait()).await.is_err() {
        tracing::warn!("the grace is over: what still runs is given back");
        stops.work.cancel();
        // Giving back is one message each; a guest that does not end is left behind.
        tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await.ok();
    }
    stops.work.cancel();
    timer.cancel();
    timers.close();
    timers.wait().await;
    if let Err(error) = shared.bus.flush().await {
        tracing::warn!(%error, "the last acknowledgements may not have left");
    }
}

/// Keeps one supervisor a function, told of every change, until the intake stops.
async fn reconcile(shared: &Shared, mut catalogue: watch::Receiver<Arc<Catalogue>>) {
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

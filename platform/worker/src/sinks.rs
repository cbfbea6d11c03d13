//! Sinks: outbound webhooks, signed as Standard Webhooks defines it.
//!
//! # Layout
//! - `runner`: one per revision. Pulls from the stream, from delayed retries and from redriven dead letters.
//! - `delivery`: one event, from its delivery to its verdict.
//! - `permit`: send permits, limited by the sink's rate and by `breaker`, the circuit breaker. `health`: disables endpoints that
//!   fail for long.
//! - `endpoint`: the HTTP request. `body`: its body; `template`: a body rendered from a template; `signature`: its signature;
//!   `egress`: the addresses that it may reach.
//! - `verdict`: the outcome of an attempt, as one pure function.
//!
//! # Flow
//! A delivery is posted, the attempt is recorded, and only then the delivery is acknowledged, scheduled for its next attempt
//! (`bus::timers`, which holds no slot), or dead-lettered. With `order` a failed event stays at the head of its stream instead.

mod body;
mod breaker;
mod delivery;
mod egress;
mod endpoint;
mod health;
mod permit;
mod runner;
mod signature;
mod template;
mod verdict;

use super::{StatusEntry, WorkerShared, log};
use body::Composer;
use delivery::Dispatcher;
use egress::{EgressPolicy, EgressResolver};
use endpoint::Endpoint;
use health::Health;
use nerve_core::{Name, function::LogLevel, manifest::Network};
use nerve_registry::{Catalogue, Entry, SinkRecord};
use permit::SendLimiter;
use runner::Runner;
use std::{collections::BTreeMap, sync::Arc};
pub use template::{SINK_TEMPLATES, check_template};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The desired state of a sink. A change of any field causes a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DesiredSink {
    revision: u64,
    /// Revisions of the secrets. A rotated secret causes a restart.
    secret_revisions: Vec<Option<u64>>,
    disabled: bool,
}

impl DesiredSink {
    fn of(catalogue: &Catalogue, entry: &Entry<SinkRecord>) -> Self {
        let names = entry.record.spec.secret_names();
        let state = catalogue.sink_states.get(&entry.name);
        Self {
            revision: entry.revision,
            secret_revisions: names.iter().map(|name| catalogue.secret_revision(name)).collect(),
            disabled: state.is_some_and(|state| state.record.disabled.is_some()),
        }
    }
}

/// Keeps every deployed and enabled sink running until the intake stops. All of them may reach the networks in `allow`.
pub(super) async fn reconcile(shared: &WorkerShared, allow: &[Network]) {
    let sinks = Sinks { shared, allow };
    let mut running: BTreeMap<Name, (DesiredSink, CancellationToken)> = BTreeMap::new();
    let mut catalogue = shared.catalogue.clone();
    loop {
        let now = catalogue.borrow_and_update().clone();
        running.retain(|name, (desired, stop)| {
            let stays = now.sinks.get(name).is_some_and(|entry| DesiredSink::of(&now, entry) == *desired);
            if !stays {
                stop.cancel();
                shared.sink_statuses.remove(name);
            }
            stays
        });
        for (name, entry) in &now.sinks {
            if running.contains_key(name) {
                continue;
            }
            let (desired, stop) = (DesiredSink::of(&now, entry), shared.stops.intake.child_token());
            if desired.disabled {
                tracing::info!(sink = %name, "sink is disabled; its events wait until `nerve sink enable {name}`");
            } else if let Err(error) = sinks.start(&now, entry, &stop).await {
                sinks.report(name, error).await;
            }
            running.insert(name.clone(), (desired, stop));
        }
        tokio::select! {
            changed = catalogue.changed() => if changed.is_err() { return },
            () = shared.stops.intake.cancelled() => return,
        }
    }
}

/// The state that all sinks of a worker share.
struct Sinks<'w> {
    shared: &'w WorkerShared,
    allow: &'w [Network],
}

impl Sinks<'_> {
    async fn start(
        &self,
        catalogue: &Catalogue,
        entry: &Entry<SinkRecord>,
        stop: &CancellationToken,
    ) -> Result<(), String> {
        let shared = self.shared;
        let (name, spec) = (&entry.name, &entry.record.spec);
        let names = spec.secret_names();
        let secrets = catalogue.secrets_of(&names).map_err(|missing| missing.to_string())?;
        let policy = EgressPolicy::new(spec.allow.iter().chain(self.allow).copied());
        let composer = Composer::new(&spec.body, name, &shared.helpers).await?;
        let resolver = EgressResolver { policy, lookup: egress::system() };
        let endpoint = Endpoint::new(spec, &secrets, composer, resolver)?;
        let health = Health {
            shared: shared.clone(),
            sink: name.clone(),
            host: endpoint.host().to_owned(),
            disable_after: spec.disable_after,
        };
        let dispatcher = Dispatcher {
            shared: shared.clone(),
            name: name.clone(),
            revision: entry.revision,
            spec: spec.clone(),
            endpoint,
            limiter: SendLimiter::new(spec.rate),
            health,
            running: Semaphore::new(spec.concurrency),
            stop: stop.clone(),
        };
        let runner = Runner {
            shared: shared.clone(),
            entry: entry.clone(),
            dispatcher: Arc::new(dispatcher),
            stop: stop.clone(),
            work: TaskTracker::new(),
        };
        shared.sink_statuses.set(name, StatusEntry::Loading);
        shared.tasks.spawn(runner.run());
        tracing::info!(sink = %name, revision = entry.revision, "running");
        Ok(())
    }

    /// Reports the reason why a sink does not run. A change of the sink or of its secrets starts it again.
    async fn report(&self, name: &Name, error: String) {
        let shared = self.shared;
        let error = format!("sink cannot run: {error}");
        tracing::error!(sink = %name, "{error}");
        log::write(shared, &log::record(name, LogLevel::Error, error.clone())).await;
        shared.sink_statuses.set(name, StatusEntry::Failed { error });
    }
}

/// Formats a time for an event or a message.
fn format_time(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

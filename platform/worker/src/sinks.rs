//! Sinks: outbound webhooks, signed as Standard Webhooks defines it.
//!
//! # Layout
//! - `runner`: one a revision: the intake, from the stream, from what is due, and from redriven letters.
//! - `delivery`: one event, from its delivery to its verdict.
//! - `gate`, `breaker`: what a post waits for. `health`: endpoints that fail for long are disabled.
//! - `endpoint`: the post itself. `body`: what is posted, `template`: what a sink's template makes of an event; `signature`: how it is signed; `guard`: where to.
//! - `verdict`: what becomes of an event, as one pure function.
//!
//! # Flow
//! A delivery is posted, the attempt is written down, and only then the delivery is settled: acknowledged, put off until
//! its next attempt is due (`bus::timers`, which holds no slot), or copied to the dead letters. A sink in order is the
//! exception: there an event that failed stays at the head of its stream.

mod body;
mod breaker;
mod delivery;
mod endpoint;
mod gate;
mod guard;
mod health;
mod runner;
mod signature;
mod template;
mod verdict;

use super::{Shared, Slot, log};
use body::Composer;
use delivery::Poster;
use endpoint::Endpoint;
use gate::Gate;
use guard::{Guard, GuardedResolver};
use health::Health;
use nerve_core::{Name, function::LogLevel, manifest::Network};
use nerve_registry::{Catalogue, Entry, SinkRecord};
use runner::Runner;
use std::{collections::BTreeMap, sync::Arc};
pub use template::{SINK_TEMPLATES, check_template};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What a running sink was made of: a change in any of it is a new start.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    revision: u64,
    /// Of the secrets, so that a rotated one is picked up.
    secret_revisions: Vec<Option<u64>>,
    disabled: bool,
}

impl Wanted {
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

/// Keeps every sink that is deployed and enabled running, until the intake stops. All may reach what `allow` says.
pub(super) async fn reconcile(shared: &Shared, allow: &[Network]) {
    let sinks = Sinks { shared, allow };
    let mut running: BTreeMap<Name, (Wanted, CancellationToken)> = BTreeMap::new();
    let mut catalogue = shared.catalogue.clone();
    loop {
        let now = catalogue.borrow_and_update().clone();
        running.retain(|name, (wanted, stop)| {
            let stays = now.sinks.get(name).is_some_and(|entry| Wanted::of(&now, entry) == *wanted);
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
            let (wanted, stop) = (Wanted::of(&now, entry), shared.stops.intake.child_token());
            if wanted.disabled {
                tracing::info!(sink = %name, "disabled: its events wait until `nerve sink enable {name}`");
            } else if let Err(error) = sinks.start(&now, entry, &stop).await {
                sinks.report(name, error).await;
            }
            running.insert(name.clone(), (wanted, stop));
        }
        tokio::select! {
            changed = catalogue.changed() => if changed.is_err() { return },
            () = shared.stops.intake.cancelled() => return,
        }
    }
}

/// What every sink of a worker shares.
struct Sinks<'w> {
    shared: &'w Shared,
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
        let guard = Guard::new(spec.allow.iter().chain(self.allow).copied());
        let composer = Composer::new(&spec.body, name, &shared.helpers).await?;
        let resolver = GuardedResolver { guard, lookup: guard::system() };
        let endpoint = Endpoint::new(spec, &secrets, composer, resolver)?;
        let health = Health {
            shared: shared.clone(),
            sink: name.clone(),
            host: endpoint.host().to_owned(),
            disable_after: spec.disable_after,
        };
        let poster = Poster {
            shared: shared.clone(),
            name: name.clone(),
            revision: entry.revision,
            spec: spec.clone(),
            endpoint,
            gate: Gate::new(spec.rate),
            health,
            running: Semaphore::new(spec.concurrency),
            stop: stop.clone(),
        };
        let runner = Runner {
            shared: shared.clone(),
            entry: entry.clone(),
            poster: Arc::new(poster),
            stop: stop.clone(),
            work: TaskTracker::new(),
        };
        shared.sink_statuses.set(name, Slot::Loading);
        shared.tasks.spawn(runner.run());
        tracing::info!(sink = %name, revision = entry.revision, "running");
        Ok(())
    }

    /// Tells why a sink does not run; a change of it, or of its secrets, is tried again.
    async fn report(&self, name: &Name, error: String) {
        let shared = self.shared;
        let error = format!("it cannot run: {error}");
        tracing::error!(sink = %name, "{error}");
        log::write(shared, &log::record(name, LogLevel::Error, error.clone())).await;
        shared.sink_statuses.set(name, Slot::Failed { error });
    }
}

/// A time in an event or a sentence.
fn shown(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

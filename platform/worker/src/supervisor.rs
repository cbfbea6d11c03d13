//! The supervisor of one function: loads each deployed revision and swaps it in while the old one finishes its events.

use super::{Desired, StatusEntry, WorkerShared, log, runner::Runner};
use nerve_core::{Deployment, Function, LoadError, Name};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// The wait before the first retry of a failed load. It doubles each time.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum wait between two loads.
const MAX_RELOAD_INTERVAL: Duration = Duration::from_secs(60);

/// A revision that receives events.
struct RunningRevision {
    desired: Desired,
    stop: CancellationToken,
}

pub(super) async fn supervise(shared: WorkerShared, name: Name, mut desired: watch::Receiver<Option<Desired>>) {
    let mut running: Option<RunningRevision> = None;
    let mut failures = 0;
    loop {
        let target = desired.borrow_and_update().clone();
        let Some(target) = target else { break };
        let mut retry = false;
        if running.as_ref().is_none_or(|running| !running.desired.is_same_load(&target)) {
            if running.is_none() {
                shared.statuses.set(&name, StatusEntry::Loading);
            }
            let span = tracing::info_span!("deploy", function = name.as_str(), revision = target.entry.revision);
            match load(&shared, &name, &target).instrument(span.clone()).await {
                Ok(function) => {
                    failures = 0;
                    // The old revision finishes its events and pulls no new ones.
                    if let Some(old) = running.take() {
                        old.stop.cancel();
                    }
                    running = Some(start(&shared, &name, target, function));
                }
                Err(error) => {
                    retry = !matches!(error, LoadError::Invalid(_));
                    failures += 1;
                    report(&shared, &name, &target, &error).instrument(span).await;
                }
            }
        }
        let wait = RELOAD_INTERVAL.saturating_mul(1 << failures.min(6)).min(MAX_RELOAD_INTERVAL);
        tokio::select! {
            changed = desired.changed() => if changed.is_err() { break },
            () = shared.stops.intake.cancelled() => break,
            () = tokio::time::sleep(wait), if retry => {}
        }
    }
    if let Some(running) = running {
        running.stop.cancel();
    }
    shared.statuses.remove(&name);
}

fn start(shared: &WorkerShared, name: &Name, desired: Desired, function: Arc<dyn Function>) -> RunningRevision {
    let stop = shared.stops.intake.child_token();
    let runner = Runner::new(shared, name, &desired.entry, function, stop.clone());
    shared.tasks.spawn(runner.run());
    tracing::info!(function = %name, revision = desired.entry.revision, "running");
    RunningRevision { desired, stop }
}

async fn load(shared: &WorkerShared, name: &Name, desired: &Desired) -> Result<Arc<dyn Function>, LoadError> {
    let record = &desired.entry.record;
    let secrets = desired.secrets.clone().map_err(|missing| LoadError::Invalid(missing.to_string()))?;
    // The deploying process may have used another ack wait; this worker extends the acks.
    let ensured = shared.registry.ensure_consumers(name, record).await;
    ensured.map_err(|error| LoadError::failed("creating its consumers", error))?;
    let mut artifacts = Vec::with_capacity(record.artifacts.len());
    for reference in &record.artifacts {
        let fetched = shared.registry.fetch(reference, &shared.artifacts).await;
        artifacts.push(fetched.map_err(|error| LoadError::failed(format!("fetching {}", reference.name), error))?);
    }
    let deployment = Deployment {
        name: name.clone(),
        revision: desired.entry.revision,
        spec: record.spec.clone(),
        artifacts,
        secrets,
        logs: log::sink(shared, name),
    };
    shared.host.load(deployment).await
}

async fn report(shared: &WorkerShared, name: &Name, desired: &Desired, error: &LoadError) {
    let mut message = format!("revision {} could not be loaded: {error}", desired.entry.revision);
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        message.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    tracing::error!(function = %name, "{message}");
    log::write(shared, &log::record(name, nerve_core::function::LogLevel::Error, message.clone())).await;
    shared.statuses.set(name, StatusEntry::Failed { error: message });
}

//! One a function: loads what is deployed, and swaps it in while the old revision finishes what it has.

use super::{Desired, Shared, Slot, log, runner::Runner};
use nerve_core::{Deployment, Function, LoadError, Name};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The wait before a failed load is tried again, doubled each time.
const RELOAD: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A revision that takes events.
struct Running {
    desired: Desired,
    stop: CancellationToken,
}

pub(super) async fn supervise(shared: Shared, name: Name, mut desired: watch::Receiver<Option<Desired>>) {
    let mut running: Option<Running> = None;
    let mut failures = 0;
    loop {
        let wanted = desired.borrow_and_update().clone();
        let Some(wanted) = wanted else { break };
        let mut retry = false;
        if running.as_ref().is_none_or(|running| !running.desired.is_same_load(&wanted)) {
            if running.is_none() {
                shared.statuses.set(&name, Slot::Loading);
            }
            match load(&shared, &name, &wanted).await {
                Ok(function) => {
                    failures = 0;
                    // The old one goes on with what it has, and takes nothing more.
                    if let Some(old) = running.take() {
                        old.stop.cancel();
                    }
                    running = Some(start(&shared, &name, wanted, function));
                }
                Err(error) => {
                    retry = !matches!(error, LoadError::Invalid(_));
                    failures += 1;
                    report(&shared, &name, &wanted, &error).await;
                }
            }
        }
        let wait = RELOAD.0.saturating_mul(1 << failures.min(6)).min(RELOAD.1);
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

fn start(shared: &Shared, name: &Name, desired: Desired, function: Arc<dyn Function>) -> Running {
    let stop = shared.stops.intake.child_token();
    let runner = Runner::new(shared, name, &desired.entry, function, stop.clone());
    shared.tasks.spawn(runner.run());
    tracing::info!(function = %name, revision = desired.entry.revision, "running");
    Running { desired, stop }
}

async fn load(shared: &Shared, name: &Name, desired: &Desired) -> Result<Arc<dyn Function>, LoadError> {
    let record = &desired.entry.record;
    let secrets = desired.secrets.clone().map_err(|missing| LoadError::Invalid(missing.to_string()))?;
    // Whoever deployed may have had another ack wait; it is this worker that extends.
    let ensured = shared.registry.ensure_consumers(name, record).await;
    ensured.map_err(|error| LoadError::failed("making its consumers", error))?;
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

async fn report(shared: &Shared, name: &Name, desired: &Desired, error: &LoadError) {
    let mut message = format!("revision {} could not be loaded: {error}", desired.entry.revision);
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        message.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    tracing::error!(function = %name, "{message}");
    log::write(shared, &log::record(name, nerve_core::function::LogLevel::Error, message.clone())).await;
    shared.statuses.set(name, Slot::Failed { error: message });
}

//! The state that handlers share.

use crate::{
    OVERLOAD_RETRY_AFTER,
    api::{
        auth::{Access, Caller},
        caller_limits::{CallerLimits, Limited},
        health::Checks,
        inference::Models,
        quotas,
        sse::StreamSlot,
    },
    http::{
        admission::SlotLimiter,
        body::Bodies,
        local_user::Owner,
        metrics,
        problem::{HttpResult, Problem, ProblemType},
    },
    webhooks::{certificates::Certificates, limits::SourceLimits, spool::Spool},
};
use metrics_exporter_prometheus::PrometheusHandle;
use nerve_broker::bus::{Bus, DedupeStore, FastPublisher};
use nerve_config::{GatewayConfig, LocalUsers};
use nerve_registry::Catalogue;
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// The parts of a gateway.
#[derive(Debug)]
pub struct Parts {
    /// The broker.
    pub bus: Bus,
    /// Publishes webhooks in batches.
    pub batches: FastPublisher,
    /// A snapshot of what is deployed, which [`Registry::follow`](nerve_registry::Registry::follow) updates.
    pub catalogue: watch::Receiver<Arc<Catalogue>>,
    /// The settings.
    pub config: GatewayConfig,
    /// Renders `/metrics`; see [`metrics::install`].
    pub metrics: PrometheusHandle,
    /// Dedupe keys of accepted webhooks.
    pub dedupe_store: DedupeStore,
    /// Webhooks on disk.
    pub spool: Spool,
    /// The model runtime, and the source of model files.
    pub models: Models,
    /// Health checks of the worker in this process, if there is one.
    pub checks: Checks,
    /// Ends event streams and stops accepting connections.
    pub shutdown: CancellationToken,
}

/// A gateway; clones share their state.
#[derive(Clone)]
pub struct Gateway {
    handle: Arc<Handle>,
}

/// A gateway on one of its threads: threads that count references to the same object wait for each other's cache lines.
struct Handle {
    shared: Arc<Shared>,
    batches: FastPublisher,
}

pub(crate) struct Shared {
    pub(crate) parts: Parts,
    pub(crate) access: Access,
    pub(crate) callers: CallerLimits,
    pub(crate) rates: quotas::Rates,
    pub(crate) bodies: Bodies,
    pub(crate) certificates: Certificates,
    pub(crate) source_limits: SourceLimits,
    /// Requests in flight.
    pub(crate) requests: SlotLimiter,
    pub(crate) request_metrics: metrics::Requests,
    streams: Arc<Semaphore>,
}

impl Gateway {
    /// A gateway of these parts; [`serve`](crate::serve) serves it.
    pub fn new(parts: Parts) -> Self {
        let requests = SlotLimiter::new("request", parts.config.max_requests);
        let batches = parts.batches.clone();
        let access = Access::new(&parts.config.keys, &parts.config.collection_keys);
        let shared = Shared {
            callers: CallerLimits::new(access.callers().cloned(), &parts.config),
            access,
            rates: quotas::Rates::default(),
            bodies: Bodies::new(requests.clone()),
            certificates: Certificates::default(),
            source_limits: SourceLimits::default(),
            requests,
            request_metrics: metrics::Requests::default(),
            streams: Arc::new(Semaphore::new(parts.config.max_streams)),
            parts,
        };
        Self { handle: Arc::new(Handle { shared: Arc::new(shared), batches }) }
    }

    /// The same gateway with other batches for its webhooks.
    pub(crate) fn with(&self, batches: FastPublisher) -> Self {
        Self { handle: Arc::new(Handle { shared: Arc::clone(&self.handle.shared), batches }) }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    pub(crate) fn bus(&self) -> &Bus {
        &self.shared().parts.bus
    }

    pub(crate) fn batches(&self) -> &FastPublisher {
        &self.handle.batches
    }

    /// A snapshot of what is deployed.
    pub(crate) fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(&self.shared().parts.catalogue.borrow())
    }

    /// Whether access depends on the local user of a connection: there is no API key, and `gateway.local_users` is `own`.
    pub(crate) fn checks_local_user(&self) -> bool {
        if !self.shared().access.is_open() || self.config().local_users == LocalUsers::All {
            return false;
        }
        let is_supported = Owner::is_supported();
        if !is_supported {
            tracing::warn!(
                "this kernel does not report the user of a connection (sock_diag): every user of this machine may use the API; \
                 configure gateway.keys"
            );
        }
        is_supported
    }

    pub(crate) fn config(&self) -> &GatewayConfig {
        &self.shared().parts.config
    }

    pub(crate) fn bodies(&self) -> &Bodies {
        &self.shared().bodies
    }

    pub(crate) fn certificates(&self) -> &Certificates {
        &self.shared().certificates
    }

    pub(crate) fn source_limits(&self) -> &SourceLimits {
        &self.shared().source_limits
    }

    pub(crate) fn dedupe_store(&self) -> &DedupeStore {
        &self.shared().parts.dedupe_store
    }

    pub(crate) fn spool(&self) -> &Spool {
        &self.shared().parts.spool
    }

    pub(crate) fn checks(&self) -> &Checks {
        &self.shared().parts.checks
    }

    pub(crate) fn metrics(&self) -> &PrometheusHandle {
        &self.shared().parts.metrics
    }

    pub(crate) fn shutdown(&self) -> &CancellationToken {
        &self.shared().parts.shutdown
    }

    /// The maximum number of open connections.
    pub(crate) fn max_connections(&self) -> usize {
        self.config().max_requests.saturating_add(self.config().max_streams)
    }

    /// Reserves an event stream of the gateway's and of the caller's.
    ///
    /// # Errors
    /// 429 or 503 if either has reached its limit.
    pub(crate) fn stream_slot(&self, caller: &Caller) -> HttpResult<StreamSlot> {
        let share = self.shared().callers.hold(caller, Limited::Streams)?;
        let permit = Arc::clone(&self.shared().streams).try_acquire_owned();
        let detail = "limit of open event streams reached (gateway.max_streams)";
        permit
            .map(|permit| StreamSlot::new(permit, share))
            .map_err(|_| Problem::retry_after(ProblemType::Overloaded, detail, OVERLOAD_RETRY_AFTER))
    }
}

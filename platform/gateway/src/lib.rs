//! The gateway: HTTP in front of the log.
//!
//! # Layout
//! - `hooks` with `verify`: webhooks, checked against their sender's scheme, become events. `spool`: where they wait while
//!   the broker is away.
//! - `events` with `modes`: CloudEvents in, in any HTTP mode. `publish`: the wait for JetStream's ack.
//! - `tail` with `sse`: the log out, as server-sent events.
//! - `answers`: questions in, answers out while they are made.
//! - `documents`: documents in, and what callers think of answers. `idempotency`: requests with an `Idempotency-Key`.
//! - `traces`: what one event led to.
//! - `functions`: the list, and direct calls.
//! - `inference`: embeddings, relevance and labels, by models.
//! - `health`, `metrics`: for whoever runs it. `repeats`: log lines that strangers can cause.
//! - `access`: who may use the API. `body`: how much they may send. `problem`: how they are told what is wrong.
//! - `serve`: connections, from accept to drain. `lanes`: the threads that they stay on. `surround`: what every request passes. `places`: how many, and who gives
//!   way. `watched`: who waits for whom.
//! - `waiting`: what is answered before the broker is there.
//! - `tls`: the certificate. `forwarded`: who sends, also behind a proxy. `local_user`: which user of this machine does.
//!
//! # Flow
//! accept → TLS → bound the requests in flight → (API: access) → read the body → verify or parse → publish, and wait
//! for the ack → answer. The gateway holds no state of its own but a spool where one is asked for: any number of them
//! serve one cluster.

mod access;
mod answers;
mod body;
mod callers;
mod documents;
mod events;
mod forwarded;
mod functions;
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod hooks;
mod idempotency;
mod inference;
mod lanes;
mod local_user;
pub mod metrics;
mod modes;
mod places;
mod problem;
mod publish;
mod quotas;
mod repeats;
mod serve;
mod spool;
mod sse;
mod surround;
mod tail;
mod tls;
mod traces;
mod waiting;
mod watched;

pub use access::{OpenToAll, check_bind};
pub use health::{Check, Checks};
pub use inference::{Fetch, ModelParts, Models};
pub use lanes::LaneError;
pub use lanes::Lanes;
pub use serve::{Door, serve};
pub use spool::Drain;
pub use spool::{Spool, SpoolError};
pub use tls::Tls;
pub use tls::TlsError;
pub use waiting::answer_while;

use access::{Access, Caller};
use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use body::Bodies;
use callers::Callers;
use forwarded::Origin;
use local_user::Owner;
use metrics_exporter_prometheus::PrometheusHandle;
use nerve_broker::bus::{Batches, Bus, Seen};
use nerve_config::{GatewayConfig, LocalUsers};
use nerve_registry::Catalogue;
use places::Places;
use problem::{Answer, Problem};
use std::{sync::Arc, time::Duration};
use tail::StreamSlot;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// When to come back to a gateway that has its hands full.
const LATER: Duration = Duration::from_secs(1);

/// What a gateway is made of.
#[derive(Debug)]
pub struct Parts {
    /// The broker.
    pub bus: Bus,
    /// What takes webhooks to it.
    pub batches: Batches,
    /// What is deployed, as [`Registry::follow`](nerve_registry::Registry::follow) tells it.
    pub catalogue: watch::Receiver<Arc<Catalogue>>,
    /// The settings.
    pub config: GatewayConfig,
    /// Where `/metrics` reads; see [`metrics::install`].
    pub metrics: PrometheusHandle,
    /// The webhooks that were taken in.
    pub seen: Seen,
    /// The webhooks that wait for the broker.
    pub spool: Spool,
    /// What runs models, and where their files come from.
    pub models: Models,
    /// How the worker in this process is, if there is one.
    pub checks: Checks,
    /// Ends event streams, and what serves connections.
    pub shutdown: CancellationToken,
}

/// A gateway; clones are the same one.
#[derive(Clone)]
pub struct Gateway {
    part: Arc<Part>,
}

/// A gateway as one of its threads has it: cores that count references to the same thing wait for each other.
struct Part {
    shared: Arc<Shared>,
    batches: Batches,
}

struct Shared {
    parts: Parts,
    access: Access,
    callers: Callers,
    rates: quotas::Rates,
    bodies: Bodies,
    certificates: hooks::Certificates,
    guards: hooks::Guards,
    requests: Places,
    requests_timed: metrics::Requests,
    streams: Arc<Semaphore>,
}

impl Gateway {
    /// A gateway of these parts; it serves nothing yet.
    pub fn new(parts: Parts) -> Self {
        let requests = Places::new("request", parts.config.max_requests);
        let batches = parts.batches.clone();
        let access = Access::new(&parts.config.keys, &parts.config.collection_keys);
        let shared = Shared {
            callers: Callers::new(access.callers().cloned(), &parts.config),
            access,
            rates: quotas::Rates::default(),
            bodies: Bodies::new(requests.clone()),
            certificates: hooks::Certificates::default(),
            guards: hooks::Guards::default(),
            requests,
            requests_timed: metrics::Requests::default(),
            streams: Arc::new(Semaphore::new(parts.config.max_streams)),
            parts,
        };
        Self { part: Arc::new(Part { shared: Arc::new(shared), batches }) }
    }

    /// The same gateway, whose webhooks go in these batches.
    fn with(&self, batches: Batches) -> Self {
        Self { part: Arc::new(Part { shared: Arc::clone(&self.part.shared), batches }) }
    }

    /// Every route, with what surrounds it.
    pub fn router(&self) -> Router {
        let api = Router::new()
            .route(events::PATH, get(tail::get).post(events::post))
            .route("/v1/event-types", get(events::types))
            .route("/v1/answers", post(answers::post))
            .route("/v1/answers/{id}", get(answers::get).delete(answers::delete))
            .route("/v1/answers/{id}/retry", post(answers::retry))
            .route("/v1/chat/completions", post(answers::chat::post))
            .route("/v1/documents", post(documents::post))
            .route("/v1/documents/{document}", delete(documents::delete))
            .route("/v1/feedback", post(documents::feedback))
            .route("/v1/functions", get(functions::list))
            .route("/v1/functions/{name}/invoke", post(functions::invoke))
            .route("/v1/embeddings", post(inference::embeddings::post))
            .route("/v1/rerank", post(inference::rerank::post))
            .route("/v1/classify", post(inference::classify::post))
            .route("/v1/traces/{id}", get(traces::get))
            .route("/metrics", get(health::metrics))
            .route_layer(middleware::from_fn_with_state(self.clone(), allowed));
        let routes = Router::new()
            .route("/", get(front))
            .route("/healthz", get(health::live))
            .route("/readyz", get(health::ready))
            .route(hooks::PATH, post(hooks::receive).get(hooks::get).options(hooks::options))
            .merge(api);
        self.surround(routes)
    }

    fn bus(&self) -> &Bus {
        &self.part.shared.parts.bus
    }

    fn batches(&self) -> &Batches {
        &self.part.batches
    }

    /// What is deployed at this moment.
    fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(&self.part.shared.parts.catalogue.borrow())
    }

    /// Whether it matters which user of this machine opened a connection: where no key protects the API.
    fn asks_for_owner(&self) -> bool {
        if !self.part.shared.access.is_open() || self.config().local_users == LocalUsers::All {
            return false;
        }
        let can_be_told = Owner::can_be_told();
        if !can_be_told {
            tracing::warn!(
                "this kernel does not say which user opened a connection (sock_diag): every user of this machine may use the API; \
                 configure gateway.keys"
            );
        }
        can_be_told
    }

    fn config(&self) -> &GatewayConfig {
        &self.part.shared.parts.config
    }

    fn bodies(&self) -> &Bodies {
        &self.part.shared.bodies
    }

    fn certificates(&self) -> &hooks::Certificates {
        &self.part.shared.certificates
    }

    fn guards(&self) -> &hooks::Guards {
        &self.part.shared.guards
    }

    fn seen(&self) -> &Seen {
        &self.part.shared.parts.seen
    }

    fn spool(&self) -> &Spool {
        &self.part.shared.parts.spool
    }

    fn checks(&self) -> &Checks {
        &self.part.shared.parts.checks
    }

    fn metrics(&self) -> &PrometheusHandle {
        &self.part.shared.parts.metrics
    }

    fn shutdown(&self) -> &CancellationToken {
        &self.part.shared.parts.shutdown
    }

    /// Connections that may be open at once.
    fn capacity(&self) -> usize {
        self.config().max_requests.saturating_add(self.config().max_streams)
    }

    /// A place among the streams that may be open at once, and among the caller's.
    fn stream_slot(&self, caller: &Caller) -> Answer<StreamSlot> {
        let share = self.part.shared.callers.hold(caller, callers::Bounded::Streams)?;
        let permit = Arc::clone(&self.part.shared.streams).try_acquire_owned();
        let detail = "too many event streams are open; gateway.max_streams bounds them";
        permit.map(|permit| StreamSlot::new(permit, share)).map_err(|_| Problem::unavailable(detail, LATER))
    }
}

/// Lets a request through to the API, or refuses it.
async fn allowed(State(gateway): State<Gateway>, origin: Origin, mut request: Request, next: Next) -> Response {
    match gateway.part.shared.access.check(request.uri(), request.headers(), &origin) {
        Ok(caller) => {
            let share = match gateway.part.shared.callers.hold(&caller, callers::Bounded::Requests) {
                Ok(share) => share,
                Err(problem) => return problem.into_response(),
            };
            request.extensions_mut().insert(caller);
            let response = next.run(request).await;
            drop(share);
            response
        }
        Err(problem) => problem.into_response(),
    }
}

async fn front() -> &'static str {
    "This is Nerve's gateway.\n\n\
     POST /hooks/{source}   a webhook\n\
     POST /v1/events        CloudEvents in\n\
     GET  /v1/events        the log, as server-sent events\n\
     POST /v1/answers       a question; its answer as server-sent events\n\
     POST /v1/chat/completions   the same, as OpenAI's\n\
     POST /v1/documents     a document to be asked\n\
     POST /v1/feedback      what you think of an answer\n\
     GET  /v1/functions     what is deployed\n\
     POST /v1/embeddings    texts to vectors, as OpenAI's\n\
     POST /v1/rerank        documents by relevance, as Cohere's\n\
     POST /v1/classify      texts or features to labels\n\
     GET  /readyz           whether it can work\n"
}

#[cfg(test)]
mod tests;

//! The gateway: HTTP in front of the event log.
//!
//! # Layout
//! - `routes`: the route table. Each route has its method, path, access, thread and summary. `state`: [`Gateway`], which handlers share.
//! - `http`: from the socket to the handler: accept, threads, admission, middleware, bodies, TLS, problem documents, metrics.
//! - `api`: a file per resource: events, event streams, answers, documents, functions, models, traces, health. `api::auth`: API keys.
//! - `webhooks`: `POST /hooks/{source}`: verify, deduplicate, limit, store. `webhooks::spool`: webhooks on disk while NATS is unavailable.
//! - `publish`: publishes events and waits for JetStream's acknowledgement.
//!
//! # Flow
//! accept → TLS → admission → (API: authentication) → read the body → verify or parse → publish → wait for the acknowledgement → respond.
//! A gateway keeps no state but its spool, so any number of them serve one cluster.

mod api;
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod publish;
mod routes;
mod state;
mod webhooks;

pub use api::{
    auth::{OpenToAll, check_bind},
    health::{Check, Checks},
    inference::{Fetch, ModelParts, Models},
};
pub use http::{
    accept::{Listener, serve},
    metrics,
    startup::respond_while,
    threads::{ConnectionThreads, ThreadError},
    tls::{Tls, TlsError},
};
pub use state::{Gateway, Parts};
pub use webhooks::spool::{Drain, Spool, SpoolError};

use std::time::Duration;

/// `Retry-After` of a request that is refused because the gateway is overloaded.
const OVERLOAD_RETRY_AFTER: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;

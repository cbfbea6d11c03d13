//! HTTP: from the socket to the handler and back.
//!
//! - `accept`: accepts connections, drives them, drains them at shutdown. `threads`: the threads that they stay on. `tls`: certificates.
//! - `admission`: limits connections and requests, and evicts the slowest. `completion`: reports when a body has been received or sent.
//! - `middleware`: what every request passes: page check, admission, metrics, panics.
//! - `forwarded`: the client behind a proxy. `local_user`: the client's user on this machine.
//! - `body`: reads bodies within limits. `problem`: RFC 9457 errors. `metrics`: request metrics. `startup`: responses until NATS is reachable.

pub(crate) mod accept;
pub(crate) mod admission;
pub(crate) mod body;
pub(crate) mod completion;
pub(crate) mod forwarded;
pub(crate) mod local_user;
pub mod metrics;
pub(crate) mod middleware;
pub(crate) mod problem;
pub(crate) mod startup;
pub(crate) mod threads;
pub(crate) mod tls;

//! The bus, the registry, the worker and the gateway: everything that speaks NATS or HTTP, and nothing that
//! runs a guest.
//!
//! # Layout
//! - [`config`]: settings, read and checked before anything binds.
//! - [`bus`]: NATS JetStream; no other module names its types.
//! - [`event_types`]: the types of events that Nerve itself makes and takes, and their schemas.
//! - [`registry`]: what is deployed: manifests, files, secrets.
//! - `worker`: pulls events, runs functions, publishes results, settles; posts to sinks.
//! - `gateway`: HTTP: webhooks in, the API, event streams out.
//! - `pace`: keeps to a rate, for sinks and sources.
//! - `server`: composes them; [`Server::bind`], then [`Server::run`].
//!
//! # Flow
//! ```text
//! request ──> gateway ──publish+ack──> EVENTS ──pull──> worker ──> nerve_core::Function
//!                                        ^                 └── results, published before the ack
//! ```

pub mod bus;
pub mod config;
pub mod event_types;
pub mod gateway;
mod home;
mod pace;
pub mod registry;
mod server;
mod worker;

pub use home::HomeError;
pub use server::{Inherited, Roles, Server, ServerError, listen};
pub use worker::{FunctionStatus, InFlight, InFlightEvent, Runners, SINK_TEMPLATES, Statuses, check_template};

//! NATS: the connection, and events, streams, consumers and buckets on JetStream. No other crate names `async-nats`.
//!
//! It has more than 9,000 lines: what it does cannot be split without naming that client twice.
//!
//! # Layout
//! - [`bus`]: JetStream: publish, pull, acknowledge, trace, dead letters, buckets. [`streams`]: `[streams]`, its settings.
//! - [`settings`]: `[nats]`, as `nerve-server.toml`, the environment and flags give it.
//! - [`servers`]: a list of servers, without the credentials that its URLs carry.
//! - [`connection`]: connects, once or until a server is reachable; says why not.
//! - `report`: what a connection says, in the log and to callers. [`violation`]: what a server refused.
//! - [`version`]: which nats-server is new enough.
//! - [`pin`]: TLS with exactly one certificate.
//! - [`roles`]: who may do what on the nats-server of `nerve up`. [`jwt`]: what says so to that server.
//! - [`join`]: tokens for servers on other machines, and what is exchanged with one.
//!
//! # Flow
//! [`NatsSettings`] are read and checked before anything connects. [`NatsSettings::connect`] is for commands, which fail
//! in seconds; [`NatsSettings::connect_when_reachable`] for servers, which start before their broker. Secrets are read
//! when a connection is made, also after it was lost, so files with new ones need no restart.
//!
//! No secret is in a `Debug`, a `Display` or an error of this crate.

pub mod bus;
pub mod connection;
pub mod join;
pub mod jwt;
pub mod pin;
mod report;
pub mod roles;
pub mod servers;
pub mod settings;
pub mod streams;
pub mod version;
pub mod violation;

pub use connection::{ConnectError, Connection};
pub use servers::{Servers, ServersError};
pub use settings::{NatsSettings, SettingsError};
pub use streams::{EventsFull, StreamsConfig};
pub use version::Version;
pub use violation::Violation;

pub use nkeys::KeyPair;

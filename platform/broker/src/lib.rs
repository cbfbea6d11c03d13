//! NATS: the connection, and events, streams, consumers and buckets on JetStream. No other crate names `async-nats`.
//!
//! It has more than 9,000 lines: splitting it would name that client in two crates.
//!
//! # Layout
//! - [`bus`]: JetStream: publish, pull, acknowledge, trace, dead letters, buckets. [`streams`]: `[streams]`, its settings.
//! - [`settings`]: `[nats]`, from `nerve-server.toml`, the environment and flags.
//! - [`servers`]: the list of servers, without the credentials in its URLs.
//! - [`connection`]: connects, once or with retries; explains failures.
//! - `report`: events of a connection, in the log and through channels. [`violation`]: operations that a server refused.
//! - [`version`]: the oldest supported nats-server.
//! - [`pin`]: TLS pinned to one certificate.
//! - [`roles`]: permissions on the nats-server of `nerve up`. [`jwt`]: the JWTs that grant them.
//! - [`join`]: tokens for servers on other machines, and the join exchange.
//!
//! # Flow
//! [`NatsSettings`] are read and checked before connecting. [`NatsSettings::connect`] is for commands, which fail
//! within seconds; [`NatsSettings::connect_when_reachable`] for servers, which start before their broker. Secrets are read
//! at each connection and reconnection, so replacing their files needs no restart.
//!
//! No `Debug`, `Display` or error of this crate contains a secret.

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

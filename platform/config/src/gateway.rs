//! `[gateway]`.

use super::Keys;
use nerve_core::manifest::Network;
use serde::Deserialize;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Threads that serve connections, at most.
pub(super) const MOST_THREADS: usize = 256;

/// How HTTP is served.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The certificate, and those between it and its root, in PEM; plain HTTP when none.
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// Networks of the proxies whose word counts for where a request comes from.
    pub trusted_proxies: Vec<Network>,
    /// Bearer keys of the API, by name; those without one have an empty name.
    #[serde(deserialize_with = "super::keys::named_or_list")]
    pub keys: Keys,
    /// Which users of this machine may use the API where there is no key.
    pub local_users: LocalUsers,
    /// Keys that see one collection only, by collection.
    #[serde(default, deserialize_with = "super::keys::named")]
    pub collection_keys: Keys,
    /// Largest webhook body, in bytes.
    pub max_hook_body: usize,
    /// Largest API body, in bytes.
    pub max_api_body: usize,
    /// Largest document, in bytes.
    pub max_document: usize,
    /// Threads that serve connections; 0 for half of the cores, but at least one.
    pub threads: usize,
    /// Requests served at once.
    pub max_requests: usize,
    /// Event streams served at once.
    pub max_streams: usize,
    /// Bytes of webhooks that wait on disk while the broker is away.
    pub spool_max_bytes: u64,
    /// The longest that an answer may take.
    #[serde(deserialize_with = "super::duration")]
    pub answer_timeout: Duration,
    /// How long a request is known by its `Idempotency-Key`.
    #[serde(deserialize_with = "super::duration")]
    pub idempotency_window: Duration,
}

/// Users of the machine that the server runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LocalUsers {
    /// The one that the server runs as, and root.
    Own,
    /// All of them.
    All,
}

impl GatewayConfig {
    /// Threads that serve connections, at least one.
    pub fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if self.threads == 0 { cores().div_ceil(2).min(MOST_THREADS) } else { self.threads }
    }
}

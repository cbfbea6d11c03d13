//! `[gateway]`.

use super::Keys;
use nerve_core::manifest::Network;
use serde::Deserialize;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Maximum connection threads.
pub(super) const MAX_THREADS: usize = 256;

/// HTTP settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// The listen address. Port 0 selects a free port.
    pub listen: SocketAddr,
    /// The certificate chain, in PEM. Plain HTTP if `None`.
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// Networks of trusted proxies, whose forwarding headers are used.
    pub trusted_proxies: Vec<Network>,
    /// Bearer keys of the API, by name; unnamed keys have an empty name.
    #[serde(deserialize_with = "super::keys::named_or_list")]
    pub keys: Keys,
    /// Users of this machine that may use the API if no key is configured.
    pub local_users: LocalUsers,
    /// Keys with access to one collection only, by collection.
    #[serde(default, deserialize_with = "super::keys::named")]
    pub collection_keys: Keys,
    /// Maximum bytes of a webhook body.
    pub max_hook_body: usize,
    /// Maximum bytes of an API request body.
    pub max_api_body: usize,
    /// Maximum bytes of a document.
    pub max_document: usize,
    /// Connection threads; 0 for half of the cores, but at least one.
    pub threads: usize,
    /// Maximum concurrent requests.
    pub max_requests: usize,
    /// Maximum concurrent event streams.
    pub max_streams: usize,
    /// Maximum bytes of spooled webhooks on disk.
    pub spool_max_bytes: u64,
    /// Timeout of an answer.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
    pub answer_timeout: Duration,
    /// The period in which a repeated `Idempotency-Key` is recognized.
    #[serde(deserialize_with = "nerve_core::duration::deserialize")]
    pub idempotency_window: Duration,
}

/// Users of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LocalUsers {
    /// The user of the server, and root.
    Own,
    /// All users.
    All,
}

impl GatewayConfig {
    /// Returns the count of connection threads, at least one.
    pub fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if self.threads == 0 { cores().div_ceil(2).min(MAX_THREADS) } else { self.threads }
    }
}

//! HTTP client with timeouts and without redirects.

use std::time::Duration;

/// Timeout of connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Creates a client with this timeout between reads.
///
/// # Errors
/// If TLS cannot be set up.
pub(crate) fn new_client(read_timeout: Duration) -> Result<reqwest::Client, String> {
    // Fails if a provider is already installed, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(read_timeout)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| format!("cannot create an HTTP client: {error}"))
}

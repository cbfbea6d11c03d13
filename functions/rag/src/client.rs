//! Calls out over HTTP, with time bounds and without redirects.

use std::time::Duration;

/// The longest that connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

/// A client whose calls may be silent for as long as `silence`.
pub(crate) fn client(silence: Duration) -> Result<reqwest::Client, String> {
    // Whoever is first installs it; that it is there already is no mistake.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .read_timeout(silence)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| format!("an HTTP client cannot be made: {error}"))
}

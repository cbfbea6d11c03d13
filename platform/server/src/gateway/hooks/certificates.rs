//! Calls out to AWS: certificates, each once, and subscriptions that are confirmed.
//!
//! [`verify`](super::super::verify) has checked that the URLs are AWS' own.

use super::super::{
    problem::{Answer, Problem},
    verify::Certificate,
};
use http::StatusCode;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

/// The longest that a call may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The largest certificate, in bytes.
const LARGEST: usize = 64 << 10;
/// URLs that are remembered: AWS has one certificate a region, and changes it once a year.
const MOST: usize = 128;
/// How long a URL without a certificate is not asked again.
const MISSED: Duration = Duration::from_secs(60);
/// When SNS is to try again.
const LATER: Duration = Duration::from_secs(10);

/// AWS' certificates, by URL.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    client: OnceLock<Option<reqwest::Client>>,
    held: Mutex<BTreeMap<String, Held>>,
    /// Held while one is fetched, so that many deliveries fetch it once.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone)]
enum Held {
    Certificate(Arc<Certificate>),
    Missed(Instant),
}

impl Certificates {
    /// The certificate at this URL; none when there is none.
    pub(crate) async fn get(&self, url: &str) -> Answer<Option<Arc<Certificate>>> {
        if let Some(known) = self.known(url) {
            return Ok(known);
        }
        let _one_at_a_time = self.fetching.lock().await;
        if let Some(known) = self.known(url) {
            return Ok(known);
        }
        let fetched = match self.fetch(url).await {
            Ok(text) => text.and_then(|text| Certificate::from_pem(&text)).map(Arc::new),
            Err(error) => {
                tracing::warn!(url, error, "an SNS certificate cannot be fetched");
                return Err(unreachable());
            }
        };
        self.hold(url, fetched.clone());
        Ok(fetched)
    }

    /// Fetches a URL that confirms a subscription.
    pub(crate) async fn confirm(&self, url: &str) -> Answer<()> {
        match self.fetch(url).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(Problem::new(StatusCode::BAD_GATEWAY, "AWS did not confirm the subscription")),
            Err(error) => {
                tracing::warn!(error, "an SNS subscription cannot be confirmed");
                Err(unreachable())
            }
        }
    }

    /// What is known of this URL already.
    fn known(&self, url: &str) -> Option<Option<Arc<Certificate>>> {
        match self.held.lock().unwrap_or_else(PoisonError::into_inner).get(url)? {
            Held::Certificate(certificate) => Some(Some(Arc::clone(certificate))),
            Held::Missed(at) if at.elapsed() < MISSED => Some(None),
            Held::Missed(_) => None,
        }
    }

    fn hold(&self, url: &str, certificate: Option<Arc<Certificate>>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= MOST {
            // Guesses go first, else anything: what is needed is fetched again.
            held.retain(|_, one| matches!(one, Held::Certificate(_)));
            if held.len() >= MOST {
                held.pop_first();
            }
        }
        held.insert(url.to_owned(), certificate.map_or_else(|| Held::Missed(Instant::now()), Held::Certificate));
    }

    /// The text at a URL; none when it answers anything but success.
    async fn fetch(&self, url: &str) -> Result<Option<String>, String> {
        let client = self.client.get_or_init(client).as_ref().ok_or("an HTTP client cannot be made")?;
        let mut response = client.get(url).send().await.map_err(|error| error.without_url().to_string())?;
        if response.status().is_server_error() {
            return Err(format!("AWS answers {}", response.status()));
        }
        if !response.status().is_success() {
            return Ok(None);
        }
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| error.without_url().to_string())? {
            if text.len() + chunk.len() > LARGEST {
                return Ok(None);
            }
            text.extend_from_slice(&chunk);
        }
        Ok(String::from_utf8(text).ok())
    }
}

fn client() -> Option<reqwest::Client> {
    // Whoever is first installs it; that it is there already is no mistake.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none());
    builder.https_only(true).build().inspect_err(|error| tracing::error!(%error, "no HTTP client")).ok()
}

fn unreachable() -> Problem {
    Problem::unavailable("AWS, which this delivery refers to, cannot be reached; try again", LATER)
}

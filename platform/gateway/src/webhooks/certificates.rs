//! Requests to AWS for Amazon SNS: signing certificates, which are cached, and confirmations of subscriptions.
//!
//! [`nerve_webhooks`] has checked that the URLs are on AWS' hosts. Still any client can send many of them, and a certificate is fetched before a
//! signature can be verified: so the number of deliveries of a source that wait for one is limited, and failures are cached.

use crate::{
    http::problem::{HttpResult, Problem, ProblemType},
    webhooks::log_limit,
};
use nerve_core::Name;
use nerve_webhooks::Certificate;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{sync::Semaphore, time::Instant};

/// Maximum time of a request to AWS.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a certificate, in bytes.
const MAX_CERTIFICATE_BYTES: usize = 64 << 10;
/// Maximum number of cached URLs: AWS has one certificate per region and changes it yearly.
const MAX_URLS: usize = 128;
/// Time that the failure of a URL is cached.
const MISS_TTL: Duration = Duration::from_secs(60);
/// Time that the failure of a host is cached, per source.
const HOST_FAILURE_TTL: Duration = Duration::from_secs(10);
/// Maximum number of cached host failures per source: AWS has one host per region.
const MAX_HOSTS: usize = 64;
/// Maximum number of deliveries per source that wait for a certificate.
const MAX_WAITING: usize = 4;
/// `Retry-After` while AWS cannot be reached.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// AWS' certificates, by URL.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    client: OnceLock<Option<reqwest::Client>>,
    held: Mutex<BTreeMap<String, Held>>,
    sources: Mutex<HashMap<Name, Arc<Fetches>>>,
}

#[derive(Debug, Clone)]
enum Held {
    Certificate(Arc<Certificate>),
    Missed(Instant),
}

/// The requests of one source.
#[derive(Debug)]
struct Fetches {
    waiting: Semaphore,
    /// Hosts that could not be reached, with the time. Locked during a request, so that concurrent deliveries fetch a certificate once.
    hosts: tokio::sync::Mutex<HashMap<String, Instant>>,
}

impl Default for Fetches {
    fn default() -> Self {
        Self { waiting: Semaphore::new(MAX_WAITING), hosts: tokio::sync::Mutex::default() }
    }
}

impl Fetches {
    fn has_failed(hosts: &HashMap<String, Instant>, host: &str) -> bool {
        hosts.get(host).is_some_and(|since| since.elapsed() < HOST_FAILURE_TTL)
    }

    fn record_failure(hosts: &mut HashMap<String, Instant>, host: String) {
        if hosts.len() >= MAX_HOSTS {
            hosts.retain(|_, since| since.elapsed() < HOST_FAILURE_TTL);
        }
        if hosts.len() < MAX_HOSTS {
            hosts.insert(host, Instant::now());
        }
    }
}

impl Certificates {
    /// The certificate at this URL, which a delivery to `source` names; `None` if there is none.
    ///
    /// # Errors
    /// 503 if AWS cannot be reached.
    pub(crate) async fn get(&self, source: &Name, url: &str) -> HttpResult<Option<Arc<Certificate>>> {
        if let Some(known) = self.known(url) {
            return Ok(known);
        }
        let fetches = Arc::clone(self.sources.lock().entry(source.clone()).or_default());
        let Ok(_waiting) = fetches.waiting.try_acquire() else {
            return Err(unavailable("too many deliveries of this source wait for a certificate; retry"));
        };
        let mut hosts = fetches.hosts.lock().await;
        if let Some(known) = self.known(url) {
            return Ok(known);
        }
        let host = host_of(url);
        if Fetches::has_failed(&hosts, &host) {
            return Err(unreachable());
        }
        let fetched = match self.fetch(url).await {
            Ok(text) => text.and_then(|text| Certificate::from_pem(&text)).map(Arc::new),
            Err(error) => {
                Fetches::record_failure(&mut hosts, host);
                if let Some(suppressed) = log_limit::due(source.as_str(), "certificate") {
                    tracing::warn!(%source, url, error, suppressed, "an SNS certificate cannot be fetched");
                }
                return Err(unreachable());
            }
        };
        self.hold(url, fetched.clone());
        Ok(fetched)
    }

    /// Fetches a URL that confirms a subscription.
    pub(crate) async fn confirm(&self, url: &str) -> HttpResult<()> {
        match self.fetch(url).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(Problem::new(ProblemType::UpstreamRefused, "AWS did not confirm the subscription")),
            Err(error) => {
                tracing::warn!(error, "an SNS subscription cannot be confirmed");
                Err(unreachable())
            }
        }
    }

    /// What is known of this URL already.
    fn known(&self, url: &str) -> Option<Option<Arc<Certificate>>> {
        match self.held.lock().get(url)? {
            Held::Certificate(certificate) => Some(Some(Arc::clone(certificate))),
            Held::Missed(at) if at.elapsed() < MISS_TTL => Some(None),
            Held::Missed(_) => None,
        }
    }

    fn hold(&self, url: &str, certificate: Option<Arc<Certificate>>) {
        let mut held = self.held.lock();
        if held.len() >= MAX_URLS {
            // Guesses go first, else anything: what is needed is fetched again.
            held.retain(|_, one| matches!(one, Held::Certificate(_)));
            if held.len() >= MAX_URLS {
                held.pop_first();
            }
        }
        held.insert(url.to_owned(), certificate.map_or_else(|| Held::Missed(Instant::now()), Held::Certificate));
    }

    /// The text at a URL; `None` if the response is not a success.
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
            if text.len() + chunk.len() > MAX_CERTIFICATE_BYTES {
                return Ok(None);
            }
            text.extend_from_slice(&chunk);
        }
        Ok(String::from_utf8(text).ok())
    }
}

fn host_of(url: &str) -> String {
    url.parse::<http::Uri>().ok().and_then(|url| Some(url.host()?.to_ascii_lowercase())).unwrap_or_default()
}

fn builder() -> reqwest::ClientBuilder {
    // The first caller installs it; a second installation is not an error.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).redirect(reqwest::redirect::Policy::none());
    builder.https_only(true)
}

fn client() -> Option<reqwest::Client> {
    builder().build().inspect_err(|error| tracing::error!(%error, "no HTTP client")).ok()
}

fn unreachable() -> Problem {
    unavailable("AWS cannot be reached for the certificate of this delivery; retry")
}

fn unavailable(detail: &str) -> Problem {
    Problem::retry_after(ProblemType::CertificateUnavailable, detail, RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::dns::{Name as Host, Resolve, Resolving};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A resolver that never answers, and counts how often it was asked.
    #[derive(Debug, Clone, Default)]
    struct Silent(Arc<AtomicUsize>);

    impl Resolve for Silent {
        fn resolve(&self, _host: Host) -> Resolving {
            self.0.fetch_add(1, Ordering::Relaxed);
            Box::pin(std::future::pending())
        }
    }

    fn certificates(resolver: &Silent) -> Certificates {
        let client = builder().no_proxy().dns_resolver(resolver.clone()).build().unwrap();
        Certificates { client: OnceLock::from(Some(client)), ..Certificates::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn silent_resolver_holds_few_deliveries_of_a_source_and_is_not_asked_again() {
        let resolver = Silent::default();
        let certificates = certificates(&resolver);
        let (forged, other) = (Name::parse("forged").unwrap(), Name::parse("other").unwrap());
        let url = |n: usize| format!("https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-{n}.pem");
        let began = Instant::now();
        let urls: Vec<String> = (0..64).map(url).collect();
        let at_once = futures::future::join_all(urls.iter().map(|url| async {
            let answer = certificates.get(&forged, url).await;
            assert_eq!(answer.unwrap_err().status(), 503);
            began.elapsed() < REQUEST_TIMEOUT
        }));
        let refused = at_once.await.into_iter().filter(|early| *early).count();
        assert_eq!(refused, 64 - MAX_WAITING, "all others are refused at once");
        assert_eq!(resolver.0.load(Ordering::Relaxed), 1, "the host is remembered");
        assert!(began.elapsed() <= REQUEST_TIMEOUT * 2, "{:?}", began.elapsed());
        // Another source is not held up by it.
        let began = Instant::now();
        assert!(certificates.get(&other, &url(100)).await.is_err());
        assert!(began.elapsed() <= REQUEST_TIMEOUT && resolver.0.load(Ordering::Relaxed) == 2);
        // It is asked again after a while.
        tokio::time::advance(HOST_FAILURE_TTL).await;
        assert!(certificates.get(&forged, &url(1)).await.is_err());
        assert_eq!(resolver.0.load(Ordering::Relaxed), 3);
    }
}

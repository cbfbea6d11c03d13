//! Calls out to AWS: certificates, each once, and subscriptions that are confirmed.
//!
//! [`verify`](nerve_webhooks) has checked that the URLs are AWS' own. Still anybody can post any number of these, and a
//! certificate is fetched before a signature can be checked: so the posts of a source that wait for one are few, and a URL or a
//! host that failed is not asked again for a while.

use super::super::{
    problem::{Answer, Problem},
    repeats,
};
use http::StatusCode;
use nerve_core::Name;
use nerve_webhooks::Certificate;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};
use tokio::{sync::Semaphore, time::Instant};

/// The longest that a call may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The largest certificate, in bytes.
const MAX_CERTIFICATE_BYTES: usize = 64 << 10;
/// URLs that are remembered: AWS has one certificate a region, and changes it once a year.
const MAX_URLS: usize = 128;
/// How long a URL without a certificate is not asked again.
const MISSED: Duration = Duration::from_secs(60);
/// How long a host that cannot be reached is not asked again for a source.
const HOST_AWAY: Duration = Duration::from_secs(10);
/// Hosts that are remembered for a source: AWS has one a region.
const MAX_HOSTS: usize = 64;
/// Deliveries of one source that wait for a certificate, the one that is being fetched among them.
const MAX_WAITING: usize = 4;
/// When SNS is to try again.
const LATER: Duration = Duration::from_secs(10);

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

/// What one source has fetched.
#[derive(Debug)]
struct Fetches {
    waiting: Semaphore,
    /// Held while one is fetched, so that many deliveries fetch it once; the hosts that could not be reached, and when.
    hosts: tokio::sync::Mutex<HashMap<String, Instant>>,
}

impl Default for Fetches {
    fn default() -> Self {
        Self { waiting: Semaphore::new(MAX_WAITING), hosts: tokio::sync::Mutex::default() }
    }
}

impl Fetches {
    fn is_away(hosts: &HashMap<String, Instant>, host: &str) -> bool {
        hosts.get(host).is_some_and(|since| since.elapsed() < HOST_AWAY)
    }

    fn note_away(hosts: &mut HashMap<String, Instant>, host: String) {
        if hosts.len() >= MAX_HOSTS {
            hosts.retain(|_, since| since.elapsed() < HOST_AWAY);
        }
        if hosts.len() < MAX_HOSTS {
            hosts.insert(host, Instant::now());
        }
    }
}

impl Certificates {
    /// The certificate at this URL, which a delivery to `source` names; none when there is none.
    pub(crate) async fn get(&self, source: &Name, url: &str) -> Answer<Option<Arc<Certificate>>> {
        if let Some(known) = self.known(url) {
            return Ok(known);
        }
        let fetches =
            Arc::clone(self.sources.lock().unwrap_or_else(PoisonError::into_inner).entry(source.clone()).or_default());
        let Ok(_waiting) = fetches.waiting.try_acquire() else {
            return Err(Problem::unavailable(
                "other deliveries of this source wait for a certificate; try again",
                LATER,
            ));
        };
        let mut hosts = fetches.hosts.lock().await;
        if let Some(known) = self.known(url) {
            return Ok(known);
        }
        let host = host_of(url);
        if Fetches::is_away(&hosts, &host) {
            return Err(unreachable());
        }
        let fetched = match self.fetch(url).await {
            Ok(text) => text.and_then(|text| Certificate::from_pem(&text)).map(Arc::new),
            Err(error) => {
                Fetches::note_away(&mut hosts, host);
                if let Some(suppressed) = repeats::due(source.as_str(), "certificate") {
                    tracing::warn!(%source, url, error, suppressed, "an SNS certificate cannot be fetched");
                }
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
        if held.len() >= MAX_URLS {
            // Guesses go first, else anything: what is needed is fetched again.
            held.retain(|_, one| matches!(one, Held::Certificate(_)));
            if held.len() >= MAX_URLS {
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
    // Whoever is first installs it; that it is there already is no mistake.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none());
    builder.https_only(true)
}

fn client() -> Option<reqwest::Client> {
    builder().build().inspect_err(|error| tracing::error!(%error, "no HTTP client")).ok()
}

fn unreachable() -> Problem {
    Problem::unavailable("AWS, which this delivery refers to, cannot be reached; try again", LATER)
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
            began.elapsed() < TIMEOUT
        }));
        let refused = at_once.await.into_iter().filter(|early| *early).count();
        assert_eq!(refused, 64 - MAX_WAITING, "all others are refused at once");
        assert_eq!(resolver.0.load(Ordering::Relaxed), 1, "the host is remembered");
        assert!(began.elapsed() <= TIMEOUT * 2, "{:?}", began.elapsed());
        // Another source is not held up by it.
        let began = Instant::now();
        assert!(certificates.get(&other, &url(100)).await.is_err());
        assert!(began.elapsed() <= TIMEOUT && resolver.0.load(Ordering::Relaxed) == 2);
        // It is asked again after a while.
        tokio::time::advance(HOST_AWAY).await;
        assert!(certificates.get(&forged, &url(1)).await.is_err());
        assert_eq!(resolver.0.load(Ordering::Relaxed), 3);
    }
}

//! One endpoint: signs and posts events, and reads the responses.

use super::{
    body::{Composed, Composer},
    egress::{EgressPolicy, EgressResolver},
    signature::Signer,
    template::ComposeError,
    verdict::PostResult,
};
use bytes::Bytes;
use nerve_core::{Event, Secret, SinkSpec, limits};
use reqwest::{
    Client, Response, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
    redirect::Policy,
};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime},
};
use time::OffsetDateTime;

/// Timeout of a connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of an idle connection. A new connection looks its name up again.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum recorded bytes of a response body.
const MAX_RECORDED_BYTES: usize = 1024;
/// Maximum bytes of a response body that are read to check that it is complete.
const MAX_READ_BYTES: usize = 64 * 1024;
const USER_AGENT: &str = concat!("Nerve/", env!("CARGO_PKG_VERSION"), " (webhooks)");

/// An HTTP client for one URL.
pub(super) struct Endpoint {
    client: Client,
    url: Url,
    policy: EgressPolicy,
    signer: Signer,
    composer: Composer,
    headers: HeaderMap,
    timeout: Duration,
}

/// The request for one event, without its signature, which depends on the time.
#[derive(Debug, Clone)]
pub(super) struct Post {
    /// The same at each attempt.
    pub(super) id: String,
    composed: Composed,
}

impl Endpoint {
    /// Creates the endpoint of a sink.
    ///
    /// # Errors
    /// The invalid setting or secret of the sink.
    pub(super) fn new(
        spec: &SinkSpec,
        secrets: &BTreeMap<String, Secret>,
        composer: Composer,
        resolver: EgressResolver,
    ) -> Result<Self, String> {
        let policy = resolver.policy.clone();
        // Fails if it is already installed, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let signing = spec.secrets.iter().filter_map(|name| Some((name.as_str(), secrets.get(name)?)));
        let client = Client::builder()
            .dns_resolver(resolver)
            // A proxy would resolve names without the egress policy.
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .user_agent(USER_AGENT)
            .build()
            .map_err(|error| format!("HTTP client cannot be created: {error}"))?;
        Ok(Self {
            client,
            url: Url::parse(&spec.url).map_err(|error| format!("invalid `url`: {error}"))?,
            policy,
            signer: Signer::new(signing)?,
            composer,
            headers: headers(spec, secrets)?,
            timeout: spec.timeout,
        })
    }

    /// Returns the host of the URL, for messages. The path is not shown, as it may contain a key.
    pub(super) fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    /// Builds the request for `event` with the `webhook-id` `id`.
    pub(super) async fn post_of(&self, event: &Event, id: String) -> Result<Post, ComposeError> {
        Ok(Post { id, composed: self.composer.compose(event).await? })
    }

    /// Posts it once, signed with the current time.
    pub(super) async fn send(&self, post: &Post) -> PostResult {
        match tokio::time::timeout(self.timeout, self.exchange(post)).await {
            Ok(result) => result,
            Err(_) => {
                let error = format!("no response within {:?} (`timeout`)", self.timeout);
                PostResult { timed_out: true, ..failed(None, error) }
            }
        }
    }

    async fn exchange(&self, post: &Post) -> PostResult {
        // The client's resolver is not called for a literal address.
        if let Some(address) = literal_address(&self.url)
            && let Err(blocked) = self.policy.check(address)
        {
            return failed(None, blocked.to_string());
        }
        let Composed { content_type, body } = &post.composed;
        let timestamp = OffsetDateTime::now_utc().unix_timestamp();
        let request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, content_type)
            .header("webhook-id", &post.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", self.signer.sign(&post.id, timestamp, body))
            .headers(self.headers.clone())
            .body(body.clone());
        match request.send().await {
            Ok(response) => read_response(response).await,
            Err(error) => failed(None, error_chain(error)),
        }
    }
}

async fn read_response(mut response: Response) -> PostResult {
    let status = response.status();
    let header = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = header.and_then(|value| limits::retry_after(value, SystemTime::now()));
    let mut body = Vec::new();
    let mut error = match status.as_u16() {
        200..300 => None,
        300..400 => Some(format!("response {status}; redirects are not followed")),
        _ => Some(format!("response {status}")),
    };
    while body.len() < MAX_READ_BYTES {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(chunk.get(..MAX_READ_BYTES.min(chunk.len())).unwrap_or_default()),
            Ok(None) => break,
            Err(broken) => {
                error.get_or_insert_with(|| format!("response body is incomplete: {}", error_chain(broken)));
                break;
            }
        }
    }
    body.truncate(MAX_RECORDED_BYTES);
    let body = String::from_utf8_lossy(&Bytes::from(body)).into_owned();
    PostResult { status: Some(status.as_u16()), retry_after, error, timed_out: false, body }
}

fn failed(status: Option<u16>, error: String) -> PostResult {
    PostResult { status, retry_after: None, error: Some(error), timed_out: false, body: String::new() }
}

/// Formats an error with its causes and without the URL.
fn error_chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !message.contains(&text) {
            message.push_str(&format!(": {text}"));
        }
        cause = inner.source();
    }
    message
}

/// Returns the IP address in a URL, if its host is one.
fn literal_address(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).parse().ok()
}

fn headers(spec: &SinkSpec, secrets: &BTreeMap<String, Secret>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in &spec.headers {
        let wrong = |what: &str| format!("header {name} {what}");
        let mut filled = value.clone();
        for (secret, text) in secrets {
            filled = filled.replace(&format!("${{{secret}}}"), text.expose());
        }
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong("has an invalid name"))?;
        let mut value = HeaderValue::from_str(&filled).map_err(|_| wrong("has an invalid value"))?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::{super::egress::Lookup, *};
    use nerve_core::{EventType, Manifest};
    use std::{
        io,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn endpoint(url: &str, allow: &str, answers: Vec<Vec<IpAddr>>) -> Endpoint {
        let manifest =
            format!("[sink.crm]\nurl = \"{url}\"\non = [\"events.>\"]\nallow = [{allow}]\ntimeout = \"5s\"\n");
        let spec = Manifest::parse(&manifest).unwrap().sinks.into_values().next().unwrap();
        let secrets = spec.secrets.iter().map(|name| (name.clone(), Secret::new(SECRET))).collect();
        let count = AtomicUsize::new(0);
        let lookup: Lookup = Arc::new(move |_| {
            let answer = answers.get(count.fetch_add(1, Ordering::Relaxed)).cloned();
            Box::pin(async move { answer.ok_or_else(|| io::Error::other("unexpected lookup")) })
        });
        let resolver = EgressResolver { policy: EgressPolicy::new(spec.allow.iter().copied()), lookup };
        Endpoint::new(&spec, &secrets, Composer::Standard, resolver).unwrap()
    }

    async fn post(endpoint: &Endpoint) -> PostResult {
        let event = Event::new("1", "/s", EventType::parse("a").unwrap());
        endpoint.send(&endpoint.post_of(&event, "msg_1".to_owned()).await.unwrap()).await
    }

    /// Starts a server that sends `answer` to each connection and counts them.
    async fn server(answer: &'static str) -> (u16, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, count) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
        let counted = count.clone();
        #[expect(clippy::disallowed_methods, reason = "the task ends with the test")]
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
                let mut head = vec![0; 4096];
                tokio::io::AsyncReadExt::read(&mut socket, &mut head).await.unwrap();
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (port, count)
    }

    #[tokio::test]
    async fn rebound_private_address_is_refused_at_the_next_lookup() {
        let (port, count) = server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
        let (allowed, rebound): (IpAddr, IpAddr) = ("127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap());
        let url = format!("http://rebind.example:{port}/");
        let endpoint = endpoint(&url, "\"127.0.0.1\"", vec![vec![allowed], vec![rebound], vec![allowed]]);
        assert_eq!(post(&endpoint).await.body, "ok");
        let refused = post(&endpoint).await;
        assert!(refused.error.as_deref().is_some_and(|why| why.contains("loopback")), "{refused:?}");
        assert!(post(&endpoint).await.is_success());
        assert_eq!(count.load(Ordering::Relaxed), 2, "nothing was sent to the refused address");
    }

    #[tokio::test]
    async fn address_in_a_url_is_checked_in_every_notation() {
        let (port, count) = server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        for host in ["127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "0177.0.0.1", "127.1"] {
            let refused = post(&endpoint(&format!("http://{host}:{port}/"), "", vec![])).await;
            assert!(refused.error.as_deref().is_some_and(|why| why.contains("may not reach")), "{host}: {refused:?}");
        }
        assert_eq!(count.load(Ordering::Relaxed), 0);
        assert!(post(&endpoint(&format!("http://127.1:{port}/"), "\"127.0.0.0/8\"", vec![])).await.is_success());
    }

    #[tokio::test]
    async fn redirect_and_incomplete_response_are_failures() {
        let redirect = "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n";
        let (port, _) = server(redirect).await;
        let url = format!("http://127.0.0.1:{port}/");
        let answer = post(&endpoint(&url, "\"127.0.0.1\"", vec![])).await;
        assert_eq!(answer.status, Some(302));
        assert!(!answer.is_success() && answer.error.unwrap().contains("not followed"));
        let (port, _) = server("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
        let answer = post(&endpoint(&format!("http://127.0.0.1:{port}/"), "\"127.0.0.1\"", vec![])).await;
        assert_eq!((answer.status, answer.body.as_str()), (Some(200), "half"));
        assert!(!answer.is_success() && answer.error.unwrap().contains("incomplete"));
    }
}

//! Connects to NATS, once or with retries until a server is reachable, and explains failures.

use crate::{
    NatsSettings, SettingsError, Version, Violation,
    jwt::parse_credentials,
    pin,
    report::{Reconnects, Redaction, Reporter, Violations, is_refusal},
    settings::{Credentials, read_file},
};
use async_nats::{Auth, AuthError, Client, ConnectErrorKind, ConnectOptions, RequestErrorKind, ServerAddr};
use bytes::Bytes;
use nerve_core::Secret;
use nkeys::KeyPair;
use rustls::InvalidMessage;
use std::{error::Error, io, path::PathBuf, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

/// Timeout of one server connection and of one JetStream request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout per server if several are listed, so that trying the whole list takes seconds.
const LIST_TIMEOUT: Duration = Duration::from_secs(2);
/// Attempts, and the interval between them, to find JetStream behind a server without it.
const JETSTREAM_TRIES: u32 = 4;
const JETSTREAM_INTERVAL: Duration = Duration::from_millis(250);
/// Interval between connection attempts of a server that starts before its broker.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Interval between log lines about a pending wait.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);

/// A connection that reconnects for as long as its client lives.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The client.
    pub client: Client,
    /// The number of connections established so far, starting at 1.
    pub reconnects: watch::Receiver<u64>,
    /// The last operation that the server refused.
    pub violations: watch::Receiver<Option<Violation>>,
}

/// The reason why a connection cannot be established.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No server responds. Retrying can help.
    #[error("NATS at {servers} cannot be reached")]
    Unreachable {
        /// The servers.
        servers: String,
        /// The client's error.
        #[source]
        source: async_nats::Error,
    },
    /// A server rejects the credentials.
    #[error("NATS at {servers} refuses {what}")]
    Refused {
        /// The servers.
        servers: String,
        /// The credentials, without secrets.
        what: String,
        /// The credentials file, if one was presented.
        creds: Option<PathBuf>,
        /// The client's error.
        #[source]
        source: async_nats::Error,
    },
    /// TLS with a server fails, on either side.
    #[error(
        "TLS with NATS at {servers} fails: check nats.tls_ca, nats.tls_client_cert and nats.tls_client_key, and the \
         name in the server's certificate"
    )]
    Tls {
        /// The servers.
        servers: String,
        /// The TLS error.
        #[source]
        source: async_nats::Error,
    },
    /// TLS is required, but the server does not support it.
    #[error("NATS at {servers} does not speak TLS on this port")]
    Plain {
        /// The servers.
        servers: String,
        /// The client's error.
        #[source]
        source: async_nats::Error,
    },
    /// The server has no JetStream.
    #[error("NATS at {servers} runs without JetStream")]
    WithoutJetStream {
        /// The servers.
        servers: String,
    },
    /// The server is too old.
    #[error("nats-server at {servers} is {found}, and at least {} is needed: upgrade it", Version::OLDEST)]
    TooOld {
        /// The servers.
        servers: String,
        /// Its version.
        found: String,
    },
    /// The settings cannot be used.
    #[error("the settings of NATS cannot be used")]
    Settings(#[from] SettingsError),
}

impl ConnectError {
    /// Returns whether retrying can help. Rejections and wrong settings are permanent.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// Limits log lines about a pending wait to one immediately and one every 30 seconds.
#[derive(Debug, Default)]
pub struct Waiting {
    last_logged: Option<Instant>,
}

impl Waiting {
    /// Returns whether a log line is due.
    pub fn is_due(&mut self) -> bool {
        let due = self.last_logged.is_none_or(|last_logged| last_logged.elapsed() >= REPORT_INTERVAL);
        if due {
            self.last_logged = Some(Instant::now());
        }
        due
    }

    /// Returns whether a log line was written.
    pub fn was_logged(&self) -> bool {
        self.last_logged.is_some()
    }
}

impl NatsSettings {
    /// Connects, or fails within seconds. `name` identifies the client in the server's connection list.
    ///
    /// # Errors
    /// If no server is reachable, the server is too old or rejects this client, or the settings are invalid.
    pub async fn connect(&self, name: &str) -> Result<Connection, ConnectError> {
        let (options, reconnects, violations) = self.options(name)?;
        let servers: Result<Vec<ServerAddr>, _> = self.url.urls().iter().cloned().map(ServerAddr::from_url).collect();
        let servers = servers.map_err(|source| self.unreachable(source))?;
        let client = options.connect(servers).await.map_err(|error| self.classified(error))?;
        let info = client.server_info();
        match Version::parse(&info.version) {
            Some(version) if version >= Version::OLDEST => {}
            _ => return Err(ConnectError::TooOld { servers: self.url.to_string(), found: info.version }),
        }
        self.check_jetstream(&client).await?;
        // The `Connected` event arrives after `connect` returns. Wait for it, or it would pass for a reconnect.
        let mut told = reconnects.clone();
        let told = timeout(REQUEST_TIMEOUT, told.wait_for(|count| *count > 0)).await;
        match told {
            Ok(Ok(_)) => Ok(Connection { client, reconnects, violations }),
            Ok(Err(error)) => Err(self.unreachable(error)),
            Err(error) => Err(self.unreachable(error)),
        }
    }

    /// Connects as soon as a server is reachable, and logs what it waits for.
    ///
    /// # Errors
    /// If retrying cannot help: see [`ConnectError::is_transient`].
    pub async fn connect_when_reachable(&self, name: &str) -> Result<Connection, ConnectError> {
        let mut waiting = Waiting::default();
        loop {
            match self.connect(name).await {
                Err(error) if error.is_transient() => {
                    if waiting.is_due() {
                        let cause = error.source().map(ToString::to_string).unwrap_or_default();
                        tracing::warn!(%cause, "waiting for NATS at {}", self.url);
                    }
                }
                done => {
                    if waiting.was_logged() && done.is_ok() {
                        tracing::info!("NATS at {} is reachable", self.url);
                    }
                    return done;
                }
            }
            sleep(RETRY_INTERVAL).await;
        }
    }

    /// Rejects a server without JetStream that knows no other server with it. A cluster that elects its leader has JetStream.
    async fn check_jetstream(&self, client: &Client) -> Result<(), ConnectError> {
        if client.server_info().jetstream || self.domain.is_some() {
            return Ok(());
        }
        // A starting server may accept clients before JetStream is ready.
        for _ in 0..JETSTREAM_TRIES {
            match client.request(format!("{}.INFO", self.api_prefix()), Bytes::new()).await {
                Err(error) if error.kind() == RequestErrorKind::NoResponders => sleep(JETSTREAM_INTERVAL).await,
                _ => return Ok(()),
            }
        }
        Err(ConnectError::WithoutJetStream { servers: self.url.to_string() })
    }

    fn options(&self, name: &str) -> Result<(ConnectOptions, Reconnects, Violations), ConnectError> {
        // The first caller installs the provider; a second installation is no error.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let credentials = self.credentials()?;
        // Read once here, so that a missing secret is reported directly.
        credentials.auth(&[])?;
        let anonymous = matches!(credentials, Credentials::None);
        let (reporter, reconnects, violations) = Reporter::new(credentials.secrets());
        let mut options = if anonymous {
            ConnectOptions::new()
        } else {
            ConnectOptions::with_auth_callback(move |nonce| {
                std::future::ready(credentials.auth(&nonce).map_err(AuthError::new))
            })
        };
        options = options
            .name(name)
            .connection_timeout(if self.url.len() > 1 { LIST_TIMEOUT } else { REQUEST_TIMEOUT })
            .request_timeout(Some(REQUEST_TIMEOUT))
            // The default waits up to 4 s between attempts; a restarted broker should be found immediately.
            .reconnect_delay_callback(|attempts| {
                Duration::from_millis(50).saturating_mul(1 << attempts.min(5)).min(Duration::from_secs(1))
            })
            .event_callback(move |event| {
                reporter.report(&event);
                std::future::ready(())
            });
        if let Some(prefix) = &self.inbox_prefix {
            options = options.custom_inbox_prefix(prefix);
        }
        if self.tls {
            options = options.require_tls(true);
        }
        if self.tls_first {
            options = options.tls_first();
        }
        options = match (&self.pinned, self.pinned_sha256) {
            (Some(cert), _) => options.tls_client_config(pin::client_config(pin::fingerprint(cert)?)?),
            (None, Some(sha256)) => options.tls_client_config(pin::client_config(sha256)?),
            (None, None) => self.with_certificates(options)?,
        };
        Ok((options, reconnects, violations))
    }

    fn with_certificates(&self, mut options: ConnectOptions) -> Result<ConnectOptions, SettingsError> {
        // The client reads the files at each connection; this check reports unreadable ones early.
        let files = [
            ("nats.tls_ca", &self.tls_ca),
            ("nats.tls_client_cert", &self.tls_client_cert),
            ("nats.tls_client_key", &self.tls_client_key),
        ];
        for (key, file) in files {
            file.as_deref().map(|file| pin::check_pem(key, file)).transpose()?;
        }
        if let Some(ca) = &self.tls_ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let Some((cert, key)) = self.tls_client_cert.as_ref().zip(self.tls_client_key.as_ref()) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        Ok(options)
    }

    fn unreachable(&self, source: impl Into<async_nats::Error>) -> ConnectError {
        ConnectError::Unreachable { servers: self.url.to_string(), source: source.into() }
    }

    fn classified(&self, error: async_nats::ConnectError) -> ConnectError {
        let servers = self.url.to_string();
        let is_refused = match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => true,
            ConnectErrorKind::Io => is_refusal(&error.to_string()),
            _ => false,
        };
        let of_tls = tls_error(&error).cloned();
        let is_of_tls = of_tls.is_some() || error.kind() == ConnectErrorKind::Tls;
        let source = self.without_secrets(error);
        match of_tls {
            Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
                ConnectError::Plain { servers, source }
            }
            _ if is_of_tls => ConnectError::Tls { servers, source },
            _ if is_refused => {
                let creds = self.creds.clone().filter(|_| matches!(self.credentials(), Ok(Credentials::Creds(_))));
                ConnectError::Refused { servers, what: self.credentials_kind(), creds, source }
            }
            _ => self.unreachable(source),
        }
    }

    /// The same error, with secrets masked if a server repeats them in its message.
    fn without_secrets(&self, error: async_nats::ConnectError) -> async_nats::Error {
        let redaction = Redaction::new(self.credentials().map(|credentials| credentials.secrets()).unwrap_or_default());
        let mut link: Option<&dyn Error> = Some(&error);
        let mut repeats_secret = false;
        while let Some(error) = link {
            repeats_secret |= redaction.changes(&error.to_string());
            link = error.source();
        }
        match repeats_secret {
            true => redaction.apply(&error.to_string()).into_owned().into(),
            false => error.into(),
        }
    }

    /// The kind of credentials presented to the server.
    fn credentials_kind(&self) -> String {
        match self.credentials() {
            Ok(Credentials::User { .. }) => "this user and password".to_owned(),
            Ok(Credentials::Token(_)) => "this token".to_owned(),
            Ok(Credentials::Nkey(_)) => "this nkey".to_owned(),
            Ok(Credentials::Creds(file)) => format!("the credentials file {}", file.display()),
            Ok(Credentials::None) | Err(_) => "a client without credentials".to_owned(),
        }
    }
}

impl Credentials {
    /// The secrets sent to the server, which must not appear in messages.
    fn secrets(&self) -> Vec<Secret> {
        match self {
            Self::User { password: secret, .. } | Self::Token(secret) => secret.read().into_iter().collect(),
            Self::None | Self::Nkey(_) | Self::Creds(_) => Vec::new(),
        }
    }

    /// The authentication response to a server's nonce.
    fn auth(&self, nonce: &[u8]) -> Result<Auth, SettingsError> {
        let mut auth = Auth::new();
        match self {
            Self::None => {}
            Self::User { user, password } => {
                auth.username = Some(user.clone());
                auth.password = Some(password.read()?.expose().to_owned());
            }
            Self::Token(token) => auth.token = Some(token.read()?.expose().to_owned()),
            Self::Nkey(seed) => {
                let why = "it holds no seed of a user's nkey, which begins with SU";
                let wrong = SettingsError::Invalid { key: seed.key, why };
                let pair = seed.read().map(|seed| KeyPair::from_seed(seed.expose().trim()))?;
                match pair.and_then(|pair| Ok((pair.sign(nonce)?, pair.public_key()))) {
                    Ok((signature, public)) => (auth.signature, auth.nkey) = (Some(signature), Some(public)),
                    Err(_) => return Err(wrong),
                }
            }
            Self::Creds(path) => {
                const KEY: &str = "nats.creds";
                let text = read_file(KEY, path)?;
                let signed =
                    parse_credentials(&text).and_then(|(jwt, seed)| Some((jwt, KeyPair::from_seed(seed).ok()?)));
                let signed = signed.and_then(|(jwt, pair)| Some((jwt, pair.sign(nonce).ok()?)));
                let why = "is no credentials file: it holds a user's JWT and the seed of its nkey, between dashes";
                let (jwt, signature) = signed.ok_or(SettingsError::Content { key: KEY, path: path.clone(), why })?;
                (auth.jwt, auth.signature) = (Some(jwt.to_owned()), Some(signature));
            }
        }
        Ok(auth)
    }
}

/// The rustls error in the chain, if any. I/O errors hide the error that they wrap.
fn tls_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    if let Some(found) = error.downcast_ref() {
        return Some(found);
    }
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    wrapped.and_then(|inner| tls_error(inner)).or_else(|| error.source().and_then(tls_error))
}

#[cfg(test)]
mod tests;

//! Connects to NATS, once or until a server is reachable, and says why not.

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

/// How long one server, and one request to JetStream, may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one server of several may take, so that a list is tried in seconds.
const LIST_TIMEOUT: Duration = Duration::from_secs(2);
/// How often, and how long apart, a server without JetStream is asked whether another one has it.
const JETSTREAM_TRIES: u32 = 4;
const JETSTREAM_INTERVAL: Duration = Duration::from_millis(250);
/// The wait between two tries of a server that starts before its broker.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How often it is said that something is still waited for.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);

/// A connection that goes on reconnecting for as long as its client lives.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The client.
    pub client: Client,
    /// Counts the connections made, from 1 on.
    pub reconnects: watch::Receiver<u64>,
    /// The last act that the server refused.
    pub violations: watch::Receiver<Option<Violation>>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No server answers: one may later.
    #[error("NATS at {servers} cannot be reached")]
    Unreachable {
        /// The servers.
        servers: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// A server refuses the credentials.
    #[error("NATS at {servers} refuses {what}")]
    Refused {
        /// The servers.
        servers: String,
        /// The credentials, without secrets.
        what: String,
        /// The credentials file, if that was shown.
        creds: Option<PathBuf>,
        /// What the client says.
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
        /// What is wrong.
        #[source]
        source: async_nats::Error,
    },
    /// TLS is asked of a server that does not speak it.
    #[error("NATS at {servers} does not speak TLS on this port")]
    Plain {
        /// The servers.
        servers: String,
        /// What the client says.
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
    /// Whether trying again may help: what a server refuses, and what is set wrong, stays so.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// Says once that something is waited for, and then every 30 seconds.
#[derive(Debug, Default)]
pub struct Waiting {
    said: Option<Instant>,
}

impl Waiting {
    /// Whether it is time to say it.
    pub fn is_due(&mut self) -> bool {
        let due = self.said.is_none_or(|said| said.elapsed() >= REPORT_INTERVAL);
        if due {
            self.said = Some(Instant::now());
        }
        due
    }

    /// Whether it was said.
    pub fn was_said(&self) -> bool {
        self.said.is_some()
    }
}

impl NatsSettings {
    /// Connects, or fails within seconds. `name` is what the server lists the client as.
    ///
    /// # Errors
    /// When no server can be reached, the one that was is too old or refuses this client, or the settings are wrong.
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
        // The client tells of its first connection a moment after it has it; told later, it would pass for a new one.
        let mut told = reconnects.clone();
        let told = timeout(REQUEST_TIMEOUT, told.wait_for(|count| *count > 0)).await;
        match told {
            Ok(Ok(_)) => Ok(Connection { client, reconnects, violations }),
            Ok(Err(error)) => Err(self.unreachable(error)),
            Err(error) => Err(self.unreachable(error)),
        }
    }

    /// Connects as soon as a server is reachable, and says in the log what it waits for.
    ///
    /// # Errors
    /// When waiting does not help: see [`ConnectError::is_transient`].
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
                    if waiting.was_said() && done.is_ok() {
                        tracing::info!("NATS at {} is reachable", self.url);
                    }
                    return done;
                }
            }
            sleep(RETRY_INTERVAL).await;
        }
    }

    /// Refuses a server without JetStream that knows of no other one with it. One of a cluster that elects its leader has it.
    async fn check_jetstream(&self, client: &Client) -> Result<(), ConnectError> {
        if client.server_info().jetstream || self.domain.is_some() {
            return Ok(());
        }
        // A server that is just starting may greet clients before it has JetStream.
        for _ in 0..JETSTREAM_TRIES {
            match client.request(format!("{}.INFO", self.api_prefix()), Bytes::new()).await {
                Err(error) if error.kind() == RequestErrorKind::NoResponders => sleep(JETSTREAM_INTERVAL).await,
                _ => return Ok(()),
            }
        }
        Err(ConnectError::WithoutJetStream { servers: self.url.to_string() })
    }

    fn options(&self, name: &str) -> Result<(ConnectOptions, Reconnects, Violations), ConnectError> {
        // Who is first installs it; that it is there already is no mistake.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let credentials = self.credentials()?;
        // Read here once, so that what is missing is said as it is.
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
            // The default gives up to 4 s between attempts; a restarted broker should be found at once.
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
        // The client reads them at each connection; here it is said which cannot be read.
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
                ConnectError::Refused { servers, what: self.shown(), creds, source }
            }
            _ => self.unreachable(source),
        }
    }

    /// The same error; where a server repeats a secret in it, its text with that masked.
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

    /// What the server was shown.
    fn shown(&self) -> String {
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
    /// What a server is sent of them and must not be repeated.
    fn secrets(&self) -> Vec<Secret> {
        match self {
            Self::User { password: secret, .. } | Self::Token(secret) => secret.read().into_iter().collect(),
            Self::None | Self::Nkey(_) | Self::Creds(_) => Vec::new(),
        }
    }

    /// What answers a server that sent this nonce.
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

/// The error of rustls in the chain, if there is one; an I/O error hides what it wraps.
fn tls_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    if let Some(found) = error.downcast_ref() {
        return Some(found);
    }
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    wrapped.and_then(|inner| tls_error(inner)).or_else(|| error.source().and_then(tls_error))
}

#[cfg(test)]
mod tests;

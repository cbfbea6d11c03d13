//! Where the database is, and the connections to it.

use crate::error::IndexError;
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use nerve_core::Secret;
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use std::{fmt, str::FromStr, sync::Arc, time::Duration};
use tokio_postgres::config::{Config, Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The most connections of one worker.
const CONNECTIONS: usize = 8;
/// How long it may take to connect to one host.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a call waits for a connection of the pool, for a new one, and for an old one to prove that it lives.
const WAITS: (Duration, Duration, Duration) =
    (Duration::from_secs(10), Duration::from_secs(10), Duration::from_secs(5));
/// After how long without an answer a connection counts as lost.
const SILENCE: Duration = Duration::from_secs(30);

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A PostgreSQL database, by its URL. Shown, it names hosts and database, and no password.
#[derive(Clone)]
pub struct Database(Config);

impl Database {
    /// Reads `postgres://user:password@host:port/database`, with libpq's parameters.
    ///
    /// The error says what is missing, and shows nothing of the URL: any part of a wrong one may be the password.
    pub fn parse(url: &Secret) -> Result<Self, IndexError> {
        let wrong = |why: &str| {
            IndexError::Invalid(format!(
                "the URL of the index's database {why}: write postgres://user:password@host:5432/database, with what \
                 is not a letter or a digit in user and password percent-encoded"
            ))
        };
        let mut config = Config::from_str(url.expose()).map_err(|_| wrong("cannot be read"))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(wrong("names no host"));
        }
        if config.get_user().is_none_or(str::is_empty) {
            return Err(wrong("names no user"));
        }
        // The rest of a password with an `@` that is not encoded, which would be shown as a host or a database.
        let names = config.get_hosts().iter().map(name_of).chain(config.get_dbname().map(str::to_owned));
        if names.into_iter().any(|name| name.contains('@')) {
            return Err(wrong("has an `@` too many"));
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(SILENCE);
        }
        config.keepalives_idle(SILENCE);
        if config.get_application_name().is_none() {
            config.application_name("nerve");
        }
        Ok(Self(config))
    }

    /// Connections to it, made when they are needed.
    pub(crate) fn pool(&self) -> Result<Pool, Cause> {
        // A connection may have died since it was used last, so each is tried before it is used again.
        let settings = ManagerConfig { recycling_method: RecyclingMethod::Verified };
        let manager = Manager::from_config(self.0.clone(), self.tls()?, settings);
        let pool = Pool::builder(manager).max_size(CONNECTIONS).runtime(Runtime::Tokio1);
        let pool = pool.wait_timeout(Some(WAITS.0)).create_timeout(Some(WAITS.1)).recycle_timeout(Some(WAITS.2));
        Ok(pool.build()?)
    }

    /// TLS, with certificates that this machine trusts.
    fn tls(&self) -> Result<MakeRustlsConnect, Cause> {
        let mut trusted = RootCertStore::empty();
        if self.0.get_ssl_mode() != SslMode::Disable {
            let found = rustls_native_certs::load_native_certs();
            for error in found.errors {
                tracing::warn!(%error, "some certificates of this machine cannot be read");
            }
            trusted.add_parsable_certificates(found.certs);
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions()?.with_root_certificates(trusted);
        Ok(MakeRustlsConnect::new(config.with_no_client_auth()))
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(config) = self;
        let hosts: Vec<String> = config.get_hosts().iter().map(name_of).collect();
        let addresses = config.get_hostaddrs().iter().map(ToString::to_string).collect::<Vec<_>>();
        let hosts = if hosts.is_empty() { addresses } else { hosts };
        write!(f, "postgres://{}/{}", hosts.join(","), config.get_dbname().unwrap_or_default())
    }
}

fn name_of(host: &Host) -> String {
    match host {
        Host::Tcp(name) => name.clone(),
        #[cfg(unix)]
        Host::Unix(folder) => folder.display().to_string(),
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_and_its_password_never_shown() {
        let database = Database::parse(&Secret::new("postgres://nerve:hunter2@db.example.com:5433/docs")).unwrap();
        assert_eq!(database.to_string(), "postgres://db.example.com/docs");
        assert!(!format!("{database:?}").contains("hunter2"), "{database:?}");
        for url in [
            "postgres://nerve:hunter2@db.example.com/docs?hunter2=1",
            "postgres://nerve:hunter2@db.example.com:port/docs",
            "postgres://nerve:p@hunter2@db.example.com/docs",
            "postgres://nerve:p@ss/hunter2@db.example.com/docs",
            "postgres://:hunter2@db.example.com/docs",
            "mysql://nerve:hunter2@db.example.com/docs",
            "postgres:///docs?user=nerve&password=hunter2",
        ] {
            let error = Database::parse(&Secret::new(url)).unwrap_err();
            let said = format!("{error} {error:?}");
            assert!(said.contains("postgres://user:password@host") && !said.contains("hunter2"), "{url}: {said}");
        }
    }
}

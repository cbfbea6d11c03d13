//! URL of the database, and connections to it.

use crate::error::IndexError;
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use nerve_core::Secret;
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use std::{fmt, str::FromStr, sync::Arc, time::Duration};
use tokio_postgres::config::{Config, Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Maximum number of connections per worker.
const MAX_CONNECTIONS: usize = 8;
/// Timeout of connecting to one host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of waiting for a free connection.
const POOL_WAIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of opening a new connection.
const POOL_CREATE_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of verifying an idle connection.
const POOL_RECYCLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time without a response after which a connection is considered lost.
const CONNECTION_LOSS_TIMEOUT: Duration = Duration::from_secs(30);

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Connection settings of a PostgreSQL database. Formatted, it shows hosts and database, but no password.
#[derive(Clone)]
pub struct Database(Config);

impl Database {
    /// Parses `postgres://user:password@host:port/database`, with libpq's parameters.
    ///
    /// # Errors
    /// Names what is missing, without any part of the URL, because each part of a malformed URL may be the password.
    pub fn parse(url: &Secret) -> Result<Self, IndexError> {
        let wrong = |why: &str| {
            IndexError::Invalid(format!(
                "the index database URL (`rag.postgres`) {why}: use postgres://user:password@host:5432/database, with special \
                 characters in user and password percent-encoded"
            ))
        };
        let mut config = Config::from_str(url.expose()).map_err(|_| wrong("is malformed"))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(wrong("has no host"));
        }
        if config.get_user().is_none_or(str::is_empty) {
            return Err(wrong("has no user"));
        }
        // A password with an unencoded `@` would appear as part of a host or database name.
        let names = config.get_hosts().iter().map(host_name).chain(config.get_dbname().map(str::to_owned));
        if names.into_iter().any(|name| name.contains('@')) {
            return Err(wrong("has an unencoded `@`"));
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(CONNECTION_LOSS_TIMEOUT);
        }
        config.keepalives_idle(CONNECTION_LOSS_TIMEOUT);
        if config.get_application_name().is_none() {
            config.application_name("nerve");
        }
        Ok(Self(config))
    }

    /// A pool of connections, opened on demand.
    pub(crate) fn pool(&self) -> Result<Pool, Cause> {
        // An idle connection may have died, so each is verified before reuse.
        let settings = ManagerConfig { recycling_method: RecyclingMethod::Verified };
        let manager = Manager::from_config(self.0.clone(), self.tls()?, settings);
        let pool = Pool::builder(manager).max_size(MAX_CONNECTIONS).runtime(Runtime::Tokio1);
        let pool = pool
            .wait_timeout(Some(POOL_WAIT_TIMEOUT))
            .create_timeout(Some(POOL_CREATE_TIMEOUT))
            .recycle_timeout(Some(POOL_RECYCLE_TIMEOUT));
        Ok(pool.build()?)
    }

    /// TLS with the certificates of the operating system.
    fn tls(&self) -> Result<MakeRustlsConnect, Cause> {
        let mut trusted = RootCertStore::empty();
        if self.0.get_ssl_mode() != SslMode::Disable {
            let found = rustls_native_certs::load_native_certs();
            for error in found.errors {
                tracing::warn!(%error, "some system certificates cannot be read");
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
        let hosts: Vec<String> = config.get_hosts().iter().map(host_name).collect();
        let addresses = config.get_hostaddrs().iter().map(ToString::to_string).collect::<Vec<_>>();
        let hosts = if hosts.is_empty() { addresses } else { hosts };
        write!(f, "postgres://{}/{}", hosts.join(","), config.get_dbname().unwrap_or_default())
    }
}

fn host_name(host: &Host) -> String {
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
    fn database_url_errors_never_show_the_password() {
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
            let error_text = format!("{error} {error:?}");
            assert!(
                error_text.contains("postgres://user:password@host") && !error_text.contains("hunter2"),
                "{url}: {error_text}"
            );
        }
    }
}

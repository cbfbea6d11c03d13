//! Where a NATS server is, and what it wants to be shown.

use std::path::{Path, PathBuf};

/// A NATS server that a client of the tests can reach.
pub trait Broker {
    /// Its URL.
    fn url(&self) -> &str;

    /// The credentials file that it asks for, if it does.
    fn credentials(&self) -> Option<&Path>;
}

impl Broker for str {
    fn url(&self) -> &str {
        self
    }

    fn credentials(&self) -> Option<&Path> {
        None
    }
}

impl Broker for String {
    fn url(&self) -> &str {
        self
    }

    fn credentials(&self) -> Option<&Path> {
        None
    }
}

/// The broker of a `nerve up`, as its ready line says.
#[derive(Debug, Clone)]
pub struct OfNerve {
    /// Its URL.
    pub url: String,
    /// The operator's credentials file; `None` for a server that `nerve up` did not start.
    pub credentials: Option<PathBuf>,
}

impl Broker for OfNerve {
    fn url(&self) -> &str {
        &self.url
    }

    fn credentials(&self) -> Option<&Path> {
        self.credentials.as_deref()
    }
}

/// A client with these credentials.
pub async fn client<B: Broker + ?Sized>(broker: &B) -> Result<async_nats::Client, String> {
    let options = match broker.credentials() {
        Some(file) => async_nats::ConnectOptions::with_credentials_file(file).await.map_err(|e| e.to_string())?,
        None => async_nats::ConnectOptions::new(),
    };
    options.connect(broker.url()).await.map_err(|error| error.to_string())
}

//! Errors of the broker, and how to attach an operation to one.

use super::FullBucket;
use crate::ConnectError;

/// An error of the broker, classified by what the caller must do.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The broker cannot be reached or does not answer: retry later.
    #[error("{what}: NATS is not available")]
    Unavailable {
        /// The operation that failed.
        what: String,
        /// The client's error.
        #[source]
        source: async_nats::Error,
    },
    /// The broker refused the request: the request itself must change.
    #[error("{what}: {why}")]
    Refused {
        /// The operation that failed.
        what: String,
        /// The broker's reason.
        why: String,
    },
    /// A bucket is full.
    #[error("{what}: {full}")]
    Full {
        /// The operation that failed.
        what: String,
        /// The bucket.
        full: FullBucket,
    },
    /// The requested object does not exist.
    #[error("{0} does not exist")]
    NotFound(String),
    /// The connection cannot be established.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

impl BusError {
    /// A [`BusError::Unavailable`] of the operation `what`.
    pub fn unavailable(what: impl Into<String>, source: impl Into<async_nats::Error>) -> Self {
        Self::Unavailable { what: what.into(), source: source.into() }
    }

    /// A [`BusError::Refused`] of the operation `what`.
    pub fn refused(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Refused { what: what.into(), why: why.to_string() }
    }
}

/// The name of an operation: text, or a closure that formats it only for an error.
pub(super) trait Operation {
    fn describe(self) -> String;
}

impl Operation for &str {
    fn describe(self) -> String {
        self.to_owned()
    }
}

impl<F: FnOnce() -> String> Operation for F {
    fn describe(self) -> String {
        self()
    }
}

/// Attaches the failed operation to an error.
pub(super) trait ResultExt<T, E>: Sized {
    /// Maps an error to [`BusError::Unavailable`].
    fn unavailable(self, what: impl Operation) -> Result<T, BusError>
    where
        E: Into<async_nats::Error>;

    /// Maps an error to [`BusError::Refused`].
    fn refused(self, what: impl Operation) -> Result<T, BusError>
    where
        E: std::fmt::Display;
}

impl<T, E> ResultExt<T, E> for Result<T, E> {
    fn unavailable(self, what: impl Operation) -> Result<T, BusError>
    where
        E: Into<async_nats::Error>,
    {
        self.map_err(|error| BusError::unavailable(what.describe(), error))
    }

    fn refused(self, what: impl Operation) -> Result<T, BusError>
    where
        E: std::fmt::Display,
    {
        self.map_err(|error| BusError::refused(what.describe(), error))
    }
}

//! Errors of the index.

use nerve_core::quota::QuotaExceeded;

/// Why an operation of the index failed.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The request can never succeed on this index.
    #[error("{0}")]
    Invalid(String),
    /// The database is temporarily unavailable; a retry may succeed.
    #[error("index database unavailable while {operation}")]
    Unavailable {
        /// The operation.
        operation: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A document exceeds a quota of its collection.
    #[error("{0}")]
    QuotaExceeded(QuotaExceeded),
    /// A file cannot be read or written, or the database rejects the operation.
    #[error("index error while {operation}")]
    Failed {
        /// The operation.
        operation: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl IndexError {
    pub(crate) fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        operation: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Failed { operation, source: source.into() }
    }
}

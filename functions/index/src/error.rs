//! Why the index cannot do something.

use nerve_core::quota::QuotaExceeded;

/// Why the index cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The request can never succeed on this index.
    #[error("{0}")]
    Invalid(String),
    /// Its database cannot be reached, or cannot do it now: the same may succeed later.
    #[error("the index's database is not available, while {what}")]
    Unavailable {
        /// What was being done.
        what: &'static str,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A document is over a quota of its collection.
    #[error("{0}")]
    QuotaExceeded(QuotaExceeded),
    /// A file cannot be read or written, or the database refuses.
    #[error("the index failed while {what}")]
    Failed {
        /// What was being done.
        what: &'static str,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl IndexError {
    pub(crate) fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        what: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Failed { what, source: source.into() }
    }
}

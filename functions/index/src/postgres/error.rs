//! Classification of database errors.

use crate::error::IndexError;
use deadpool_postgres::PoolError;
use std::{error::Error as _, io};
use tokio_postgres::Error;

/// SQLSTATE classes of transient errors: connections, transactions, rollbacks (including deadlocks), resources, locks,
/// operator intervention and system errors.
const TRANSIENT_CLASSES: [&str; 7] = ["08", "25", "40", "53", "55", "57", "58"];
/// SQLSTATE classes of invalid values: data errors and program limits.
const INVALID_VALUE_CLASSES: [&str; 2] = ["22", "54"];

/// Converts the error of a statement that was `what`.
pub(crate) fn failed(operation: &'static str) -> impl FnOnce(Error) -> IndexError {
    move |error| {
        let Some(database) = error.as_db_error() else {
            let source = error.source().is_some_and(|source| source.is::<io::Error>());
            return if source || error.is_closed() {
                IndexError::Unavailable { operation, source: error.into() }
            } else {
                IndexError::Failed { operation, source: error.into() }
            };
        };
        let class = database.code().code().get(..2).unwrap_or_default();
        if INVALID_VALUE_CLASSES.contains(&class) {
            let detail = database.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
            IndexError::Invalid(format!(
                "PostgreSQL rejected the values while {operation}: {}{detail}",
                database.message()
            ))
        } else if TRANSIENT_CLASSES.contains(&class) {
            IndexError::Unavailable { operation, source: error.into() }
        } else {
            IndexError::Failed { operation, source: error.into() }
        }
    }
}

/// Converts the error of getting a connection for `what`.
pub(crate) fn connection_failed(operation: &'static str) -> impl FnOnce(PoolError) -> IndexError {
    move |error| match error {
        PoolError::Backend(error) => failed(operation)(error),
        other => IndexError::Unavailable { operation, source: other.into() },
    }
}

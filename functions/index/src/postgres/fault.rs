//! Whose fault an error of the database is.

use crate::error::IndexError;
use deadpool_postgres::PoolError;
use std::{error::Error as _, io};
use tokio_postgres::Error;

/// Classes of SQLSTATE that pass: connections, transactions, rollbacks (deadlocks too), resources, locks, operators
/// and the system under the server.
const PASSING: [&str; 7] = ["08", "25", "40", "53", "55", "57", "58"];
/// Classes of SQLSTATE that are about the values: data, and limits of the server's.
const ABOUT_VALUES: [&str; 2] = ["22", "54"];

/// What an error of a statement is, while doing `what`.
pub(crate) fn failed(what: &'static str) -> impl FnOnce(Error) -> IndexError {
    move |error| {
        let Some(database) = error.as_db_error() else {
            let source = error.source().is_some_and(|source| source.is::<io::Error>());
            return if source || error.is_closed() {
                IndexError::Unavailable { what, source: error.into() }
            } else {
                IndexError::Failed { what, source: error.into() }
            };
        };
        let class = database.code().code().get(..2).unwrap_or_default();
        if ABOUT_VALUES.contains(&class) {
            let detail = database.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
            IndexError::Invalid(format!("PostgreSQL cannot take it, while {what}: {}{detail}", database.message()))
        } else if PASSING.contains(&class) {
            IndexError::Unavailable { what, source: error.into() }
        } else {
            IndexError::Failed { what, source: error.into() }
        }
    }
}

/// What it is that no connection could be had, while doing `what`.
pub(crate) fn unreached(what: &'static str) -> impl FnOnce(PoolError) -> IndexError {
    move |error| match error {
        PoolError::Backend(error) => failed(what)(error),
        other => IndexError::Unavailable { what, source: other.into() },
    }
}

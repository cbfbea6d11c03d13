//! The index in PostgreSQL with pgvector, shared by any number of workers.
//!
//! # Layout
//! - `database`: URL and connections.
//! - `schema`: the tables, in the schema `nerve`; created and migrated when the index is opened.
//! - `apply`: batches of changes, each in one transaction.
//! - `erase`: deletion of a tenant's documents.
//! - `search`: lexical (GIN) and dense (HNSW) candidates with filters.
//! - `tsvector`: texts as `tsvector`, by the analyzer of the embedded index.
//! - `error`: classification of database errors.
//!
//! The process keeps no state but connections, so a change by one worker is visible to all.

mod apply;
mod database;
mod erase;
mod error;
mod schema;
mod search;
#[cfg(test)]
mod tests;
mod tsvector;

pub use database::Database;

use crate::{
    change::{Change, ChangeResult},
    error::IndexError,
    query::Query,
};
use deadpool_postgres::{Object, Pool, Transaction};
use error::{connection_failed, failed};
use nerve_core::quota::Quotas;
use nerve_events::retrieval::Hit;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_postgres::IsolationLevel;

/// Timeout of one statement of a search.
const SEARCH_STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of one statement of a change.
const WRITE_STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout of a search, including every wait.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of a batch of changes, including every wait.
const WRITE_TIMEOUT: Duration = Duration::from_secs(300);

/// The index in a database.
pub(crate) struct Postgres {
    pool: Pool,
    runtime: Handle,
    dimensions: usize,
    extension: schema::Extension,
}

impl Postgres {
    /// Connects, creates or migrates the tables, and checks that they were built with this model.
    pub(crate) fn connect(database: &Database, model: &str, dimensions: usize) -> Result<Self, IndexError> {
        let operation = "connecting to the database";
        let runtime = Handle::try_current().map_err(IndexError::failed(operation))?;
        let pool = database.pool().map_err(IndexError::failed(operation))?;
        let extension = wait(&runtime, WRITE_TIMEOUT, "creating tables", async {
            let mut client = pool.get().await.map_err(connection_failed(operation))?;
            schema::prepare(&mut client, model, dimensions).await
        })?;
        Ok(Self { pool, runtime, dimensions, extension })
    }

    pub(crate) fn dimensions(&self) -> usize {
        self.dimensions
    }

    pub(crate) fn apply(&self, changes: &[Change], quotas: &Quotas) -> Result<Vec<ChangeResult>, IndexError> {
        let operation = "writing documents";
        apply::check(changes, self.dimensions)?;
        wait(&self.runtime, WRITE_TIMEOUT, operation, async {
            let mut client = self.client().await?;
            let transaction = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start();
            let transaction = transaction.await.map_err(failed(operation))?;
            self.configure(&transaction, WRITE_STATEMENT_TIMEOUT, "").await?;
            let applied = apply::apply(&transaction, changes, quotas).await?;
            transaction.commit().await.map_err(failed(operation))?;
            Ok(applied)
        })
    }

    pub(crate) fn search(&self, query: &Query) -> Result<Vec<Hit>, IndexError> {
        wait(&self.runtime, SEARCH_TIMEOUT, "searching", async {
            let mut client = self.client().await?;
            // One snapshot for all statements: a document that is replaced concurrently is found in its old version.
            let transaction = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
            let transaction = transaction.read_only(true).start().await.map_err(failed("searching"))?;
            let iterative =
                if self.extension.iterative_scans { "set local hnsw.iterative_scan = strict_order" } else { "" };
            self.configure(&transaction, SEARCH_STATEMENT_TIMEOUT, iterative).await?;
            let hits = search::search(&transaction, query, self.extension.iterative_scans).await?;
            transaction.rollback().await.map_err(failed("searching"))?;
            Ok(hits)
        })
    }

    pub(crate) fn collection_usage(&self, collection: &str) -> Result<(u64, u64), IndexError> {
        let operation = "counting documents";
        wait(&self.runtime, SEARCH_TIMEOUT, operation, async {
            let mut client = self.client().await?;
            let transaction = client.transaction().await.map_err(failed(operation))?;
            self.configure(&transaction, SEARCH_STATEMENT_TIMEOUT, "").await?;
            apply::usage_without(&transaction, collection, None).await
        })
    }

    pub(crate) fn len(&self) -> Result<usize, IndexError> {
        let operation = "counting chunks";
        wait(&self.runtime, SEARCH_TIMEOUT, operation, async {
            let row = self.client().await?.query_one("select count(*) from nerve.chunks", &[]).await;
            let count: i64 = row.and_then(|row| row.try_get(0)).map_err(failed(operation))?;
            Ok(usize::try_from(count).unwrap_or_default())
        })
    }

    async fn client(&self) -> Result<Object, IndexError> {
        self.pool.get().await.map_err(connection_failed("connecting to the database"))
    }

    /// Applies the settings of a transaction, so that a connection pooler may share connections between transactions.
    async fn configure(&self, transaction: &Transaction<'_>, timeout: Duration, more: &str) -> Result<(), IndexError> {
        // A generic plan would fit no query, so every statement is planned for its own tokens, vector and filter.
        let settings = format!(
            "set local search_path = nerve, {}; set local statement_timeout = {}; set local jit = off;
             set local plan_cache_mode = force_custom_plan; {more}",
            self.extension.schema,
            timeout.as_millis()
        );
        transaction.batch_execute(&settings).await.map_err(failed("starting a transaction"))
    }
}

/// Runs `work` on `runtime` with a timeout.
fn wait<T>(
    runtime: &Handle,
    timeout: Duration,
    operation: &'static str,
    work: impl Future<Output = Result<T, IndexError>>,
) -> Result<T, IndexError> {
    runtime.block_on(async {
        let ended = tokio::time::timeout(timeout, work).await;
        ended.unwrap_or_else(|late| Err(IndexError::Unavailable { operation, source: late.into() }))
    })
}

//! The index in PostgreSQL with pgvector: any number of workers share it.
//!
//! # Layout
//! - `database`: where it is, and the connections to it.
//! - `schema`: its tables, in the schema `nerve`: made and brought up to date when the index is opened.
//! - `apply`: changes, a batch in one transaction.
//! - `erase`: the documents of a tenant.
//! - `search`: candidates by words (GIN) and by meaning (HNSW), and what a filter lets through.
//! - `words`: texts as PostgreSQL's `tsvector`, by the analyser of the embedded index.
//! - `fault`: whose fault an error of the database is.
//!
//! Nothing is kept in this process but connections, so what one worker applied every other one finds.

mod apply;
mod database;
mod erase;
mod fault;
mod schema;
mod search;
#[cfg(test)]
mod tests;
mod words;

pub use database::Database;

use crate::{
    change::{Applied, Change},
    error::IndexError,
    query::{Hit, Query},
};
use deadpool_postgres::{Object, Pool, Transaction};
use fault::{failed, unreached};
use nerve_core::quota::Quotas;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_postgres::IsolationLevel;

/// How long the server may take for one statement of a search, and of a change.
const STATEMENT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// How long all of a search may take, and all of a batch of changes, in which every wait has an end.
const WHOLE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(300));

/// The index in a database.
pub(crate) struct Postgres {
    pool: Pool,
    runtime: Handle,
    dimensions: usize,
    extension: schema::Extension,
}

impl Postgres {
    /// Connects, and makes the tables or checks that they are for this model.
    pub(crate) fn connect(database: &Database, model: &str, dimensions: usize) -> Result<Self, IndexError> {
        let what = "connecting to its database";
        let runtime = Handle::try_current().map_err(IndexError::failed(what))?;
        let pool = database.pool().map_err(IndexError::failed(what))?;
        let extension = wait(&runtime, WHOLE.1, "making its tables", async {
            let mut client = pool.get().await.map_err(unreached(what))?;
            schema::prepare(&mut client, model, dimensions).await
        })?;
        Ok(Self { pool, runtime, dimensions, extension })
    }

    pub(crate) fn dimensions(&self) -> usize {
        self.dimensions
    }

    pub(crate) fn apply(&self, changes: &[Change], quotas: &Quotas) -> Result<Vec<Applied>, IndexError> {
        let what = "writing documents";
        apply::check(changes, self.dimensions)?;
        wait(&self.runtime, WHOLE.1, what, async {
            let mut client = self.client().await?;
            let transaction = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start();
            let transaction = transaction.await.map_err(failed(what))?;
            self.set_up(&transaction, STATEMENT.1, "").await?;
            let applied = apply::apply(&transaction, changes, quotas).await?;
            transaction.commit().await.map_err(failed(what))?;
            Ok(applied)
        })
    }

    pub(crate) fn search(&self, query: &Query) -> Result<Vec<Hit>, IndexError> {
        wait(&self.runtime, WHOLE.0, "searching", async {
            let mut client = self.client().await?;
            // One snapshot for every statement: a document that is replaced meanwhile is found as it was.
            let transaction = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
            let transaction = transaction.read_only(true).start().await.map_err(failed("searching"))?;
            let iterative = if self.extension.scans_on { "set local hnsw.iterative_scan = strict_order" } else { "" };
            self.set_up(&transaction, STATEMENT.0, iterative).await?;
            let hits = search::search(&transaction, query, self.extension.scans_on).await?;
            transaction.rollback().await.map_err(failed("searching"))?;
            Ok(hits)
        })
    }

    pub(crate) fn held_of(&self, collection: &str) -> Result<(u64, u64), IndexError> {
        let what = "counting documents";
        wait(&self.runtime, WHOLE.0, what, async {
            let mut client = self.client().await?;
            let transaction = client.transaction().await.map_err(failed(what))?;
            self.set_up(&transaction, STATEMENT.0, "").await?;
            apply::held_beside(&transaction, collection, None).await
        })
    }

    pub(crate) fn len(&self) -> Result<usize, IndexError> {
        let what = "counting chunks";
        wait(&self.runtime, WHOLE.0, what, async {
            let row = self.client().await?.query_one("select count(*) from nerve.chunks", &[]).await;
            let count: i64 = row.and_then(|row| row.try_get(0)).map_err(failed(what))?;
            Ok(usize::try_from(count).unwrap_or_default())
        })
    }

    async fn client(&self) -> Result<Object, IndexError> {
        self.pool.get().await.map_err(unreached("connecting to its database"))
    }

    /// What holds until the end of a transaction, so that a pooler between here and the server may share connections.
    async fn set_up(&self, transaction: &Transaction<'_>, longest: Duration, more: &str) -> Result<(), IndexError> {
        // Every statement is planned for its own words, vector and filter: a plan for any of them fits none.
        let settings = format!(
            "set local search_path = nerve, {}; set local statement_timeout = {}; set local jit = off;
             set local plan_cache_mode = force_custom_plan; {more}",
            self.extension.schema,
            longest.as_millis()
        );
        transaction.batch_execute(&settings).await.map_err(failed("beginning a transaction"))
    }
}

/// Waits for `work` on `runtime`, and no longer than `longest`.
fn wait<T>(
    runtime: &Handle,
    longest: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, IndexError>>,
) -> Result<T, IndexError> {
    runtime.block_on(async {
        let ended = tokio::time::timeout(longest, work).await;
        ended.unwrap_or_else(|late| Err(IndexError::Unavailable { what, source: late.into() }))
    })
}

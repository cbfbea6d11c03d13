//! The documents of a tenant, counted and deleted.

use super::{Postgres, STATEMENT, WHOLE, fault::failed, wait};
use crate::{
    collections::{ErasedDocuments, TenantCollections},
    error::IndexError,
};
use deadpool_postgres::Transaction;
use std::time::Duration;

/// The condition on `documents` that they are a tenant's.
const OF_TENANT: &str = "(collection = $1 or starts_with(collection, $2))";
/// How long the server may take to vacuum the tables.
const VACUUM_TIMEOUT: Duration = Duration::from_secs(600);

impl Postgres {
    /// Counts the documents of a tenant.
    pub(crate) fn count_of(&self, tenant: &TenantCollections) -> Result<ErasedDocuments, IndexError> {
        let what = "counting documents";
        wait(&self.runtime, WHOLE.0, what, async {
            let mut client = self.client().await?;
            let transaction = client.transaction().await.map_err(failed(what))?;
            self.set_up(&transaction, STATEMENT.0, "").await?;
            count(&transaction, tenant).await
        })
    }

    /// Deletes the documents of a tenant, and has the server overwrite what deletions leave.
    pub(crate) fn erase(&self, tenant: &TenantCollections) -> Result<ErasedDocuments, IndexError> {
        let what = "erasing documents";
        let erased = wait(&self.runtime, WHOLE.1, what, async {
            let mut client = self.client().await?;
            let transaction = client.transaction().await.map_err(failed(what))?;
            self.set_up(&transaction, STATEMENT.1, "").await?;
            // Before they are counted: no worker changes them meanwhile.
            let lock = format!("select from documents where {OF_TENANT} order by collection, document for update");
            let names: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
                [&tenant.collection(), &tenant.conversations()];
            transaction.execute(&lock, &names).await.map_err(failed(what))?;
            let erased = count(&transaction, tenant).await?;
            // Vectors go with their chunks.
            let chunks = format!("delete from chunks using documents where documents.id = owner and {OF_TENANT}");
            transaction.execute(&chunks, &names).await.map_err(failed(what))?;
            transaction
                .execute(&format!("delete from documents where {OF_TENANT}"), &names)
                .await
                .map_err(failed(what))?;
            transaction.commit().await.map_err(failed(what))?;
            Ok(erased)
        })?;
        // Each time: an erasure that was cut off before this is completed by the next one.
        wait(&self.runtime, VACUUM_TIMEOUT, "vacuuming its tables", self.vacuum())?;
        Ok(erased)
    }

    async fn vacuum(&self) -> Result<(), IndexError> {
        let client = self.client().await?;
        for table in ["nerve.vectors", "nerve.chunks", "nerve.documents"] {
            let vacuum = format!("vacuum (index_cleanup on) {table}");
            client.batch_execute(&vacuum).await.map_err(failed("vacuuming its tables"))?;
        }
        Ok(())
    }
}

async fn count(transaction: &Transaction<'_>, tenant: &TenantCollections) -> Result<ErasedDocuments, IndexError> {
    let what = "counting documents";
    let select = format!(
        "select (select count(*) from documents where {OF_TENANT} and not removed),
                (select count(*) from chunks join documents on documents.id = owner where {OF_TENANT})"
    );
    let row = transaction.query_one(&select, &[&tenant.collection(), &tenant.conversations()]).await;
    let row = row.map_err(failed(what))?;
    let number = |column| row.try_get(column).map(|number: i64| usize::try_from(number).unwrap_or_default());
    Ok(ErasedDocuments { documents: number(0).map_err(failed(what))?, chunks: number(1).map_err(failed(what))? })
}

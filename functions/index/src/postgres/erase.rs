//! Deletion of a tenant's documents.

use super::{
    Postgres, SEARCH_STATEMENT_TIMEOUT, SEARCH_TIMEOUT, WRITE_STATEMENT_TIMEOUT, WRITE_TIMEOUT, error::failed, wait,
};
use crate::{
    collections::{ErasedDocuments, TenantCollections},
    error::IndexError,
};
use deadpool_postgres::Transaction;
use std::time::Duration;

/// SQL condition on `documents` that selects those of a tenant.
const TENANT_CONDITION: &str = "(collection = $1 or starts_with(collection, $2))";
/// Timeout of vacuuming the tables.
const VACUUM_TIMEOUT: Duration = Duration::from_secs(600);

impl Postgres {
    /// Counts the documents of a tenant.
    pub(crate) fn count_tenant(&self, tenant: &TenantCollections) -> Result<ErasedDocuments, IndexError> {
        let operation = "counting documents";
        wait(&self.runtime, SEARCH_TIMEOUT, operation, async {
            let mut client = self.client().await?;
            let transaction = client.transaction().await.map_err(failed(operation))?;
            self.configure(&transaction, SEARCH_STATEMENT_TIMEOUT, "").await?;
            count(&transaction, tenant).await
        })
    }

    /// Deletes the documents of a tenant, and vacuums the tables.
    pub(crate) fn erase(&self, tenant: &TenantCollections) -> Result<ErasedDocuments, IndexError> {
        let operation = "erasing documents";
        let erased = wait(&self.runtime, WRITE_TIMEOUT, operation, async {
            let mut client = self.client().await?;
            let transaction = client.transaction().await.map_err(failed(operation))?;
            self.configure(&transaction, WRITE_STATEMENT_TIMEOUT, "").await?;
            // Locked before counting, so that no worker changes them meanwhile.
            let lock =
                format!("select from documents where {TENANT_CONDITION} order by collection, document for update");
            let names: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
                [&tenant.collection(), &tenant.conversations()];
            transaction.execute(&lock, &names).await.map_err(failed(operation))?;
            let erased = count(&transaction, tenant).await?;
            // Vectors are deleted with their chunks.
            let chunks =
                format!("delete from chunks using documents where documents.id = owner and {TENANT_CONDITION}");
            transaction.execute(&chunks, &names).await.map_err(failed(operation))?;
            transaction
                .execute(&format!("delete from documents where {TENANT_CONDITION}"), &names)
                .await
                .map_err(failed(operation))?;
            transaction.commit().await.map_err(failed(operation))?;
            Ok(erased)
        })?;
        // Always, so that this completes an interrupted erasure.
        wait(&self.runtime, VACUUM_TIMEOUT, "vacuuming tables", self.vacuum())?;
        Ok(erased)
    }

    async fn vacuum(&self) -> Result<(), IndexError> {
        let client = self.client().await?;
        for table in ["nerve.vectors", "nerve.chunks", "nerve.documents"] {
            let vacuum = format!("vacuum (index_cleanup on) {table}");
            client.batch_execute(&vacuum).await.map_err(failed("vacuuming tables"))?;
        }
        Ok(())
    }
}

async fn count(transaction: &Transaction<'_>, tenant: &TenantCollections) -> Result<ErasedDocuments, IndexError> {
    let operation = "counting documents";
    let select = format!(
        "select (select count(*) from documents where {TENANT_CONDITION} and not removed),
                (select count(*) from chunks join documents on documents.id = owner where {TENANT_CONDITION})"
    );
    let row = transaction.query_one(&select, &[&tenant.collection(), &tenant.conversations()]).await;
    let row = row.map_err(failed(operation))?;
    let number = |column| row.try_get(column).map(|number: i64| usize::try_from(number).unwrap_or_default());
    Ok(ErasedDocuments {
        documents: number(0).map_err(failed(operation))?,
        chunks: number(1).map_err(failed(operation))?,
    })
}

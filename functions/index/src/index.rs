//! The index, in a folder or in PostgreSQL.

#[cfg(feature = "postgres")]
use crate::postgres::{Database, Postgres};
use crate::{
    change::{Change, ChangeResult},
    collections::{ErasedDocuments, TenantCollections},
    embedded::Embedded,
    error::IndexError,
    query::Query,
};
use nerve_core::quota::Quotas;
use nerve_events::retrieval::Hit;
use std::path::Path;

/// The index of all collections.
///
/// All methods block; async code must call them on a blocking thread.
pub struct Index {
    storage: Storage,
}

enum Storage {
    Embedded(Box<Embedded>),
    #[cfg(feature = "postgres")]
    Postgres(Postgres),
}

impl Index {
    /// Opens or creates the index in `folder`, for vectors of `model`.
    ///
    /// # Errors
    /// [`IndexError::Invalid`] if the index was built with another model; [`IndexError::Failed`] if files cannot be
    /// read or written.
    pub fn open(folder: &Path, model: &str, dimensions: usize) -> Result<Self, IndexError> {
        let embedded = Embedded::open(folder, model, dimensions)?;
        Ok(Self { storage: Storage::Embedded(Box::new(embedded)) })
    }

    /// Opens or creates the index in `database`, for vectors of `model`. Its connections use the current Tokio
    /// runtime.
    ///
    /// # Errors
    /// [`IndexError::Invalid`] if the index was built with another model or a newer version;
    /// [`IndexError::Unavailable`] if the database cannot be reached.
    #[cfg(feature = "postgres")]
    pub fn connect(database: &Database, model: &str, dimensions: usize) -> Result<Self, IndexError> {
        Ok(Self { storage: Storage::Postgres(Postgres::connect(database, model, dimensions)?) })
    }

    /// Applies changes atomically, without quotas. They are searchable when this returns.
    ///
    /// # Errors
    /// As [`Self::apply_with_quotas`].
    pub fn apply(&self, changes: &[Change]) -> Result<Vec<ChangeResult>, IndexError> {
        self.apply_with_quotas(changes, &Quotas::default())
    }

    /// Applies changes atomically, within the quotas of their collections. Quotas are checked in the transaction that
    /// writes the documents, so they hold exactly.
    ///
    /// # Errors
    /// [`IndexError::QuotaExceeded`] for the first change that exceeds one; otherwise as [`IndexError`] says.
    pub fn apply_with_quotas(&self, changes: &[Change], quotas: &Quotas) -> Result<Vec<ChangeResult>, IndexError> {
        match &self.storage {
            Storage::Embedded(index) => index.apply(changes, quotas),
            #[cfg(feature = "postgres")]
            Storage::Postgres(index) => index.apply(changes, quotas),
        }
    }

    /// Number of documents in a collection, and the size of their text in bytes.
    ///
    /// # Errors
    /// If the storage cannot be read.
    pub fn collection_usage(&self, collection: &str) -> Result<(u64, u64), IndexError> {
        match &self.storage {
            Storage::Embedded(index) => index.collection_usage(collection),
            #[cfg(feature = "postgres")]
            Storage::Postgres(index) => index.collection_usage(collection),
        }
    }

    /// Counts the documents of a tenant that [`erase`](Self::erase) would delete.
    ///
    /// # Errors
    /// If the storage cannot be read.
    pub fn count_tenant(&self, tenant: &TenantCollections) -> Result<ErasedDocuments, IndexError> {
        match &self.storage {
            Storage::Embedded(index) => index.count_tenant(tenant),
            #[cfg(feature = "postgres")]
            Storage::Postgres(index) => index.count_tenant(tenant),
        }
    }

    /// Deletes every document of a tenant, including the record of deleted ones, so an older upload restores them.
    /// When this returns, no file of the index contains their data; in a database, `vacuum` has run.
    ///
    /// In a folder, the lexical and the vector index of the remaining documents are rebuilt while searches continue.
    ///
    /// # Errors
    /// If the storage cannot be written. A repeated call completes an interrupted one.
    pub fn erase(&self, tenant: &TenantCollections) -> Result<ErasedDocuments, IndexError> {
        match &self.storage {
            Storage::Embedded(index) => index.erase(tenant),
            #[cfg(feature = "postgres")]
            Storage::Postgres(index) => index.erase(tenant),
        }
    }

    /// Returns the best chunks, best first.
    ///
    /// # Errors
    /// [`IndexError::Invalid`] if the vector has other dimensions than the index; otherwise if the storage cannot be
    /// read.
    pub fn search(&self, query: &Query) -> Result<Vec<Hit>, IndexError> {
        let dimensions = match &self.storage {
            Storage::Embedded(index) => index.dimensions(),
            #[cfg(feature = "postgres")]
            Storage::Postgres(index) => index.dimensions(),
        };
        if query.vector.len() != dimensions {
            return Err(IndexError::Invalid(format!(
                "the question's vector has {} dimensions, but the index has {dimensions}: use the same model for both",
                query.vector.len(),
            )));
        }
        match &self.storage {
            Storage::Embedded(index) => index.search(query),
            #[cfg(feature = "postgres")]
            Storage::Postgres(index) => index.search(query),
        }
    }

    /// Number of chunks in all collections.
    ///
    /// # Errors
    /// If the storage cannot be read.
    pub fn len(&self) -> Result<usize, IndexError> {
        match &self.storage {
            Storage::Embedded(index) => index.len(),
            #[cfg(feature = "postgres")]
            Storage::Postgres(index) => index.len(),
        }
    }

    /// Whether the index has no chunk.
    ///
    /// # Errors
    /// If the storage cannot be read.
    pub fn is_empty(&self) -> Result<bool, IndexError> {
        Ok(self.len()? == 0)
    }

    /// Saves what a restart would otherwise have to rebuild. No-op for a database.
    ///
    /// # Errors
    /// If files cannot be written.
    pub fn save(&self) -> Result<(), IndexError> {
        match &self.storage {
            Storage::Embedded(index) => index.save(),
            #[cfg(feature = "postgres")]
            Storage::Postgres(_) => Ok(()),
        }
    }
}

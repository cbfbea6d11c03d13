//! The index, in a folder or in a database.

use crate::{
    change::{Applied, Change},
    collections::{ErasedDocuments, TenantCollections},
    embedded::Embedded,
    error::IndexError,
    postgres::{Database, Postgres},
    query::{Hit, Query},
};
use nerve_core::quota::Quotas;
use std::path::Path;

/// The index of every collection.
///
/// Its calls block: from async code, make them where blocking is allowed.
pub struct Index {
    kind: Kind,
}

enum Kind {
    Embedded(Box<Embedded>),
    Postgres(Postgres),
}

impl Index {
    /// Opens the index in `folder`, or begins it, for vectors that `model` gives.
    pub fn open(folder: &Path, model: &str, dimensions: usize) -> Result<Self, IndexError> {
        let embedded = Embedded::open(folder, model, dimensions)?;
        Ok(Self { kind: Kind::Embedded(Box::new(embedded)) })
    }

    /// Opens the index in `database`, or begins it, for vectors that `model` gives. Its connections live on the Tokio
    /// runtime that this is called in.
    pub fn connect(database: &Database, model: &str, dimensions: usize) -> Result<Self, IndexError> {
        Ok(Self { kind: Kind::Postgres(Postgres::connect(database, model, dimensions)?) })
    }

    /// Applies changes, all or none; what they add is found once this returns.
    pub fn apply(&self, changes: &[Change]) -> Result<Vec<Applied>, IndexError> {
        self.apply_within(changes, &Quotas::default())
    }

    /// Applies changes, all or none, where they are within the quotas of their collections. These are checked in the transaction
    /// that writes the documents, so they hold exactly.
    ///
    /// # Errors
    /// [`IndexError::QuotaExceeded`] for the first change that is not.
    pub fn apply_within(&self, changes: &[Change], quotas: &Quotas) -> Result<Vec<Applied>, IndexError> {
        match &self.kind {
            Kind::Embedded(index) => index.apply(changes, quotas),
            Kind::Postgres(index) => index.apply(changes, quotas),
        }
    }

    /// How many documents a collection has, and how many bytes their text has.
    pub fn held_of(&self, collection: &str) -> Result<(u64, u64), IndexError> {
        match &self.kind {
            Kind::Embedded(index) => index.held_of(collection),
            Kind::Postgres(index) => index.held_of(collection),
        }
    }

    /// Counts the documents of a tenant, those that [`erase`](Self::erase) would delete.
    pub fn count_of(&self, tenant: &TenantCollections) -> Result<ErasedDocuments, IndexError> {
        match &self.kind {
            Kind::Embedded(index) => index.count_of(tenant),
            Kind::Postgres(index) => index.count_of(tenant),
        }
    }

    /// Deletes every document of a tenant, and what remembers that there were some: an older upload brings them back. Once
    /// this returns, nothing of them is in the index's files either; in a database, `vacuum` has passed over them.
    ///
    /// In a folder, the words and the graph of vectors of all that stays are made again, while searches go on.
    pub fn erase(&self, tenant: &TenantCollections) -> Result<ErasedDocuments, IndexError> {
        match &self.kind {
            Kind::Embedded(index) => index.erase(tenant),
            Kind::Postgres(index) => index.erase(tenant),
        }
    }

    /// The best chunks, the best first.
    pub fn search(&self, query: &Query) -> Result<Vec<Hit>, IndexError> {
        let dimensions = match &self.kind {
            Kind::Embedded(index) => index.dimensions(),
            Kind::Postgres(index) => index.dimensions(),
        };
        if query.vector.len() != dimensions {
            return Err(IndexError::Invalid(format!(
                "the question's vector has {} dimensions, and the index has {dimensions}: embed both with the same model",
                query.vector.len(),
            )));
        }
        match &self.kind {
            Kind::Embedded(index) => index.search(query),
            Kind::Postgres(index) => index.search(query),
        }
    }

    /// Chunks in the index, of all collections.
    pub fn len(&self) -> Result<usize, IndexError> {
        match &self.kind {
            Kind::Embedded(index) => index.len(),
            Kind::Postgres(index) => index.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> Result<bool, IndexError> {
        Ok(self.len()? == 0)
    }

    /// Writes down what a restart would have to make again; a database needs none of that.
    pub fn save(&self) -> Result<(), IndexError> {
        match &self.kind {
            Kind::Embedded(index) => index.save(),
            Kind::Postgres(_) => Ok(()),
        }
    }
}

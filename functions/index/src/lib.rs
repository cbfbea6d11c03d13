//! The document index: chunks and vectors, stored and searched. No events, no NATS, no models.
//!
//! # Layout
//! - [`index`]: the index, in a folder or in a database. [`error`]: why an operation fails.
//! - [`document`]: identity and metadata of a document. [`collections`]: collections of a tenant and of its conversations.
//! - [`change`]: changes of documents and their results. `held`: a stored document before a change.
//! - [`query`]: queries and hits. [`fusion`]: reciprocal rank fusion of the lexical and the dense ranking.
//! - `embedded`: SQLite, tantivy (BM25) and usearch (HNSW) in a folder, for one worker.
//! - `postgres`: PostgreSQL with pgvector, shared by all workers.
//! - `analyzer`: the text analyzer that both use.
//!
//! # Flow
//! [`Index::apply_within`] writes a batch of [`Change`]s in one transaction and returns once they can be found.
//! [`Index::search`] takes lexical and dense candidates of one collection, fuses both rankings and returns [`Hit`]s.

mod analyzer;
pub mod change;
pub mod collections;
pub mod document;
mod embedded;
pub mod error;
pub mod fusion;
mod held;
pub mod index;
mod postgres;
pub mod query;
#[cfg(test)]
mod tests;

pub use change::{Applied, Change};
pub use document::Document;
pub use error::IndexError;
pub use index::Index;
pub use postgres::Database;
pub use query::{Hit, Query, Weights};

//! The document index: storage and hybrid search of chunks and vectors. No NATS, no models.
//!
//! # Layout
//! - [`index`]: the index, in a folder or in PostgreSQL. [`error`]: its errors.
//! - [`collections`]: collections of a tenant and of its conversations.
//! - [`change`]: changes of documents and their results. `stored`: the stored state before a change.
//! - [`query`]: queries and hits. [`fusion`]: reciprocal rank fusion of the lexical and the dense ranking.
//! - `embedded`: SQLite, tantivy (BM25) and usearch (HNSW) in a folder, for one worker.
//! - `postgres`: PostgreSQL with pgvector, shared by all workers; absent without the feature `postgres`.
//! - `analyzer`: the text analyzer of both.
//!
//! Documents, chunks and hits are those of the events (`nerve-events`).
//!
//! # Flow
//! [`Index::apply_with_quotas`] writes a batch of [`Change`]s in one transaction; they are searchable when it returns.
//! [`Index::search`] gets the lexical and the dense candidates of one collection, fuses both rankings and returns
//! [`Hit`](nerve_events::retrieval::Hit)s.

mod analyzer;
pub mod change;
pub mod collections;
mod embedded;
pub mod error;
pub mod fusion;
pub mod index;
#[cfg(feature = "postgres")]
mod postgres;
pub mod query;
mod stored;
#[cfg(test)]
mod tests;

pub use change::{Change, ChangeResult};
pub use error::IndexError;
pub use index::Index;
#[cfg(feature = "postgres")]
pub use postgres::Database;
pub use query::{FusionWeights, Query};

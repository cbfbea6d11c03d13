//! Questions about documents: chunks, a hybrid index, retrieval, answers, and what is made of them. No NATS, no ONNX Runtime.
//!
//! # Layout
//! - [`document`]: what an uploaded document is. `reading`: documents to chunks, in helper processes that call `nerve-text`.
//! - [`check`]: whether the index has a document exactly as it would be uploaded. [`erase`]: all that is kept of a tenant.
//! - [`index`]: chunks in a folder or in PostgreSQL, found by words and by meaning (HNSW), fused by rank.
//! - [`extract`]: the sentences of what was found that answer a question, quoted and cited.
//! - `functions`: `rag/chunk` and `rag/index`. `retrieve`, `rerank`, `generate`, `evaluate`, `remember`, `notify`,
//!   `learn`, `agent`: one function each, an event in, an event out.
//! - `views`: documents that several workers write. `embedder`: texts to vectors. `client`: calls out over HTTP.
//! - [`rag`]: the host of these functions.
//!
//! # Flow
//! `document.uploaded` → `rag/chunk` → `document.chunked` → `onnx/embed` → `embedding.created` → `rag/index` →
//! `document.indexed`; `prompt.received` → `rag/retrieve` → `documents.retrieved` → `rag/rerank` →
//! `documents.reranked` → `rag/generate` → `answer.generated` → `rag/evaluate` → `answer.evaluated` → `rag/remember` →
//! `memory.updated` → `rag/notify` → `notification.sent`; `feedback.submitted` → `rag/learn` → `weights.updated`. Every arrow is an event; no function knows another.

mod accounts;
mod agent;
pub mod check;
mod client;
pub mod document;
mod embedder;
pub mod erase;
mod evaluate;
pub mod extract;
mod functions;
#[doc(hidden)]
pub mod fuzzing;
mod generate;
pub mod index;
mod learn;
mod notify;
pub mod rag;
mod reading;
mod remember;
mod rerank;
mod retrieve;
mod views;

pub use index::{Database, Index, IndexError};
pub use nerve_text::chunk;
pub use rag::{Rag, Settings, check_options, check_tool, is_side_event};
pub use reading::{DocumentReaders, READER};

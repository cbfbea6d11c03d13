//! The built-in functions that index documents and answer questions about them. No NATS, no ONNX Runtime.
//!
//! # Layout
//! - `upload`: what an uploaded document is. `reading`: documents to chunks, in helper processes that call `nerve-text`.
//! - [`check`]: whether the index has a document exactly as it would be uploaded. [`erase`]: all that is kept of a tenant.
//! - [`extract`]: the sentences of what was found that answer a question, quoted and cited.
//! - `chunk`, `index`, `retrieve`, `rerank`, `generate`, `evaluate`, `remember`, `notify`, `learn`, `agent`: one function each, an
//!   event in, an event out. `function`: what they share. The index itself is `nerve-index`.
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
mod chunk;
mod client;
mod embedder;
pub mod erase;
mod evaluate;
pub mod extract;
mod function;
#[doc(hidden)]
pub mod fuzzing;
mod generate;
mod index;
mod learn;
mod notify;
pub mod rag;
mod reading;
mod remember;
mod rerank;
mod retrieve;
mod upload;
mod views;

pub use nerve_index::document;
pub use rag::{Rag, Settings, check_options, check_tool, is_side_event};
pub use reading::{DocumentReaders, READER};

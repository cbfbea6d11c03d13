//! The built-in functions that index documents and answer questions about them. No NATS, no ONNX Runtime.
//!
//! # Layout
//! - [`host`]: loads the functions and checks their options. `function`: what they share.
//! - `chunk`, `index`, `retrieve`, `rerank`, `generate`, `evaluate`, `remember`, `notify`, `learn`, `agent`: one
//!   function each. The index itself is `nerve-index`.
//! - `upload`: parses uploaded documents. `reader`: extracts and chunks them in helper processes with `nerve-text`.
//! - [`check`]: checks whether the index has a document unchanged. [`erase`]: all data of a tenant.
//! - [`extractive`]: answers quoted from the documents, with citations.
//! - `views`: documents in the bucket `views`. `usage`: quotas. `embedder`: embeddings. `client`: HTTP.
//!
//! # Flow
//! `document.uploaded` → `rag/chunk` → `document.chunked` → `onnx/embed` → `embedding.created` → `rag/index` →
//! `document.indexed`; `prompt.received` → `rag/retrieve` → `documents.retrieved` → `rag/rerank` →
//! `documents.reranked` → `rag/generate` → `answer.generated` → `rag/evaluate` → `answer.evaluated` → `rag/remember` →
//! `memory.updated` → `rag/notify` → `notification.sent`; `feedback.submitted` → `rag/learn` → `weights.updated`.
//! Every arrow is an event; no function calls another.

mod agent;
pub mod check;
mod chunk;
mod client;
mod embedder;
pub mod erase;
mod evaluate;
pub mod extractive;
mod function;
#[doc(hidden)]
pub mod fuzzing;
mod generate;
pub mod host;
mod index;
mod learn;
mod notify;
mod reader;
mod remember;
mod rerank;
mod retrieve;
mod upload;
mod usage;
mod views;

pub use host::{RagHost, Settings, check_options, check_tool, is_auxiliary_output};
pub use reader::{DocumentReaders, READER};

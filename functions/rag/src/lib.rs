//! Documents to chunks, a hybrid index of them, and retrieval. No NATS, no HTTP, no ONNX Runtime.
//!
//! # Layout
//! - [`document`]: what an uploaded document is, and its text, whatever it was written in.
//! - [`chunk`]: a document's text to chunks, by its structure, sized in tokens of the embedding model.
//! - [`code`]: source code to pieces, by its syntax.
//! - [`index`]: chunks on disk, found by words (BM25) and by meaning (HNSW), fused by rank.
//! - [`extract`]: the sentences of what was found that answer a question, quoted and cited.
//! - `functions`, `generate`: `rag/chunk`, `rag/index`, `rag/retrieve` and `rag/generate`, an event in, an event out.
//! - [`rag`]: the host of these functions.
//!
//! # Flow
//! `document.uploaded` → `rag/chunk` → `document.chunked` → `onnx/embed` → `embedding.created` → `rag/index` →
//! `document.indexed`; `prompt.received` → `rag/retrieve` → `documents.retrieved` → `rag/generate` →
//! `answer.generated`. Every arrow is an event; no function knows another.

pub mod chunk;
pub mod code;
pub mod document;
pub mod extract;
mod functions;
mod generate;
pub mod index;
pub mod rag;

pub use index::{Index, IndexError};
pub use rag::{Rag, check_options};

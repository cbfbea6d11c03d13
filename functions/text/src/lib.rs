//! Text extraction and chunking of documents. Pure: no async runtime, no files, no network.
//!
//! Format parsers recurse, allocate and compute as the input directs, so a document of some kilobytes can crash a
//! process. `nerve` therefore calls [`Reader`] only in helper processes.
//!
//! # Layout
//! - [`extract`]: extracts text from HTML, PDF, Markdown, code and plain text.
//! - [`chunk`]: splits text into chunks by structure, measured in tokens of the embedding model. [`code`]: splits
//!   source code.
//! - [`Reader`], in `reader`: runs both for one request.
//!
//! # Flow
//! [`ReadRequest`] → [`Reader::handle`] → text → chunks → [`ReadDocument`].

pub mod chunk;
pub mod code;
pub mod extract;
mod reader;

pub use reader::{ReadDocument, ReadRequest, Reader};

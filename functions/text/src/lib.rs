//! What a document says: bytes of any format to text, and text to chunks. Pure: no async runtime, no files, no network.
//!
//! The libraries that read formats recurse, allocate and compute as their input tells them to, so that a document of some
//! kilobytes can end a process. `nerve` calls [`Reader`] in helper processes only.
//!
//! # Layout
//! - [`extract`]: bytes to text: HTML, PDF, Markdown, code, plain text.
//! - [`chunk`]: a text to chunks, by its structure, sized in tokens of the embedding model. [`code`]: source code to pieces.
//! - [`Reader`], in `reader`: both, as one request and its result.

pub mod chunk;
pub mod code;
pub mod extract;
mod reader;

pub use reader::{ReadDocument, ReadRequest, Reader};

//! Embedding, scoring and writing on ONNX Runtime, in-process, batched across events and requests. No NATS, no HTTP.
//!
//! # Layout
//! - [`folder`], `proto`, `layout`, `head`: a model's folder, read without running it: what the model is for, which
//!   files it needs, how it is fed and what is made of its output.
//! - [`library`], `session`: ONNX Runtime, loaded once a process, and sessions of it.
//! - `models`: what is in memory, by the digest of its files; shared by everybody who asks, dropped when nobody does.
//! - `batcher`: one thread a session, and batches of what many callers ask, ordered by length.
//! - `engine`: what such a thread runs, made again after a panic.
//! - `text`, `tokens`, `vector`: models that read text. `tensor`: models of numbers and strings.
//! - `causal`: models that write: conversations in, text out, a token at a time.
//! - `loaded`: what may be asked of a model: embed, rerank, classify, write, run.
//! - `options`, `payload`, `builtin`: `onnx/embed` and `onnx/score`: a manifest's `with`, an event's data, the result.
//! - [`onnx`]: the host of built-in functions and the [`nerve_core::Inference`] of the gateway, over the same models.
//!
//! # Flow
//! event or request → texts or features → tokens → the model's queue → a batch in a session's thread → rows of
//! numbers → pooling, activation, precision → result. A caller that leaves takes its jobs out of the queue; what
//! fails, fails for the event or request alone.

mod batcher;
mod builtin;
mod causal;
mod engine;
pub mod folder;
mod head;
mod layout;
pub mod library;
mod loaded;
mod models;
pub mod onnx;
mod options;
mod payload;
mod proto;
mod session;
pub mod settings;
mod tensor;
mod text;
mod tokens;
mod vector;

pub use folder::{Description, FolderError, ModelFolder, Task};
pub use library::LibraryError;
pub use onnx::Onnx;
pub use options::check_options;
pub use settings::{Optimisation, Provider, Settings};

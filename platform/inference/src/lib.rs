//! Models on ONNX Runtime, in-process, batched across events and requests. No NATS, no HTTP, no functions.
//!
//! # Layout
//! - [`ModelFolder`], in `folder`, with `files`, `task`, `proto`, `layout`, `head`: a model's folder, read without running it:
//!   what the model is for, which files it needs, how it is fed and what is made of its output.
//! - `library`, `session`: ONNX Runtime, loaded once a process, and sessions of it.
//! - `load`: from files to a model in memory. `models`: what is in memory, by the digest of its files; shared by everybody who asks, dropped when nobody does.
//! - `batcher`: one thread a session, and batches of what many callers ask, ordered by length.
//! - [`Trials`], in `trials`: a helper process loads and runs a model before this process does. [`TRIAL`], in `trial`: what it does.
//! - `engine`: what such a thread runs, made again after a panic.
//! - `text`, `tokens`, `vector`: models that read text. `tensor`: models of numbers and strings.
//! - `causal`: models that write: conversations in, text out, a token at a time. [`CHAT_TEMPLATES`]: how a conversation reads
//!   for a model, found out in a helper process.
//! - [`Loaded`], with one file for each thing that may be asked of a model: `embed`, `rerank`, `classify`, `generate`.
//!   `blocking`: what of it is no work for an async thread.
//! - [`Onnx`]: the [`nerve_core::Inference`] of the gateway, and the models of built-in functions.
//!
//! # Flow
//! A model that is asked for and not in memory is tried in a helper process, unless that was done before, and loaded.
//!
//! event or request → texts or features → tokens → the model's queue → a batch in a session's thread → rows of
//! numbers → pooling, activation, precision → result. A caller that leaves takes its jobs out of the queue; what
//! fails, fails for the event or request alone.

mod batcher;
mod blocking;
mod causal;
mod classify;
mod embed;
mod engine;
mod files;
mod folder;
#[doc(hidden)]
pub mod fuzzing;
mod generate;
mod head;
mod layout;
mod library;
mod load;
mod loaded;
mod models;
mod onnx;
mod proto;
mod rerank;
mod session;
mod settings;
mod task;
mod tensor;
mod text;
mod tokens;
mod trial;
mod trials;
mod vector;

pub use causal::CHAT_TEMPLATES;
pub use embed::EmbedStyle;
pub use files::FolderError;
pub use folder::ModelFolder;
pub use head::Pooling;
pub use library::{LibraryError, NO_TELEMETRY};
pub use loaded::{Admission, Loaded};
pub use onnx::Onnx;
pub use settings::{Optimisation, Provider, Settings};
pub use task::{Description, Task};
pub use trial::TRIAL;
pub use trials::{TrialError, Trials};

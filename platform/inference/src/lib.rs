//! Models on ONNX Runtime, in-process, batched across events and requests. No NATS, no HTTP, no functions.
//!
//! # Layout
//! - [`OnnxInference`], in `onnx`: the [`nerve_core::Inference`] of the gateway, and the models of built-in functions.
//! - [`ModelFolder`], in `folder`, with `files`, `task`, `signature`, `spec`, `head`: reads a model's folder without
//!   running it: task, required files, inputs and output head.
//! - `library`, `session`: ONNX Runtime, loaded once per process, and its sessions.
//! - `load`: loads a model from its files. `models`: loaded models by digest of their files, shared and dropped when
//!   unused.
//! - `batcher`: one thread per session, and batches of jobs similar in length. `engine`: engines of these threads,
//!   recreated after a panic.
//! - [`ModelProber`], in `prober`: probes a model in a helper process before it is loaded. [`MODEL_PROBE`], in `probe`: the
//!   work of that process.
//! - `text`, `tokens`, `vector`: text models. `tensor`: tabular models.
//! - `causal`: language models, streamed token by token. [`CHAT_TEMPLATES`]: chat templates, rendered in a helper
//!   process.
//! - [`LoadedModel`], with one file per operation: `embed`, `rerank`, `classify`, `generate`. `blocking`: CPU-bound
//!   work outside of async threads.
//!
//! # Flow
//! A model that is not loaded is probed in a helper process, unless it passed before, and loaded.
//!
//! event or request → texts or features → tokens → the model's queue → a batch on a session's thread → rows of numbers
//! → pooling, activation, precision → result. A dropped caller cancels its jobs; an error fails only its event or
//! request.

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
mod library;
mod load;
mod loaded;
mod models;
mod onnx;
mod probe;
mod prober;
mod rerank;
mod session;
mod settings;
mod signature;
mod spec;
mod task;
mod tensor;
mod text;
mod tokens;
mod vector;

pub use causal::CHAT_TEMPLATES;
pub use embed::EmbedStyle;
pub use files::ModelError;
pub use folder::ModelFolder;
pub use head::Pooling;
pub use library::{LibraryError, NO_TELEMETRY};
pub use loaded::{Admission, LoadedModel};
pub use onnx::OnnxInference;
pub use probe::MODEL_PROBE;
pub use prober::{ModelProber, ProbeError};
pub use settings::{GraphOptimization, Provider, Settings};
pub use task::{Description, Task};

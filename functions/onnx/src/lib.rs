//! Embedding and scoring on ONNX Runtime, in-process, batched across events and requests. No NATS, no HTTP.

mod batcher;
mod folder;
mod head;
mod layout;
mod library;
mod proto;
mod session;
mod settings;
mod tensor;
mod text;
mod tokens;
mod vector;

pub use folder::{Description, FolderError, ModelFolder, Task};
pub use head::Pooling;
pub use library::LibraryError;
pub use settings::{Optimisation, Provider, Settings};

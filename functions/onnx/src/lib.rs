//! Embedding and scoring on ONNX Runtime, in-process.

mod folder;

pub use folder::{Description, FolderError, ModelFolder, Task};

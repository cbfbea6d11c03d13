//! The built-in functions `onnx/embed` and `onnx/score`. No NATS, no HTTP.
//!
//! # Layout
//! - [`OnnxHost`], in `host`: loads the functions with the models of [`nerve_inference::OnnxInference`].
//! - `options`: parses `with`. `payload`: parses event data and builds results. `builtin`: a loaded function.
//!
//! # Flow
//! event → texts or features, at the locations in `with` → model → result → event.

mod builtin;
mod host;
mod options;
mod payload;

pub use host::OnnxHost;
pub use options::check_options;

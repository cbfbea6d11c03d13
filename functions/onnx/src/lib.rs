//! The built-in functions `onnx/embed` and `onnx/score`. No NATS, no HTTP.
//!
//! # Layout
//! - `options`: a manifest's `with`. `payload`: an event's data, and the result. `builtin`: a function, loaded.
//! - [`OnnxHost`], in `host`: loads functions over the models of [`nerve_inference::Onnx`].
//!
//! # Flow
//! event → texts or features, where `with` says → the model → result → event.

mod builtin;
mod host;
mod options;
mod payload;

pub use host::OnnxHost;
pub use options::check_options;

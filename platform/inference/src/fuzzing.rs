//! Parsers of model files, for the fuzz targets in `tests/fuzz`. Not part of the API.

use crate::{causal, signature::GraphSignature};
use nerve_core::inference::Message;

/// Compiles a chat template and renders a conversation; texts in `special` are special tokens.
///
/// # Errors
/// If the template or its rendering is invalid.
pub fn render_chat_template(source: &str, messages: &[Message], special: &[String]) -> Result<String, String> {
    causal::render_chat_template(source, messages, special)
}

/// Reads the signature of an ONNX file. Returns the number of inputs, outputs and external weight files.
///
/// # Errors
/// If the bytes are not an ONNX model.
pub fn read_graph_signature(bytes: &[u8]) -> Result<[usize; 3], String> {
    let GraphSignature { inputs, outputs, external_files } = GraphSignature::read(bytes)?;
    Ok([inputs.len(), outputs.len(), external_files.len()])
}

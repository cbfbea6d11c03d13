//! The parsers of model files that the fuzz targets in `tests/fuzz` call. Not a part of the API.

use crate::{causal, proto::Outline};
use nerve_core::inference::Message;

/// Compiles a chat template, and renders a conversation with it in which the texts `special` are tokens.
///
/// # Errors
/// Says what is wrong with the template.
pub fn render_chat_template(source: &str, messages: &[Message], special: &[String]) -> Result<String, String> {
    causal::render_chat_template(source, messages, special)
}

/// Reads the outline of an ONNX file, and counts its inputs, its outputs and the files that hold its weights.
///
/// # Errors
/// Says why the bytes are no ONNX model.
pub fn read_outline(bytes: &[u8]) -> Result<[usize; 3], String> {
    let Outline { inputs, outputs, external } = Outline::read(bytes)?;
    Ok([inputs.len(), outputs.len(), external.len()])
}

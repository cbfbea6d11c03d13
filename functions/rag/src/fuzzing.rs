//! The parsers of what a language model's endpoint sends, which the fuzz target `endpoint` in `tests/fuzz` calls. Not a
//! part of the API.

use crate::{agent, generate};
use bytes::Bytes;
use futures::StreamExt;
use nerve_core::{FunctionError, inference::Piece};

/// Reads a stream of chat completions that comes in these chunks.
pub async fn read_stream(chunks: Vec<Bytes>) -> Vec<Result<Piece, FunctionError>> {
    generate::read_stream(futures::stream::iter(chunks.into_iter().map(Ok))).collect().await
}

/// Reads a chat completion that came as a whole: how many tool calls are in it, and how many tokens it says to have cost.
///
/// # Errors
/// As the agent reports it.
pub fn read_completion(body: &[u8]) -> Result<(usize, usize), FunctionError> {
    agent::read_completion(body)
}

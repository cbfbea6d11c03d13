//! Parsers of language model endpoint responses, for the fuzz target `endpoint` in `tests/fuzz`. Not part of the API.

use crate::{agent, generate};
use bytes::Bytes;
use futures::StreamExt;
use nerve_core::{FunctionError, inference::Piece};

/// Reads a stream of chat completions from these network chunks.
pub async fn read_stream(chunks: Vec<Bytes>) -> Vec<Result<Piece, FunctionError>> {
    generate::read_stream(futures::stream::iter(chunks.into_iter().map(Ok))).collect().await
}

/// Reads a complete chat completion and returns its number of tool calls and its reported token usage.
///
/// # Errors
/// As reported by the agent.
pub fn read_completion(body: &[u8]) -> Result<(usize, usize), FunctionError> {
    agent::read_completion(body)
}

//! What the endpoint of a language model sends: a stream of chat completions, or one as a whole.

use bytes::Bytes;
use futures::executor::block_on;
use nerve_core::{FunctionError, inference::Piece};
use nerve_rag::fuzzing::{read_completion, read_stream};

/// Reads a stream, however it is cut; panics unless that makes no difference, and the stream ends once.
pub fn run(data: &[u8]) {
    drop(read_completion(data));
    let Some((size, stream)) = data.split_first() else { return };
    let whole = block_on(read_stream(vec![Bytes::copy_from_slice(stream)]));
    let size = usize::from(*size % 8) + 1;
    let cut = block_on(read_stream(stream.chunks(size).map(Bytes::copy_from_slice).collect()));
    assert_eq!(read(&whole), read(&cut), "a stream is read as it is cut");
    let is_end = |piece: &Result<Piece, FunctionError>| !matches!(piece, Ok(Piece::Text(_)));
    assert_eq!(whole.iter().position(is_end), whole.len().checked_sub(1), "a stream has one end: {whole:?}");
}

fn read(pieces: &[Result<Piece, FunctionError>]) -> Vec<Result<Piece, String>> {
    pieces.iter().map(|piece| piece.clone().map_err(|error| error.to_string())).collect()
}

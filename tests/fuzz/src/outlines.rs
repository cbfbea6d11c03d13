//! ONNX files, as far as they are read without ONNX Runtime.

use nerve_inference::fuzzing::read_graph_signature;

/// Reads an outline; panics where it has more parts than the file has bytes.
pub fn run(data: &[u8]) {
    if let Ok(counts) = read_graph_signature(data) {
        assert!(counts.iter().sum::<usize>() <= data.len(), "{counts:?}");
    }
}

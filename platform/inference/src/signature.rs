//! Signature of an ONNX graph: its inputs, outputs and external weight files.
//!
//! Field numbers are those of onnx.proto (ONNX IR version 10). Weights and nodes are skipped, so reading a signature
//! takes one pass over the file, without ONNX Runtime.

use prost::Message;
use std::collections::HashSet;

/// `TensorProto.DataLocation.EXTERNAL`
const EXTERNAL: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSetIdProto>,
}

#[derive(Clone, PartialEq, Message)]
struct OperatorSetIdProto {
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(string, tag = "8")]
    name: String,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<StringStringEntryProto>,
    #[prost(int32, tag = "14")]
    data_location: i32,
}

#[derive(Clone, PartialEq, Message)]
struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfoProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    ty: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeProto {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorTypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorTypeProto {
    #[prost(int32, tag = "1")]
    elem_type: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<DimensionProto>,
}

#[derive(Clone, PartialEq, Message)]
struct DimensionProto {
    #[prost(int64, optional, tag = "1")]
    value: Option<i64>,
}

/// Signature of an ONNX graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GraphSignature {
    /// Inputs, without weights that have a default.
    pub(crate) inputs: Vec<Port>,
    /// Outputs.
    pub(crate) outputs: Vec<Port>,
    /// Files with external weights, relative to the ONNX file, without duplicates.
    pub(crate) external_files: Vec<String>,
}

/// An input or output of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) name: String,
    /// Size of each dimension, `None` if it varies. `None` if the rank is not declared or the value is not a tensor.
    pub(crate) shape: Option<Vec<Option<usize>>>,
    pub(crate) element: ElementType,
}

/// Element type of a tensor, as far as it is relevant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ElementType {
    Float32,
    Float16,
    Other,
}

impl GraphSignature {
    /// Reads the bytes of an ONNX file.
    ///
    /// # Errors
    /// If they are not an ONNX model.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        let model = ModelProto::decode(bytes).map_err(|error| format!("it is not an ONNX model ({error})"))?;
        let Some(graph) = model.graph.filter(|graph| !graph.output.is_empty()) else {
            return Err("it is not an ONNX model: it has no graph with outputs".to_owned());
        };
        if model.opset_import.iter().all(|opset| opset.version <= 0) {
            return Err("it is not an ONNX model: it has no operator set".to_owned());
        }
        let weights: HashSet<&str> = graph.initializer.iter().map(|weight| weight.name.as_str()).collect();
        let is_fed = |port: &&ValueInfoProto| !weights.contains(port.name.as_str());
        let inputs = graph.input.iter().filter(is_fed).map(Port::of).collect();
        let mut external_files: Vec<String> = graph.initializer.iter().filter_map(TensorProto::file).collect();
        external_files.sort();
        external_files.dedup();
        Ok(Self { inputs, outputs: graph.output.iter().map(Port::of).collect(), external_files })
    }
}

impl TensorProto {
    fn file(&self) -> Option<String> {
        let location = self.external_data.iter().find(|entry| entry.key == "location")?;
        (self.data_location == EXTERNAL).then(|| location.value.clone())
    }
}

impl Port {
    fn of(info: &ValueInfoProto) -> Self {
        let tensor = info.ty.as_ref().and_then(|ty| ty.tensor.as_ref());
        let shape = tensor.and_then(|tensor| tensor.shape.as_ref());
        // `TensorProto.DataType`
        let element = match tensor.map(|tensor| tensor.elem_type) {
            Some(1) => ElementType::Float32,
            Some(10) => ElementType::Float16,
            _ => ElementType::Other,
        };
        let size = |dim: &DimensionProto| dim.value.and_then(|value| usize::try_from(value).ok());
        Self { name: info.name.clone(), shape: shape.map(|shape| shape.dim.iter().map(size).collect()), element }
    }

    pub(crate) fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }

    /// Size of the last dimension, if it is fixed.
    pub(crate) fn width(&self) -> Option<usize> {
        *self.shape.as_ref()?.last()?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_other_formats_are_rejected() {
        for bytes in [b"".as_slice(), b"GGUF\x03\0\0\0", b"{\"a\": 1}", b"PK\x03\x04", &[0x80, 4, 0x95, 1, 2, 3]] {
            let error = GraphSignature::read(bytes).unwrap_err();
            assert!(error.contains("not an ONNX model"), "{error}");
        }
    }
}

//! Labels of a graph: the class of each score column.
//!
//! Field numbers are those of onnx.proto (ONNX IR version 10). Outputs are traced back to the deciding node: a
//! classifier of `ai.onnx.ml`, whose attributes list the classes, or `ArgMax` or `ArgMin`, whose index may select from
//! a constant list of classes. Nothing is computed.

use prost::{Message, bytes::Bytes};
use std::collections::HashMap;

/// Maximum number of nodes between an output and its deciding node.
const MAX_STEPS: usize = 32;
/// Operators that change the shape or type of labels but not their values.
const LABEL_STEPS: [&str; 6] = ["Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"];
/// Operators that preserve the column of each score.
const SCORE_STEPS: [&str; 7] = ["Cast", "Flatten", "Identity", "LpNormalization", "Normalizer", "Reshape", "Softmax"];

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeProto>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<AttributeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "5")]
    tensor: Option<TensorProto>,
    #[prost(int64, repeated, tag = "8")]
    ints: Vec<i64>,
    #[prost(bytes = "bytes", repeated, tag = "9")]
    strings: Vec<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(int32, repeated, tag = "5")]
    int32_data: Vec<i32>,
    #[prost(bytes = "bytes", repeated, tag = "6")]
    string_data: Vec<Bytes>,
    #[prost(int64, repeated, tag = "7")]
    int64_data: Vec<i64>,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "bytes", tag = "9")]
    raw_data: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfoProto {
    #[prost(string, tag = "1")]
    name: String,
}

/// Meaning of score columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Columns {
    /// Classes, in order.
    Classes(Vec<String>),
    /// Classes numbered by column.
    Positions,
    /// Pairs of classes; there is no score per class.
    Pairs,
}

/// Naming of the predicted class by an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LabelOrigin {
    pub(crate) columns: Columns,
    /// Whether the smallest number wins, as with distances to clusters.
    pub(crate) smallest: bool,
}

/// Origins of a graph's outputs by name, as far as they can be traced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OutputOrigins {
    /// Label outputs.
    pub(crate) labels: HashMap<String, LabelOrigin>,
    /// Score outputs.
    pub(crate) scores: HashMap<String, Columns>,
    /// Outputs with scores by key: the class of each key. Keys that are no class are missing.
    pub(crate) keys: HashMap<String, HashMap<String, String>>,
}

impl OutputOrigins {
    /// Reads the bytes of an ONNX file; empty if they cannot be read.
    pub(crate) fn read(bytes: Bytes) -> Self {
        let Some(graph) = ModelProto::decode(bytes).ok().and_then(|model| model.graph) else { return Self::default() };
        let nodes = Graph::of(&graph);
        let mut output_origins = Self::default();
        for ValueInfoProto { name } in &graph.output {
            if let Some(label_origin) = nodes.label_origin(name, MAX_STEPS) {
                output_origins.labels.insert(name.clone(), label_origin);
            } else if let Some(keys) = nodes.keys(name) {
                output_origins.keys.insert(name.clone(), keys);
            } else if let Some(columns) = nodes.columns(name) {
                output_origins.scores.insert(name.clone(), columns);
            }
        }
        output_origins
    }
}

/// Nodes by output name, and constants.
struct Graph<'g> {
    producers: HashMap<&'g str, (&'g NodeProto, usize)>,
    constants: HashMap<&'g str, &'g TensorProto>,
}

impl<'g> Graph<'g> {
    fn of(graph: &'g GraphProto) -> Self {
        let outputs = |node: &'g NodeProto| {
            node.output.iter().enumerate().map(move |(index, output)| (output.as_str(), (node, index)))
        };
        let constants = graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor));
        Self { producers: graph.node.iter().flat_map(outputs).collect(), constants: constants.collect() }
    }

    /// Traces a label output to its deciding node.
    fn label_origin(&self, output: &str, steps: usize) -> Option<LabelOrigin> {
        let left = steps.checked_sub(1)?;
        let (node, index) = self.producers.get(output)?;
        let input = |index: usize| node.input.get(index).map(String::as_str);
        match node.op_type.as_str() {
            "LinearClassifier" | "SVMClassifier" | "TreeEnsembleClassifier" if *index == 0 => {
                Some(LabelOrigin { columns: Columns::Classes(node.classes()?), smallest: false })
            }
            "ArgMax" => Some(LabelOrigin { columns: Columns::Positions, smallest: false }),
            "ArgMin" => Some(LabelOrigin { columns: Columns::Positions, smallest: true }),
            "ArrayFeatureExtractor" | "Gather" => {
                let classes = self.constant(input(0)?)?;
                let label_origin = self.label_origin(input(1)?, left)?;
                (label_origin.columns == Columns::Positions)
                    .then_some(LabelOrigin { columns: Columns::Classes(classes), ..label_origin })
            }
            "LabelEncoder" => {
                let LabelOrigin { columns: Columns::Classes(classes), smallest } =
                    self.label_origin(input(0)?, left)?
                else {
                    return None;
                };
                Some(LabelOrigin { columns: Columns::Classes(node.encoded(&classes)?), smallest })
            }
            step if LABEL_STEPS.contains(&step) => self.label_origin(input(0)?, left),
            _ => None,
        }
    }

    /// Traces a score output to its classifier.
    fn columns(&self, output: &str) -> Option<Columns> {
        let mut output = output;
        for _ in 0..MAX_STEPS {
            let (node, index) = self.producers.get(output)?;
            match node.op_type.as_str() {
                "LinearClassifier" | "TreeEnsembleClassifier" if *index == 1 => {
                    return node.classes().map(Columns::Classes);
                }
                "SVMClassifier" if *index == 1 => return node.svm_columns(),
                step if SCORE_STEPS.contains(&step) => output = node.input.first()?,
                _ => return None,
            }
        }
        None
    }

    /// Traces an output with scores by key to its classifier. A `ZipMap` assigns keys to columns in order.
    fn keys(&self, output: &str) -> Option<HashMap<String, String>> {
        let (node, _) = self.producers.get(output).filter(|(node, _)| node.op_type == "ZipMap")?;
        match self.columns(node.input.first()?)? {
            Columns::Classes(classes) => Some(node.classes()?.into_iter().zip(classes).collect()),
            Columns::Pairs => Some(HashMap::new()),
            Columns::Positions => None,
        }
    }

    /// Elements of a constant list of classes.
    fn constant(&self, name: &str) -> Option<Vec<String>> {
        if let Some(tensor) = self.constants.get(name) {
            return tensor.elements();
        }
        let (node, _) = self.producers.get(name).filter(|(node, _)| node.op_type == "Constant")?;
        let tensor = node.attribute("value").and_then(|value| value.tensor.as_ref());
        match tensor {
            Some(tensor) => tensor.elements(),
            None => node.list("value_strings").or_else(|| node.list("value_ints")),
        }
    }
}

impl NodeProto {
    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|attribute| attribute.name == name)
    }

    /// Elements of an attribute with strings or integers.
    fn list(&self, name: &str) -> Option<Vec<String>> {
        let attribute = self.attribute(name)?;
        let list: Vec<String> = if attribute.strings.is_empty() {
            attribute.ints.iter().map(i64::to_string).collect()
        } else {
            attribute.strings.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect()
        };
        (!list.is_empty()).then_some(list)
    }

    fn classes(&self) -> Option<Vec<String>> {
        ["classlabels_strings", "classlabels_ints", "classlabels_int64s"].into_iter().find_map(|name| self.list(name))
    }

    /// Output of a label encoder for each class.
    fn encoded(&self, classes: &[String]) -> Option<Vec<String>> {
        let either = |names: [&str; 2]| names.into_iter().find_map(|name| self.list(name));
        let (keys, values) = (either(["keys_int64s", "keys_strings"])?, either(["values_strings", "values_int64s"])?);
        let encoded = |class: &String| values.get(keys.iter().position(|key| key == class)?).cloned();
        classes.iter().map(encoded).collect()
    }

    /// A support vector machine without probabilities decides between pairs of classes. For a single pair, ONNX
    /// Runtime's first column is the second class.
    fn svm_columns(&self) -> Option<Columns> {
        let has = |name: &str| self.attribute(name).is_some();
        let classes = self.classes()?;
        match classes.as_slice() {
            _ if !has("vectors_per_class") || has("prob_a") => Some(Columns::Classes(classes)),
            [first, second] => Some(Columns::Classes(vec![second.clone(), first.clone()])),
            _ => Some(Columns::Pairs),
        }
    }
}

impl TensorProto {
    /// Elements, if they are strings or integers.
    fn elements(&self) -> Option<Vec<String>> {
        let raw = &self.raw_data;
        // `TensorProto.DataType`
        let elements: Vec<String> = match self.data_type {
            6 if raw.is_empty() => self.int32_data.iter().map(i32::to_string).collect(),
            6 => raw.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes).to_string()).collect(),
            7 if raw.is_empty() => self.int64_data.iter().map(i64::to_string).collect(),
            7 => raw.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes).to_string()).collect(),
            8 => self.string_data.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect(),
            _ => return None,
        };
        (!elements.is_empty()).then_some(elements)
    }
}

//! What a graph says of the labels that it gives: which class each column of its scores is of.
//!
//! Field numbers are those of onnx.proto (ONNX IR version 10). Outputs are followed back to the node that decides:
//! a classifier of `ai.onnx.ml`, which has the classes in its attributes, or `ArgMax` or `ArgMin`, whose index may be
//! looked up in a constant list of classes. Nothing is computed.

use prost::{Message, bytes::Bytes};
use std::collections::HashMap;

/// Nodes between an output and the node that decides, at most.
const MAX_STEPS: usize = 32;
/// Operators that change the shape or type of labels, and not which they are.
const LABEL_STEPS: [&str; 6] = ["Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"];
/// Operators that leave each score in its column.
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

/// What the columns of scores are of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Columns {
    /// These classes, in this order.
    Classes(Vec<String>),
    /// Classes that are numbered by their column.
    Positions,
    /// Pairs of classes: there is no score of a class.
    Pairs,
}

/// How an output names the class that the model has chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) columns: Columns,
    /// Whether it is the class with the smallest number, as the nearest cluster is.
    pub(crate) smallest: bool,
}

/// What a graph says of its outputs, by their names; nothing of those that it computes in another way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Origins {
    /// Of outputs that are labels.
    pub(crate) labels: HashMap<String, Choice>,
    /// Of outputs that are scores.
    pub(crate) scores: HashMap<String, Columns>,
    /// Of outputs that are scores by class: the class that the score under each key is of. Keys whose scores are of no
    /// class are left out.
    pub(crate) keys: HashMap<String, HashMap<String, String>>,
}

impl Origins {
    /// Reads an ONNX file's bytes. What cannot be read says nothing.
    pub(crate) fn read(bytes: Bytes) -> Self {
        let Some(graph) = ModelProto::decode(bytes).ok().and_then(|model| model.graph) else { return Self::default() };
        let outline = Graph::of(&graph);
        let mut origins = Self::default();
        for ValueInfoProto { name } in &graph.output {
            if let Some(choice) = outline.choice(name, MAX_STEPS) {
                origins.labels.insert(name.clone(), choice);
            } else if let Some(keys) = outline.keys(name) {
                origins.keys.insert(name.clone(), keys);
            } else if let Some(columns) = outline.columns(name) {
                origins.scores.insert(name.clone(), columns);
            }
        }
        origins
    }
}

/// The nodes by what they make, and the constants.
struct Graph<'g> {
    makers: HashMap<&'g str, (&'g NodeProto, usize)>,
    constants: HashMap<&'g str, &'g TensorProto>,
}

impl<'g> Graph<'g> {
    fn of(graph: &'g GraphProto) -> Self {
        let made = |node: &'g NodeProto| {
            node.output.iter().enumerate().map(move |(index, output)| (output.as_str(), (node, index)))
        };
        let constants = graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor));
        Self { makers: graph.node.iter().flat_map(made).collect(), constants: constants.collect() }
    }

    /// Follows an output of labels back to where they are decided.
    fn choice(&self, output: &str, steps: usize) -> Option<Choice> {
        let left = steps.checked_sub(1)?;
        let (node, index) = self.makers.get(output)?;
        let input = |index: usize| node.input.get(index).map(String::as_str);
        match node.op_type.as_str() {
            "LinearClassifier" | "SVMClassifier" | "TreeEnsembleClassifier" if *index == 0 => {
                Some(Choice { columns: Columns::Classes(node.classes()?), smallest: false })
            }
            "ArgMax" => Some(Choice { columns: Columns::Positions, smallest: false }),
            "ArgMin" => Some(Choice { columns: Columns::Positions, smallest: true }),
            "ArrayFeatureExtractor" | "Gather" => {
                let classes = self.constant(input(0)?)?;
                let choice = self.choice(input(1)?, left)?;
                (choice.columns == Columns::Positions)
                    .then_some(Choice { columns: Columns::Classes(classes), ..choice })
            }
            "LabelEncoder" => {
                let Choice { columns: Columns::Classes(classes), smallest } = self.choice(input(0)?, left)? else {
                    return None;
                };
                Some(Choice { columns: Columns::Classes(node.encoded(&classes)?), smallest })
            }
            step if LABEL_STEPS.contains(&step) => self.choice(input(0)?, left),
            _ => None,
        }
    }

    /// Follows an output of scores back to the classifier that gives them.
    fn columns(&self, output: &str) -> Option<Columns> {
        let mut output = output;
        for _ in 0..MAX_STEPS {
            let (node, index) = self.makers.get(output)?;
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

    /// Follows an output of scores by class back to the classifier. A `ZipMap` puts its keys to columns by their order,
    /// whatever these are of.
    fn keys(&self, output: &str) -> Option<HashMap<String, String>> {
        let (node, _) = self.makers.get(output).filter(|(node, _)| node.op_type == "ZipMap")?;
        match self.columns(node.input.first()?)? {
            Columns::Classes(classes) => Some(node.classes()?.into_iter().zip(classes).collect()),
            Columns::Pairs => Some(HashMap::new()),
            Columns::Positions => None,
        }
    }

    /// The elements of a constant list of classes.
    fn constant(&self, name: &str) -> Option<Vec<String>> {
        if let Some(tensor) = self.constants.get(name) {
            return tensor.elements();
        }
        let (node, _) = self.makers.get(name).filter(|(node, _)| node.op_type == "Constant")?;
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

    /// The elements of an attribute that is a list of strings or of whole numbers.
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

    /// What a label encoder makes of each class.
    fn encoded(&self, classes: &[String]) -> Option<Vec<String>> {
        let either = |names: [&str; 2]| names.into_iter().find_map(|name| self.list(name));
        let (keys, values) = (either(["keys_int64s", "keys_strings"])?, either(["values_strings", "values_int64s"])?);
        let encoded = |class: &String| values.get(keys.iter().position(|key| key == class)?).cloned();
        classes.iter().map(encoded).collect()
    }

    /// Support vectors without probabilities decide between pairs of classes. The first column of ONNX Runtime's two
    /// for one pair speaks for the second class.
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
    /// The elements, where they are strings or whole numbers.
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

//! Options of the built-in functions (`with` in a manifest).

use nerve_core::inference::{EmbedRequest, Precision, Purpose};
use nerve_inference::{Description, EmbedStyle, Pooling, Task};
use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Fields of the result, which carried fields must not overwrite.
const RESULT_FIELDS: &[&str] = &[
    "model",
    "embedding",
    "embeddings",
    "dimensions",
    "tokens",
    "truncated",
    "score",
    "label",
    "labels",
    "results",
    "outputs",
];

/// Options of a built-in function.
#[derive(Debug, Clone)]
pub(crate) enum Options {
    Embed(EmbedOptions),
    Score(ScoreOptions),
}

/// `with` of `onnx/embed`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EmbedOptions {
    /// Location of the text or texts.
    pub(crate) input: Option<Pointer>,
    pub(crate) purpose: Option<Purpose>,
    /// Prefix of each text, instead of the model's prompt.
    pub(crate) prefix: Option<String>,
    pub(crate) dimensions: Option<usize>,
    pub(crate) precision: Precision,
    #[serde(rename = "normalise", alias = "normalize")]
    pub(crate) normalize: Option<bool>,
    pub(crate) pooling: Option<Pooling>,
    /// Sparse vectors: number of largest weights to keep.
    pub(crate) keep: Option<usize>,
    pub(crate) on_long: OnLong,
    pub(crate) encoding: Encoding,
    pub(crate) carry: Carry,
}

/// `with` of `onnx/score`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ScoreOptions {
    /// Location of the text or texts, or of the features of a tabular model.
    pub(crate) input: Option<Pointer>,
    /// Location of the second text of a pair.
    pub(crate) second: Option<Pointer>,
    pub(crate) query: Option<Pointer>,
    pub(crate) documents: Option<Pointer>,
    /// Location of each graph input.
    pub(crate) inputs: Option<BTreeMap<String, Pointer>>,
    /// Published fields, each with a graph output or a value in one (`probabilities/fraud`).
    pub(crate) outputs: Option<BTreeMap<String, String>>,
    /// Whether to return raw logits.
    pub(crate) raw: bool,
    /// Maximum number of published labels or documents.
    pub(crate) top: Option<usize>,
    pub(crate) on_long: OnLong,
    pub(crate) carry: Carry,
}

/// Handling of texts that exceed the model's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnLong {
    /// Truncate the text; the result reports it.
    #[default]
    Truncate,
    /// Reject the event, which is dead-lettered.
    Refuse,
}

/// Encoding of vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    /// An array of numbers.
    #[default]
    Array,
    /// The little-endian bytes of the numbers, in Base64.
    Base64,
}

/// A JSON pointer (RFC 6901); a value without `/` is a field name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pointer(pub(crate) String);

impl<'de> Deserialize<'de> for Pointer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let pointer = if text.is_empty() || text.starts_with('/') { text } else { format!("/{text}") };
        if pointer.split('~').skip(1).any(|rest| !rest.starts_with(['0', '1'])) {
            return Err(de::Error::custom(format!(
                "`{pointer}` is not a JSON pointer: write ~ as ~0, and / in a name as ~1"
            )));
        }
        Ok(Self(pointer))
    }
}

/// Fields of the event's data to publish with the result.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub(crate) struct Carry(Vec<String>);

impl Carry {
    /// Extracts the fields from `data`.
    pub(crate) fn take(&self, data: &Value) -> Map<String, Value> {
        let Some(data) = data.as_object() else { return Map::new() };
        let is_carried = |name: &&String| self.0.iter().any(|carried| carried == *name || carried == "*");
        let kept = data.iter().filter(|(name, _)| is_carried(name) && !RESULT_FIELDS.contains(&name.as_str()));
        kept.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    fn check(&self) -> Result<(), String> {
        match self.0.iter().find(|name| RESULT_FIELDS.contains(&name.as_str())) {
            Some(name) => Err(format!("carry: `{name}` is a field of the result: omit it")),
            None => Ok(()),
        }
    }
}

impl Options {
    /// Parses `with` of a built-in function and checks it against the model.
    ///
    /// # Errors
    /// Names the option that is unknown, invalid or does not apply to the model.
    pub(crate) fn read(function: &str, model: &Description, with: &Map<String, Value>) -> Result<Self, String> {
        let value = Value::Object(with.clone());
        match (function, model.task) {
            ("onnx/embed", Task::Embed | Task::Sparse) => {
                let options: EmbedOptions = serde_json::from_value(value).map_err(|error| error.to_string())?;
                options.check(model)?;
                Ok(Self::Embed(options))
            }
            ("onnx/score", Task::Rerank | Task::Classify | Task::Tensor) => {
                let options: ScoreOptions = serde_json::from_value(value).map_err(|error| error.to_string())?;
                options.check(model)?;
                Ok(Self::Score(options))
            }
            ("onnx/embed" | "onnx/score", task) => {
                Err(format!("{function} does not run a model for {}", task.as_str()))
            }
            _ => Err(format!("unknown built-in function {function}: use onnx/embed or onnx/score")),
        }
    }
}

/// Checks `with` of a built-in function against its model, as a worker does when it loads the function.
///
/// # Errors
/// Names the option that is unknown, invalid or does not apply to the model.
pub fn check_options(function: &str, model: &Description, with: &Map<String, Value>) -> Result<(), String> {
    Options::read(function, model, with).map(drop)
}

/// Rejects options that apply to other kinds of models only.
fn only(given: &[(&str, bool)], what: &str, model: Task) -> Result<(), String> {
    match given.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(format!("`{name}` applies to {what}, but this model is for {}", model.as_str())),
        None => Ok(()),
    }
}

impl EmbedOptions {
    fn check(&self, model: &Description) -> Result<(), String> {
        let plain = self.precision == Precision::default() && self.encoding == Encoding::default();
        match model.task {
            Task::Sparse => only(
                &[
                    ("dimensions", self.dimensions.is_some()),
                    ("precision or encoding", !plain),
                    ("normalise", self.normalize.is_some()),
                    ("pooling", self.pooling.is_some()),
                ],
                "dense vectors",
                model.task,
            )?,
            _ => only(&[("keep", self.keep.is_some())], "sparse vectors", model.task)?,
        }
        if self.keep == Some(0) {
            return Err("`keep` is 0: omit it, or set at least one".to_owned());
        }
        match (self.dimensions, model.dimensions) {
            (Some(0), _) => Err("`dimensions` is 0: it must be at least one".to_owned()),
            (Some(dimensions), Some(width)) if dimensions > width => {
                Err(format!("`dimensions` is {dimensions}, but this model's vectors have {width}"))
            }
            _ => self.carry.check(),
        }
    }

    /// Embedding options that are not part of a request.
    pub(crate) fn style(&self) -> EmbedStyle {
        let Self { prefix, pooling, normalize, keep, .. } = self.clone();
        EmbedStyle { prefix, pooling, normalize, keep }
    }

    /// A request for these texts.
    pub(crate) fn request(&self, texts: Vec<String>) -> EmbedRequest {
        EmbedRequest { texts, purpose: self.purpose, dimensions: self.dimensions, precision: self.precision }
    }
}

impl ScoreOptions {
    fn check(&self, model: &Description) -> Result<(), String> {
        let rerank = [("query", self.query.is_some()), ("documents", self.documents.is_some())];
        let classify = [("second", self.second.is_some())];
        let tensor = [("inputs", self.inputs.is_some()), ("outputs", self.outputs.is_some())];
        if model.task != Task::Rerank {
            only(&rerank, "cross-encoders", model.task)?;
        }
        if model.task != Task::Classify {
            only(&classify, "text classifiers", model.task)?;
        }
        if model.task != Task::Tensor {
            only(&tensor, "tabular models", model.task)?;
        }
        if model.task == Task::Rerank {
            only(
                &[("input", self.input.is_some())],
                "other models (a cross-encoder has query and documents)",
                model.task,
            )?;
        }
        if model.task == Task::Tensor {
            only(&[("raw", self.raw)], "text models", model.task)?;
            self.check_ports(model)?;
        }
        if self.top == Some(0) {
            return Err("`top` is 0: omit it, or set at least one".to_owned());
        }
        self.carry.check()
    }

    fn check_ports(&self, model: &Description) -> Result<(), String> {
        if let Some(inputs) = &self.inputs {
            if self.input.is_some() {
                return Err("both `input` and `inputs` are there: keep one".to_owned());
            }
            if let Some(unknown) = inputs.keys().find(|name| !model.inputs.contains(name)) {
                return Err(format!("inputs: the model has no input `{unknown}`{}", nearest(unknown, &model.inputs)));
            }
            if let Some(missing) = model.inputs.iter().find(|name| !inputs.contains_key(*name)) {
                return Err(format!("inputs: the model's input `{missing}` is missing: set its location in the data"));
            }
        }
        for (field, reference) in self.outputs.iter().flatten() {
            let (output, _) = split_output(reference, &model.outputs);
            if !model.outputs.iter().any(|name| name == output) {
                return Err(format!("outputs: `{field}` refers to `{output}`{}", nearest(output, &model.outputs)));
            }
            if field == "model" {
                return Err("outputs: `model` is a field of the result: choose another name".to_owned());
            }
        }
        Ok(())
    }
}

/// Splits an output reference into output name and pointer; a full name takes precedence over one that ends at a `/`.
pub(crate) fn split_output<'w>(reference: &'w str, outputs: &[String]) -> (&'w str, &'w str) {
    if outputs.iter().any(|name| name == reference) {
        return (reference, "");
    }
    reference.find('/').map_or((reference, ""), |at| reference.split_at(at))
}

fn nearest(wrong: &str, names: &[String]) -> String {
    let close = names.iter().min_by_key(|name| strsim::damerau_levenshtein(wrong, name));
    let known = names.join(", ");
    match close.filter(|name| strsim::damerau_levenshtein(wrong, name) <= 2) {
        Some(close) => format!(": did you mean `{close}`?"),
        None => format!(", but the graph has {known}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn model(task: Task) -> Description {
        let ports = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let (inputs, outputs) = (ports(&["amount", "country"]), ports(&["label", "probabilities"]));
        Description { task, dimensions: Some(384), max_tokens: None, inputs, outputs }
    }

    fn check(function: &str, task: Task, with: Value) -> Result<(), String> {
        check_options(function, &model(task), with.as_object().unwrap())
    }

    #[test]
    fn options_that_fit_the_model_are_accepted() {
        let embed = json!({"input": "body/text", "purpose": "query", "dimensions": 64, "precision": "int8",
            "normalize": false, "pooling": "last-token", "on_long": "refuse", "encoding": "base64", "carry": ["id"]});
        check("onnx/embed", Task::Embed, embed).unwrap();
        check("onnx/embed", Task::Sparse, json!({"keep": 32})).unwrap();
        check("onnx/score", Task::Rerank, json!({"query": "/q", "documents": "/hits", "raw": true, "top": 3})).unwrap();
        check("onnx/score", Task::Classify, json!({"input": "a", "second": "b"})).unwrap();
        let mapped =
            json!({"inputs": {"amount": "/total", "country": "/land"}, "outputs": {"risk": "probabilities/fraud"}});
        check("onnx/score", Task::Tensor, mapped).unwrap();
    }

    #[test]
    fn options_that_do_not_fit_are_rejected_by_name() {
        let cases = [
            ("onnx/embed", Task::Embed, json!({"dimension": 2}), "dimension"),
            ("onnx/embed", Task::Embed, json!({"dimensions": 385}), "have 384"),
            ("onnx/embed", Task::Embed, json!({"dimensions": 0}), "at least one"),
            ("onnx/embed", Task::Embed, json!({"keep": 3}), "sparse"),
            ("onnx/embed", Task::Sparse, json!({"precision": "int8"}), "dense"),
            ("onnx/embed", Task::Embed, json!({"pooling": "median"}), "median"),
            ("onnx/embed", Task::Embed, json!({"input": "/a~b"}), "~0"),
            ("onnx/embed", Task::Embed, json!({"carry": ["embedding"]}), "embedding"),
            ("onnx/embed", Task::Rerank, json!({}), "does not run"),
            ("onnx/score", Task::Rerank, json!({"input": "a"}), "query and documents"),
            ("onnx/score", Task::Classify, json!({"query": "a"}), "cross-encoders"),
            ("onnx/score", Task::Classify, json!({"top": 0}), "at least one"),
            ("onnx/score", Task::Tensor, json!({"inputs": {"amuont": "a", "country": "b"}}), "did you mean `amount`"),
            ("onnx/score", Task::Tensor, json!({"inputs": {"amount": "a"}}), "`country` is missing"),
            ("onnx/score", Task::Tensor, json!({"outputs": {"a": "nothing"}}), "label, probabilities"),
            ("onnx/score", Task::Tensor, json!({"raw": true}), "text models"),
            ("onnx/other", Task::Embed, json!({}), "unknown built-in function"),
        ];
        for (function, task, with, expected) in cases {
            let why = check(function, task, with.clone()).unwrap_err();
            assert!(why.contains(expected), "{function} {with}: {why}");
        }
    }

    #[test]
    fn carried_fields_never_overwrite_result_fields() {
        let carry: Carry = serde_json::from_value(json!(["*"])).unwrap();
        let taken = carry.take(&json!({"id": 1, "model": "mine", "tags": ["a"]}));
        assert_eq!(Value::Object(taken), json!({"id": 1, "tags": ["a"]}));
        assert!(Carry::default().take(&json!({"id": 1})).is_empty());
    }
}

//! What a manifest says under `with`: how a built-in function reads events, and what it publishes.

use nerve_core::inference::{EmbedRequest, Precision, Purpose};
use nerve_inference::{Description, EmbedStyle, Pooling, Task};
use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The fields of what a function publishes, which nothing carried over may have the name of.
const OWN: &[&str] = &[
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

/// What a function does with an event.
#[derive(Debug, Clone)]
pub(crate) enum Options {
    Embed(EmbedOptions),
    Score(ScoreOptions),
}

/// `with` of `onnx/embed`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EmbedOptions {
    /// Where the text is, or the texts.
    pub(crate) input: Option<Pointer>,
    pub(crate) purpose: Option<Purpose>,
    /// Put before each text in place of the model's own prompt.
    pub(crate) prefix: Option<String>,
    pub(crate) dimensions: Option<usize>,
    pub(crate) precision: Precision,
    #[serde(alias = "normalize")]
    pub(crate) normalise: Option<bool>,
    pub(crate) pooling: Option<Pooling>,
    /// Of a sparse vector, keep this many of the heaviest.
    pub(crate) keep: Option<usize>,
    pub(crate) on_long: OnLong,
    pub(crate) encoding: Encoding,
    pub(crate) carry: Carry,
}

/// `with` of `onnx/score`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ScoreOptions {
    /// Where the text is, or the texts; of a tabular model the features.
    pub(crate) input: Option<Pointer>,
    /// Where a second text is that belongs to the first.
    pub(crate) second: Option<Pointer>,
    pub(crate) query: Option<Pointer>,
    pub(crate) documents: Option<Pointer>,
    /// Where the value of each of the graph's inputs is.
    pub(crate) inputs: Option<BTreeMap<String, Pointer>>,
    /// The fields to publish, and which of the graph's outputs, or what in one (`probabilities/fraud`), fills each.
    pub(crate) outputs: Option<BTreeMap<String, String>>,
    /// Leaves the model's activation out.
    pub(crate) raw: bool,
    /// Publishes this many labels or documents, the best.
    pub(crate) top: Option<usize>,
    pub(crate) on_long: OnLong,
    pub(crate) carry: Carry,
}

/// What becomes of a text that is longer than the model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnLong {
    /// The model reads its beginning, and the result says so.
    #[default]
    Truncate,
    /// The event is dead-lettered.
    Refuse,
}

/// How a vector is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    /// An array of numbers.
    #[default]
    Array,
    /// The numbers' bytes, little-endian, in Base64.
    Base64,
}

/// A place in JSON (RFC 6901); a word without `/` is a field of the outermost object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pointer(pub(crate) String);

impl<'de> Deserialize<'de> for Pointer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let pointer = if text.is_empty() || text.starts_with('/') { text } else { format!("/{text}") };
        if pointer.split('~').skip(1).any(|rest| !rest.starts_with(['0', '1'])) {
            return Err(de::Error::custom(format!(
                "`{pointer}` is no JSON pointer: write ~ as ~0, and / in a name as ~1"
            )));
        }
        Ok(Self(pointer))
    }
}

/// The fields of the event's data that are published with the result.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub(crate) struct Carry(Vec<String>);

impl Carry {
    /// Takes the fields out of `data`.
    pub(crate) fn take(&self, data: &Value) -> Map<String, Value> {
        let Some(data) = data.as_object() else { return Map::new() };
        let wanted = |name: &&String| self.0.iter().any(|carried| carried == *name || carried == "*");
        let kept = data.iter().filter(|(name, _)| wanted(name) && !OWN.contains(&name.as_str()));
        kept.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    fn check(&self) -> Result<(), String> {
        match self.0.iter().find(|name| OWN.contains(&name.as_str())) {
            Some(name) => Err(format!("carry: `{name}` is a field of the result itself: leave it out")),
            None => Ok(()),
        }
    }
}

impl Options {
    /// Reads `with` for a built-in function and checks it against the model.
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
            _ => Err(format!("there is no built-in function {function}: there are onnx/embed and onnx/score")),
        }
    }
}

/// Checks `with` of a built-in function against its model, as a worker will when it loads the function.
pub fn check_options(function: &str, model: &Description, with: &Map<String, Value>) -> Result<(), String> {
    Options::read(function, model, with).map(drop)
}

/// Refuses options that only another kind of model takes.
fn only(given: &[(&str, bool)], what: &str, model: Task) -> Result<(), String> {
    match given.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(format!("`{name}` is for {what}, and this model is for {}", model.as_str())),
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
                    ("normalise", self.normalise.is_some()),
                    ("pooling", self.pooling.is_some()),
                ],
                "dense vectors",
                model.task,
            )?,
            _ => only(&[("keep", self.keep.is_some())], "sparse vectors", model.task)?,
        }
        if self.keep == Some(0) {
            return Err("`keep` is 0: leave it out, or keep at least one".to_owned());
        }
        match (self.dimensions, model.dimensions) {
            (Some(0), _) => Err("`dimensions` is 0: a vector has at least one".to_owned()),
            (Some(wanted), Some(width)) if wanted > width => {
                Err(format!("`dimensions` is {wanted}, and this model's vectors have {width}"))
            }
            _ => self.carry.check(),
        }
    }

    /// How texts are embedded, beyond what a request says.
    pub(crate) fn style(&self) -> EmbedStyle {
        let Self { prefix, pooling, normalise, keep, .. } = self.clone();
        EmbedStyle { prefix, pooling, normalise, keep }
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
            only(&tensor, "models of numbers and strings", model.task)?;
        }
        if model.task == Task::Rerank {
            only(
                &[("input", self.input.is_some())],
                "other models (a cross-encoder has query and documents)",
                model.task,
            )?;
        }
        if model.task == Task::Tensor {
            only(&[("raw", self.raw)], "models of text", model.task)?;
            self.check_ports(model)?;
        }
        if self.top == Some(0) {
            return Err("`top` is 0: leave it out, or ask for at least one".to_owned());
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
                return Err(format!("inputs: the model's input `{missing}` is missing: say where in the data it is"));
            }
        }
        for (field, wanted) in self.outputs.iter().flatten() {
            let (output, _) = split_output(wanted, &model.outputs);
            if !model.outputs.iter().any(|name| name == output) {
                return Err(format!("outputs: `{field}` asks for `{output}`{}", nearest(output, &model.outputs)));
            }
            if field == "model" {
                return Err("outputs: `model` is a field of the result itself: choose another name".to_owned());
            }
        }
        Ok(())
    }
}

/// The output that is meant, and where in it: a whole name before one that ends at a `/`.
pub(crate) fn split_output<'w>(wanted: &'w str, outputs: &[String]) -> (&'w str, &'w str) {
    if outputs.iter().any(|name| name == wanted) {
        return (wanted, "");
    }
    wanted.find('/').map_or((wanted, ""), |at| wanted.split_at(at))
}

fn nearest(wrong: &str, names: &[String]) -> String {
    let close = names.iter().min_by_key(|name| strsim::damerau_levenshtein(wrong, name));
    let known = names.join(", ");
    match close.filter(|name| strsim::damerau_levenshtein(wrong, name) <= 2) {
        Some(close) => format!(": did you mean `{close}`?"),
        None => format!(", and the graph has {known}"),
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
    fn what_fits_the_model_is_taken() {
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
    fn what_does_not_is_refused_and_named() {
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
            ("onnx/score", Task::Tensor, json!({"raw": true}), "models of text"),
            ("onnx/other", Task::Embed, json!({}), "there are onnx/embed"),
        ];
        for (function, task, with, said) in cases {
            let why = check(function, task, with.clone()).unwrap_err();
            assert!(why.contains(said), "{function} {with}: {why}");
        }
    }

    #[test]
    fn carried_fields_never_replace_the_results_own() {
        let carry: Carry = serde_json::from_value(json!(["*"])).unwrap();
        let taken = carry.take(&json!({"id": 1, "model": "mine", "tags": ["a"]}));
        assert_eq!(Value::Object(taken), json!({"id": 1, "tags": ["a"]}));
        assert!(Carry::default().take(&json!({"id": 1})).is_empty());
    }
}

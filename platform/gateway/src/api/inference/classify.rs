//! `POST /v1/classify`: labels of texts, pairs of texts or features.

use crate::api::inference::{
    ModelChoice, Usage, check_count, is_false, missing, model_docs, read_body, run,
    text::{Kind, Text, kind},
};
use crate::{
    Gateway,
    api::openapi::Docs,
    http::problem::{HttpResult, Problem},
};
use axum::{
    Json,
    extract::{Request, State},
    response::IntoResponse,
};
use nerve_core::{
    Inference,
    inference::{Classification, Label, Model, Sample},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::Arc;
use utoipa::ToSchema;

/// Samples to classify: `input` or `features`. Unknown fields are ignored.
#[derive(Deserialize, ToSchema)]
struct ClassifyRequest<'a> {
    /// The name of a model.
    #[schema(required)]
    model: Option<String>,
    /// A text, or a list of texts, of pairs of texts, or of features.
    #[serde(borrow)]
    #[schema(value_type = Option<Value>)]
    input: Option<&'a RawValue>,
    /// The features of one sample as an object or a list, or those of several.
    #[serde(borrow)]
    #[schema(value_type = Option<Value>)]
    features: Option<&'a RawValue>,
    /// Whether scores are the model's own output.
    raw_scores: Option<bool>,
    /// The number of labels per sample.
    #[schema(minimum = 1)]
    top_k: Option<usize>,
}

#[derive(Serialize, ToSchema)]
struct ClassificationList<'a> {
    object: &'static str,
    model: &'a str,
    data: Vec<ClassificationItem>,
    usage: Usage,
}

#[derive(Serialize, ToSchema)]
struct ClassificationItem {
    index: usize,
    label: Option<String>,
    score: Option<f32>,
    /// Each `label` with its `score`, the best first.
    #[schema(value_type = Vec<Object>)]
    labels: Vec<Label>,
    #[serde(skip_serializing_if = "is_false")]
    truncated: bool,
}

/// Classifies samples.
pub(crate) async fn post(State(gateway): State<Gateway>, request: Request) -> HttpResult {
    let body = read_body(&gateway, request).await?;
    let asked: ClassifyRequest<'_> = body.json("request")?;
    let (field, samples) = match (asked.input, asked.features) {
        (Some(_), Some(_)) => {
            return Err(Problem::invalid_request("`input` and `features` are both present: send one"));
        }
        (Some(input), None) => ("input", read_input(input)?),
        (None, Some(features)) => ("features", read_features(features)?),
        (None, None) => return Err(missing("input")),
    };
    check_count(&gateway, field, samples.len())?;
    if asked.top_k == Some(0) {
        return Err(Problem::invalid_request("`top_k` must be at least 1"));
    }
    let wanted = ModelChoice::Named(asked.model.as_deref().ok_or_else(|| missing("model"))?);
    let raw = asked.raw_scores.unwrap_or_default();
    let classify = |inference: Arc<dyn Inference>, model: Arc<Model>| async move {
        inference.classify(&model, samples, raw).await
    };
    let (model, classified) = run(&gateway, wanted, classify).await?;
    let usage = Usage::of(classified.iter().map(|one| one.tokens));
    let data = classified
        .into_iter()
        .enumerate()
        .map(|(index, one)| ClassificationItem::of(index, one, asked.top_k))
        .collect();
    Ok(Json(ClassificationList { object: "list", model: &model, data, usage }).into_response())
}

/// The documentation of [`post`].
pub(crate) fn docs(docs: Docs) -> Docs {
    let docs = model_docs(docs.body::<ClassifyRequest<'_>>());
    docs.json::<ClassificationList<'_>>(200, "The labels of each sample")
}

impl ClassificationItem {
    fn of(index: usize, Classification { mut labels, truncated, .. }: Classification, top: Option<usize>) -> Self {
        labels.truncate(top.unwrap_or(usize::MAX));
        let first = labels.first().cloned();
        let (label, score) = first.map(|first| (first.label, first.score)).unzip();
        Self { index, label, score, labels, truncated }
    }
}

/// One text, or a list of texts, pairs and features.
fn read_input(input: &RawValue) -> HttpResult<Vec<Sample>> {
    match kind(input) {
        Kind::String => Ok(vec![Sample::Text(read("input", input).map(|text: Text| text.0)?)]),
        Kind::Object => Ok(vec![Sample::Features(read("input", input)?)]),
        Kind::Array => {
            let items: Vec<&RawValue> = read("input", input)?;
            items.into_iter().enumerate().map(|(index, item)| read_sample(&format!("input[{index}]"), item)).collect()
        }
        Kind::Number | Kind::Other => Err(Problem::invalid_request(
            "`input` must be a text, or a list of texts, of pairs of texts, or of features as objects or lists",
        )),
    }
}

fn read_sample(place: &str, item: &RawValue) -> HttpResult<Sample> {
    match kind(item) {
        Kind::String => Ok(Sample::Text(read(place, item).map(|text: Text| text.0)?)),
        Kind::Object => Ok(Sample::Features(read(place, item)?)),
        // Two strings are a pair of texts; as features they go into `features`.
        Kind::Array => match serde_json::from_str::<(Text, Text)>(item.get()) {
            Ok((first, second)) => Ok(Sample::Pair(first.0, second.0)),
            Err(_) => Ok(Sample::Features(read(place, item)?)),
        },
        Kind::Number => {
            let detail = format!("`{place}` is a number: the features of one sample are a list in that list, [[1, 2]]");
            Err(Problem::invalid_request(detail))
        }
        Kind::Other => Err(Problem::invalid_request(format!("`{place}` is neither a text nor a pair nor features"))),
    }
}

/// The features of one sample, as an object or a list of numbers and strings, or a list of samples.
fn read_features(features: &RawValue) -> HttpResult<Vec<Sample>> {
    match kind(features) {
        Kind::Object => Ok(vec![Sample::Features(read("features", features)?)]),
        Kind::Array => {
            let items: Vec<&RawValue> = read("features", features)?;
            let is_sample = |item: &&RawValue| matches!(kind(item), Kind::Object | Kind::Array);
            if items.is_empty() || items.iter().all(is_sample) {
                let sample = |item: &RawValue| Ok(Sample::Features(read("features", item)?));
                return items.into_iter().map(sample).collect();
            }
            Ok(vec![Sample::Features(read("features", features)?)])
        }
        Kind::String | Kind::Number | Kind::Other => {
            Err(Problem::invalid_request("`features` must be an object, a list, or a list of objects or lists"))
        }
    }
}

fn read<'v, T: Deserialize<'v>>(place: &str, value: &'v RawValue) -> HttpResult<T> {
    serde_json::from_str(value.get())
        .map_err(|error| Problem::invalid_request(format!("`{place}` cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn input(json: &str) -> Result<Vec<Sample>, String> {
        read_input(serde_json::from_str(json).unwrap()).map_err(|problem| problem.detail().to_owned())
    }

    fn features(json: &str) -> Result<Vec<Sample>, String> {
        read_features(serde_json::from_str(json).unwrap()).map_err(|problem| problem.detail().to_owned())
    }

    #[test]
    fn all_kinds_of_samples_are_read() {
        assert_eq!(input(r#""a\ud800""#).unwrap(), [Sample::Text("a\u{FFFD}".into())]);
        let mixed = input(r#"["a", ["b", "c\udc00"], {"x": 1}, [1, 2.5], ["b", 1]]"#).unwrap();
        let expected = [
            Sample::Text("a".into()),
            Sample::Pair("b".into(), "c\u{FFFD}".into()),
            Sample::Features(json!({"x": 1})),
            Sample::Features(json!([1, 2.5])),
            Sample::Features(json!(["b", 1])),
        ];
        assert_eq!(mixed, expected);
        assert!(input("[1, 2]").unwrap_err().contains("[[1, 2]]"));
        assert!(input("[\"a\", null]").unwrap_err().contains("input[1]"));
        assert!(input("7").unwrap_err().contains("`input`"));
    }

    #[test]
    fn features_are_one_sample_or_several() {
        assert_eq!(features(r#"{"x": 1}"#).unwrap(), [Sample::Features(json!({"x": 1}))]);
        assert_eq!(features(r#"[1, "a"]"#).unwrap(), [Sample::Features(json!([1, "a"]))]);
        assert_eq!(features(r#"["a", "b"]"#).unwrap(), [Sample::Features(json!(["a", "b"]))]);
        assert_eq!(features(r#"[[1], {"x": 2}]"#).unwrap().len(), 2);
        assert!(features("[]").unwrap().is_empty());
        assert!(features("\"a\"").is_err());
    }
}

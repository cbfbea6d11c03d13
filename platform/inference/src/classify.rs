//! Classification of texts and features, and raw outputs for features.

use crate::{
    batcher::CallRounds,
    blocking::run_cpu_bound,
    head::Head,
    loaded::{Admission, InferenceResult, LoadedKind, LoadedModel, activate, collect, run_text},
    task::Task,
    tensor::{Feed, Input, TensorModel},
};
use nerve_core::inference::{Classification, InferenceError, Label, Sample};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// Maximum number of elements of a blank input.
const MAX_BLANK_ELEMENTS: usize = 1 << 20;

impl LoadedModel {
    /// Classifies each sample.
    ///
    /// # Errors
    /// If the model does not classify such samples, its queue is full, or it fails.
    pub async fn classify(
        &self,
        samples: Vec<Sample>,
        raw: bool,
        admission: Admission,
    ) -> InferenceResult<Vec<Classification>> {
        if let LoadedKind::Tensor(model) = &self.kind {
            let mut feeds = Vec::with_capacity(samples.len());
            for sample in &samples {
                let Sample::Features(features) = sample else {
                    return Err(InferenceError::Invalid(format!("`{}` takes features, not text", self.name)));
                };
                feeds.push(feed_of(model, features).map_err(InferenceError::Invalid)?);
            }
            let rows = run_feeds(model, feeds, admission).await?;
            return Ok(rows
                .iter()
                .map(|row| Classification { labels: model.labels(row), tokens: 0, truncated: false })
                .collect());
        }
        let model = self.text(&[Task::Classify, Task::Rerank], "classify")?;
        let tokenizer = model.tokenizer.clone();
        let length = |sample: &Sample| match sample {
            Sample::Text(text) => text.len(),
            Sample::Pair(first, second) => first.len() + second.len(),
            Sample::Features(_) => 0,
        };
        let tokens = run_cpu_bound(samples, length, move |sample| match sample {
            Sample::Text(text) => tokenizer.text(text),
            Sample::Pair(first, second) => tokenizer.pair(first, second),
            Sample::Features(_) => Err("this model takes text, not features".to_owned()),
        });
        let tokens = tokens.await?;
        let token_counts: Vec<(usize, bool)> = tokens.iter().map(|tokens| (tokens.len(), tokens.truncated)).collect();
        let rows = run_text(model, tokens, None, admission).await?;
        let finish = |(mut row, (tokens, truncated)): (Vec<f32>, (usize, bool))| {
            activate(&model.spec.head, raw, &mut row);
            Classification { labels: labels_of_row(&model.spec.head, &row), tokens, truncated }
        };
        Ok(rows.into_iter().zip(token_counts).map(finish).collect())
    }

    /// Runs a tabular model on one sample. Returns its outputs by name, and its labels.
    ///
    /// # Errors
    /// If the model does not accept these features, its queue is full, or it fails.
    pub async fn run(
        &self,
        features: &Value,
        admission: Admission,
    ) -> InferenceResult<(Map<String, Value>, Vec<Label>)> {
        let LoadedKind::Tensor(model) = &self.kind else {
            return Err(self.unsupported("take features: it reads text"));
        };
        let feed = feed_of(model, features).map_err(InferenceError::Invalid)?;
        let mut rows = run_feeds(model, vec![feed], admission).await?;
        let row = rows.pop().ok_or_else(|| InferenceError::Failed("the model returned no output".to_owned()))?;
        let labels = model.labels(&row);
        Ok((row, labels))
    }

    /// Features with all elements zero; `None` if the model reads text or requires too many elements.
    pub(crate) fn blank_features(&self) -> Option<Value> {
        let LoadedKind::Tensor(model) = &self.kind else { return None };
        let blank = |input: &Input| {
            let sizes = input.shape.iter().map(|size| usize::try_from(*size).unwrap_or(1));
            let count = sizes.fold(1, usize::saturating_mul);
            (count <= MAX_BLANK_ELEMENTS).then(|| (input.name.clone(), vec![Value::from(0); count].into()))
        };
        model.signature.inputs.iter().map(blank).collect::<Option<Map<String, Value>>>().map(Value::Object)
    }
}

async fn run_feeds(
    model: &TensorModel,
    feeds: Vec<Feed>,
    admission: Admission,
) -> InferenceResult<Vec<Map<String, Value>>> {
    if admission == Admission::Refuse {
        model.check_capacity()?;
    }
    let mut handles = Vec::with_capacity(feeds.len());
    let mut rounds = CallRounds::of(admission.into());
    for feed in feeds {
        handles.push(model.submit(feed, &mut rounds).await);
    }
    collect(handles).await
}

/// Labels with scores, best first.
fn labels_of_row(head: &Head, row: &[f32]) -> Vec<Label> {
    let names: &[String] = if let Head::Labels { names, .. } = head { names } else { &[] };
    let label = |(index, score): (usize, &f32)| {
        let label = names.get(index).cloned().unwrap_or_else(|| format!("LABEL_{index}"));
        Label { label, score: *score }
    };
    sorted(row.iter().enumerate().map(label).collect())
}

fn sorted(mut labels: Vec<Label>) -> Vec<Label> {
    labels.sort_by(|a, b| b.score.total_cmp(&a.score));
    labels
}

/// Feed from features by input name, or from a value for a single input.
fn feed_of(model: &TensorModel, features: &Value) -> Result<Feed, String> {
    let inputs = &model.signature.inputs;
    let values: Vec<Cow<'_, Value>> = match (features, inputs.as_slice()) {
        (Value::Object(labels_of_row), inputs) => {
            let labels_of_row = |input: &Input| {
                let names = || inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>().join(", ");
                let value = labels_of_row.get(&input.name).map(Cow::Borrowed);
                value.ok_or_else(|| format!("the feature `{}` is missing: the model takes {}", input.name, names()))
            };
            inputs.iter().map(labels_of_row).collect::<Result<_, _>>()?
        }
        (value, [_]) => vec![Cow::Borrowed(value)],
        (Value::Array(ordered), inputs) if ordered.len() == inputs.len() => ordered.iter().map(Cow::Borrowed).collect(),
        _ => return Err(format!("the model takes {} features, by name or in order", inputs.len())),
    };
    Feed::of(&model.signature, &values)
}

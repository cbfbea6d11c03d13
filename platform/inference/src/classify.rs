//! Texts and features to labels, and features to whatever the graph gives.

use crate::{
    batcher::Turns,
    blocking::off_thread,
    head::Head,
    loaded::{Admission, Answer, Kind, Loaded, activate, collect, run_text},
    task::Task,
    tensor::{Feed, Input, TensorModel},
};
use nerve_core::inference::{Classification, InferenceError, Label, Sample};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// The most numbers or strings that one blank input may hold.
const MAX_BLANKS: usize = 1 << 20;

impl Loaded {
    /// What the model says of each sample.
    ///
    /// # Errors
    /// Where the model cannot classify such samples, has as much to do as it may, or fails.
    pub async fn classify(&self, samples: Vec<Sample>, raw: bool, admission: Admission) -> Answer<Vec<Classification>> {
        if let Kind::Tensor(model) = &self.kind {
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
        let tokens = off_thread(samples, length, move |sample| match sample {
            Sample::Text(text) => tokenizer.text(text),
            Sample::Pair(first, second) => tokenizer.pair(first, second),
            Sample::Features(_) => Err("this model takes text, not features".to_owned()),
        });
        let tokens = tokens.await?;
        let counted: Vec<(usize, bool)> = tokens.iter().map(|tokens| (tokens.len(), tokens.truncated)).collect();
        let rows = run_text(model, tokens, None, admission).await?;
        let finish = |(mut row, (tokens, truncated)): (Vec<f32>, (usize, bool))| {
            activate(&model.layout.head, raw, &mut row);
            Classification { labels: named(&model.layout.head, &row), tokens, truncated }
        };
        Ok(rows.into_iter().zip(counted).map(finish).collect())
    }

    /// What a model of numbers and strings gives for one sample: by output, and the labels in it.
    ///
    /// # Errors
    /// Where the model takes no features, or not these, has as much to do as it may, or fails.
    pub async fn run(&self, features: &Value, admission: Admission) -> Answer<(Map<String, Value>, Vec<Label>)> {
        let Kind::Tensor(model) = &self.kind else { return Err(self.unfit("take features: it reads text")) };
        let feed = feed_of(model, features).map_err(InferenceError::Invalid)?;
        let mut rows = run_feeds(model, vec![feed], admission).await?;
        let row = rows.pop().ok_or_else(|| InferenceError::Failed("the model gave nothing".to_owned()))?;
        let labels = model.labels(&row);
        Ok((row, labels))
    }

    /// Features for a model of numbers and strings, all of them zero; none where it takes too many, or reads text.
    pub(crate) fn blank_features(&self) -> Option<Value> {
        let Kind::Tensor(model) = &self.kind else { return None };
        let blank = |input: &Input| {
            let sizes = input.shape.iter().map(|size| usize::try_from(*size).unwrap_or(1));
            let count = sizes.fold(1, usize::saturating_mul);
            (count <= MAX_BLANKS).then(|| (input.name.clone(), vec![Value::from(0); count].into()))
        };
        model.signature.inputs.iter().map(blank).collect::<Option<Map<String, Value>>>().map(Value::Object)
    }
}

async fn run_feeds(model: &TensorModel, feeds: Vec<Feed>, admission: Admission) -> Answer<Vec<Map<String, Value>>> {
    if admission == Admission::Refuse {
        model.has_room()?;
    }
    let mut tickets = Vec::with_capacity(feeds.len());
    let mut turns = Turns::of(admission.into());
    for feed in feeds {
        tickets.push(model.submit(feed, &mut turns).await);
    }
    collect(tickets).await
}

/// Labels with their scores, the highest first.
fn named(head: &Head, row: &[f32]) -> Vec<Label> {
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

/// Features by the names of the graph's inputs, or whatever fills its only one.
fn feed_of(model: &TensorModel, features: &Value) -> Result<Feed, String> {
    let inputs = &model.signature.inputs;
    let values: Vec<Cow<'_, Value>> = match (features, inputs.as_slice()) {
        (Value::Object(named), inputs) => {
            let named = |input: &Input| {
                let names = || inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>().join(", ");
                let value = named.get(&input.name).map(Cow::Borrowed);
                value.ok_or_else(|| format!("the feature `{}` is missing: the model takes {}", input.name, names()))
            };
            inputs.iter().map(named).collect::<Result<_, _>>()?
        }
        (value, [_]) => vec![Cow::Borrowed(value)],
        (Value::Array(ordered), inputs) if ordered.len() == inputs.len() => ordered.iter().map(Cow::Borrowed).collect(),
        _ => return Err(format!("the model takes {} features, by name or in order", inputs.len())),
    };
    Feed::of(&model.signature, &values)
}

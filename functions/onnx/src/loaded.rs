//! A model in memory, and what may be asked of it.

use crate::{
    batcher::{JobError, Ticket},
    causal::CausalModel,
    folder::{Description, Task},
    head::{Head, Pooling},
    tensor::{Feed, TensorModel},
    text::{TextJob, TextModel},
    tokens::{LONG, Tokens},
    vector,
};
use futures::{StreamExt, stream::BoxStream};
use nerve_core::inference::{
    Classification, EmbedRequest, Embedding, GenerateRequest, InferenceError, Label, Piece, Relevance, RerankRequest,
    Sample,
};
use serde_json::{Map, Value};
use std::{borrow::Cow, sync::Arc};

/// A model in memory, shared by everything that names it.
pub(crate) struct Loaded {
    pub(crate) name: String,
    pub(crate) description: Description,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Text(TextModel),
    Causal(CausalModel),
    Tensor(TensorModel),
}

/// What to do when a model has as much to do as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Wait for room: whoever calls takes no more until this is done.
    Wait,
    /// Say so at once.
    Refuse,
}

/// How texts are embedded, beyond what a request says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct EmbedStyle {
    /// Put before each text in place of the model's own prompt.
    pub(crate) prefix: Option<String>,
    pub(crate) pooling: Option<Pooling>,
    pub(crate) normalise: Option<bool>,
    /// Of a sparse vector, keep this many of the heaviest.
    pub(crate) keep: Option<usize>,
}

type Answer<T> = Result<T, InferenceError>;

impl From<JobError> for InferenceError {
    fn from(error: JobError) -> Self {
        let text = error.to_string();
        match error {
            JobError::Busy(_) => Self::Busy(text),
            JobError::Failed(_) | JobError::Panicked => Self::Failed(text),
            JobError::Closed => Self::Unavailable(text),
        }
    }
}

impl Loaded {
    fn text(&self, wanted: &[Task], what: &str) -> Answer<&TextModel> {
        match &self.kind {
            Kind::Text(model) if wanted.contains(&self.description.task) => Ok(model),
            _ => Err(self.unfit(what)),
        }
    }

    fn unfit(&self, what: &str) -> InferenceError {
        let task = self.description.task.as_str();
        InferenceError::Invalid(format!("`{}` is a model for {task}, which cannot {what}", self.name))
    }

    /// One vector a text.
    pub(crate) async fn embed(
        &self,
        request: EmbedRequest,
        style: &EmbedStyle,
        admission: Admission,
    ) -> Answer<Vec<Embedding>> {
        let model = self.text(&[Task::Embed, Task::Sparse], "embed")?;
        let prompts = &model.layout.prompts;
        let prompt = style.prefix.as_deref().unwrap_or(match request.purpose {
            Some(nerve_core::inference::Purpose::Query) => &prompts.query,
            Some(nerve_core::inference::Purpose::Document) => &prompts.document,
            None => &prompts.default,
        });
        let texts: Vec<String> = match prompt {
            "" => request.texts,
            prompt => request.texts.iter().map(|text| format!("{prompt}{text}")).collect(),
        };
        let tokenizer = model.tokenizer.clone();
        let tokens = off_thread(texts, String::len, move |text| tokenizer.text(text)).await?;
        let counted: Vec<(usize, bool)> = tokens.iter().map(|tokens| (tokens.len(), tokens.truncated)).collect();
        let rows = run_text(model, tokens, style.pooling, admission).await?;
        let finish = |(row, (tokens, truncated)): (Vec<f32>, (usize, bool))| {
            let vector = match &model.layout.head {
                Head::Vector { normalise, .. } => {
                    let normalise = style.normalise.unwrap_or(*normalise);
                    let mut row = row;
                    if normalise {
                        vector::normalise(&mut row);
                    }
                    vector::shorten(&mut row, request.dimensions, normalise).map_err(InferenceError::Invalid)?;
                    vector::convert(row, request.precision)
                }
                _ => vector::sparse(&row, style.keep.or(request.dimensions)),
            };
            Ok(Embedding { vector, tokens, truncated })
        };
        rows.into_iter().zip(counted).map(finish).collect()
    }

    /// One relevance a document.
    pub(crate) async fn rerank(&self, request: RerankRequest, admission: Admission) -> Answer<Vec<Relevance>> {
        let model = self.text(&[Task::Rerank], "rerank: that takes a cross-encoder with one label")?;
        let RerankRequest { query, documents, raw } = request;
        let tokenizer = model.tokenizer.clone();
        let length = query.len();
        let tokens =
            off_thread(documents, move |text| text.len() + length, move |text| tokenizer.pair(&query, text)).await?;
        let counted: Vec<(usize, bool)> = tokens.iter().map(|tokens| (tokens.len(), tokens.truncated)).collect();
        let rows = run_text(model, tokens, None, admission).await?;
        let finish = |(mut row, (tokens, truncated)): (Vec<f32>, (usize, bool))| {
            activate(&model.layout.head, raw, &mut row);
            Relevance { score: row.first().copied().unwrap_or_default(), tokens, truncated }
        };
        Ok(rows.into_iter().zip(counted).map(finish).collect())
    }

    /// What the model says of each sample.
    pub(crate) async fn classify(
        &self,
        samples: Vec<Sample>,
        raw: bool,
        admission: Admission,
    ) -> Answer<Vec<Classification>> {
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

    /// What the model writes after a conversation, as it writes it.
    pub(crate) async fn generate(
        self: Arc<Self>,
        request: GenerateRequest,
    ) -> Answer<BoxStream<'static, Answer<Piece>>> {
        let Kind::Causal(model) = &self.kind else { return Err(self.unfit("write")) };
        let pieces = model.write(request).await?;
        // The model stays in memory as long as somebody reads.
        Ok(pieces.inspect(move |_| _ = &self).boxed())
    }

    /// What a model of numbers and strings gives for one sample: by output, and the labels in it.
    pub(crate) async fn run(&self, features: &Value, admission: Admission) -> Answer<(Map<String, Value>, Vec<Label>)> {
        let Kind::Tensor(model) = &self.kind else { return Err(self.unfit("take features: it reads text")) };
        let feed = feed_of(model, features).map_err(InferenceError::Invalid)?;
        let mut rows = run_feeds(model, vec![feed], admission).await?;
        let row = rows.pop().ok_or_else(|| InferenceError::Failed("the model gave nothing".to_owned()))?;
        let labels = model.labels(&row);
        Ok((row, labels))
    }
}

/// Tokenises; where there is much of it, not on an async thread.
pub(crate) async fn off_thread<T: Send + 'static, R: Send + 'static>(
    items: Vec<T>,
    length: impl Fn(&T) -> usize,
    tokenise: impl Fn(&T) -> Result<R, String> + Send + 'static,
) -> Answer<Vec<R>> {
    let total: usize = items.iter().map(length).sum();
    let all = move || items.iter().map(tokenise).collect::<Result<Vec<R>, String>>();
    let tokens = if total <= LONG {
        all()
    } else {
        let ended = tokio::task::spawn_blocking(all).await;
        ended.map_err(|error| InferenceError::Failed(format!("the tokenizer failed: {error}")))?
    };
    tokens.map_err(InferenceError::Invalid)
}

async fn run_text(
    model: &TextModel,
    tokens: Vec<Tokens>,
    pooling: Option<Pooling>,
    admission: Admission,
) -> Answer<Vec<Vec<f32>>> {
    if admission == Admission::Refuse {
        model.has_room()?;
    }
    let mut tickets = Vec::with_capacity(tokens.len());
    for tokens in tokens {
        tickets.push(model.submit(TextJob { tokens, pooling }).await?);
    }
    collect(tickets).await
}

async fn run_feeds(model: &TensorModel, feeds: Vec<Feed>, admission: Admission) -> Answer<Vec<Map<String, Value>>> {
    if admission == Admission::Refuse {
        model.has_room()?;
    }
    let mut tickets = Vec::with_capacity(feeds.len());
    for feed in feeds {
        tickets.push(model.submit(feed).await?);
    }
    collect(tickets).await
}

async fn collect<R>(tickets: Vec<Ticket<R>>) -> Answer<Vec<R>> {
    let mut rows = Vec::with_capacity(tickets.len());
    for ticket in tickets {
        rows.push(ticket.await?);
    }
    Ok(rows)
}

fn activate(head: &Head, raw: bool, row: &mut [f32]) {
    if let Head::Relevance { activation } | Head::Labels { activation, .. } = head
        && !raw
    {
        activation.apply(row);
    }
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
            let named = |input: &crate::tensor::Input| {
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

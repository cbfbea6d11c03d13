//! `onnx/embed` and `onnx/score`.

use crate::{
    options::{EmbedOptions, OnLong, Options, Pointer, ScoreOptions, split_output},
    payload::{self, BestLabels, EncodedVector, LabeledText, ModelResult, PublishedData, ScoredDocument, Texts},
};
use async_trait::async_trait;
use futures::future::join_all;
use nerve_core::{
    Context, Emission, Event, EventType, Fault, Function, FunctionError, Outcome,
    inference::{Classification, Embedding, InferenceError, RerankRequest, Sample},
};
use nerve_events::documents::TextEmbedding;
use nerve_inference::{Admission, LoadedModel, Task};
use serde_json::{Map, Value};
use std::{sync::Arc, time::Duration};

/// Default locations of texts.
const TEXT_POINTERS: &[&str] = &["/text", "/content", "/input"];
const QUERY_POINTERS: &[&str] = &["/query", "/question"];
const DOCUMENT_POINTERS: &[&str] = &["/documents", "/document", "/text"];
const FEATURE_POINTERS: &[&str] = &["/features", "/input", ""];

/// A loaded built-in function.
pub(crate) struct BuiltinFunction {
    pub(crate) loaded: Arc<LoadedModel>,
    pub(crate) options: Options,
    /// Timeout per event.
    pub(crate) timeout: Duration,
    pub(crate) emits: EventType,
}

#[async_trait]
impl Function for BuiltinFunction {
    async fn invoke(&self, batch: Vec<Event>, _context: Context) -> Vec<Outcome> {
        join_all(batch.iter().map(|event| self.call(event))).await
    }
}

impl BuiltinFunction {
    async fn call(&self, event: &Event) -> Outcome {
        let result = tokio::time::timeout(self.timeout, self.process(event)).await.unwrap_or_else(|_| {
            let limit = self.timeout;
            Err(InferenceError::Timeout(format!("the model timed out after {limit:?} (`timeout` in nerve.toml)")))
        });
        let data = result.map_err(|error| FunctionError::new(fault(&error), error.to_string()))?;
        Ok(vec![Emission {
            ty: self.emits.clone(),
            data: data.into(),
            content_type: None,
            subject: event.subject.clone(),
            partition_key: None,
        }])
    }

    async fn process(&self, event: &Event) -> Result<Vec<u8>, InferenceError> {
        let data = payload::read(event).map_err(InferenceError::Invalid)?;
        let (result, carry) = match &self.options {
            Options::Embed(options) => (self.embed(options, &data).await?, &options.carry),
            Options::Score(options) => (self.score(options, &data).await?, &options.carry),
        };
        let published = PublishedData { model: &self.loaded.name, result, carried: carry.take(&data) };
        serde_json::to_vec(&published).map_err(|error| InferenceError::Failed(error.to_string()))
    }

    async fn embed(&self, options: &EmbedOptions, data: &Value) -> Result<ModelResult, InferenceError> {
        let texts = read_texts(data, options.input.as_ref(), TEXT_POINTERS, "input")?;
        let is_one = texts.is_one();
        let request = options.request(texts.into_vec());
        let embeddings = self.loaded.embed(request, &options.style(), Admission::Wait).await?;
        let encoded = |Embedding { vector, tokens, truncated }| {
            self.check_length(truncated, options.on_long)?;
            Ok(TextEmbedding { embedding: EncodedVector::of(vector, options.encoding), tokens, truncated })
        };
        let mut embeddings = embeddings.into_iter().map(encoded).collect::<Result<Vec<_>, InferenceError>>()?;
        let width = options.dimensions.or(self.loaded.description.dimensions);
        let dimensions = width.filter(|_| self.loaded.description.task == Task::Embed);
        Ok(match embeddings.pop_if(|_| is_one) {
            Some(one) => ModelResult::Embedding { dimensions, one },
            None => ModelResult::Embeddings { dimensions, embeddings },
        })
    }

    async fn score(&self, options: &ScoreOptions, data: &Value) -> Result<ModelResult, InferenceError> {
        match self.loaded.description.task {
            Task::Rerank => self.rerank(options, data).await,
            Task::Tensor => self.run(options, data).await,
            _ => self.classify(options, data).await,
        }
    }

    async fn rerank(&self, options: &ScoreOptions, data: &Value) -> Result<ModelResult, InferenceError> {
        let query =
            payload::find(data, options.query.as_ref(), QUERY_POINTERS, "query").map_err(InferenceError::Invalid)?;
        let query = query.as_str().ok_or_else(|| InferenceError::Invalid("its `query` is not a text".to_owned()))?;
        let documents = read_texts(data, options.documents.as_ref(), DOCUMENT_POINTERS, "documents")?;
        let is_one = documents.is_one();
        let request = RerankRequest { query: query.to_owned(), documents: documents.into_vec(), raw: options.raw };
        let relevance = self.loaded.rerank(request, Admission::Wait).await?;
        let mut results = Vec::with_capacity(relevance.len());
        for (index, one) in relevance.into_iter().enumerate() {
            self.check_length(one.truncated, options.on_long)?;
            let index = (!is_one).then_some(index);
            results.push(ScoredDocument { index, score: one.score, tokens: one.tokens, truncated: one.truncated });
        }
        results.sort_by(|a, b| b.score.total_cmp(&a.score));
        results.truncate(options.top.unwrap_or(usize::MAX));
        Ok(match results.pop_if(|_| is_one) {
            Some(one) => ModelResult::Score(one),
            None => ModelResult::Scores { results },
        })
    }

    async fn classify(&self, options: &ScoreOptions, data: &Value) -> Result<ModelResult, InferenceError> {
        let texts = read_texts(data, options.input.as_ref(), TEXT_POINTERS, "input")?;
        let is_one = texts.is_one();
        let samples = match (&options.second, texts) {
            (None, texts) => texts.into_vec().into_iter().map(Sample::Text).collect(),
            (Some(second), Texts::One(first)) => match read_texts(data, Some(second), TEXT_POINTERS, "second")? {
                Texts::One(second) => vec![Sample::Pair(first, second)],
                Texts::Many(_) => return Err(InferenceError::Invalid("its `second` is not a single text".to_owned())),
            },
            (Some(_), Texts::Many(_)) => {
                return Err(InferenceError::Invalid("with `second`, its `input` must be a single text".to_owned()));
            }
        };
        let classified = self.loaded.classify(samples, options.raw, Admission::Wait).await?;
        let labeled = |Classification { labels, tokens, truncated }| {
            self.check_length(truncated, options.on_long)?;
            Ok(LabeledText { best: BestLabels::of(labels, options.top), tokens, truncated })
        };
        let mut results = classified.into_iter().map(labeled).collect::<Result<Vec<_>, InferenceError>>()?;
        Ok(match results.pop_if(|_| is_one) {
            Some(one) => ModelResult::Labels(one),
            None => ModelResult::LabeledTexts { results },
        })
    }

    /// Runs a model with numeric and string inputs.
    async fn run(&self, options: &ScoreOptions, data: &Value) -> Result<ModelResult, InferenceError> {
        let features = match &options.inputs {
            Some(inputs) => {
                let value = |(name, Pointer(pointer)): (&String, &Pointer)| {
                    let value = data.pointer(pointer).cloned();
                    let missing = || InferenceError::Invalid(format!("its data has nothing at {pointer} (`{name}`)"));
                    Ok((name.clone(), value.ok_or_else(missing)?))
                };
                Value::Object(inputs.iter().map(value).collect::<Result<Map<_, _>, InferenceError>>()?)
            }
            None => {
                let found = payload::find(data, options.input.as_ref(), FEATURE_POINTERS, "input");
                found.map_err(InferenceError::Invalid)?.clone()
            }
        };
        let (outputs, labels) = self.loaded.run(&features, Admission::Wait).await?;
        let Some(requested) = &options.outputs else {
            let best = (!labels.is_empty()).then(|| BestLabels::of(labels, options.top));
            return Ok(ModelResult::Outputs { outputs, best });
        };
        let names = &self.loaded.description.outputs;
        let field = |(field, requested): (&String, &String)| {
            let (output, pointer) = split_output(requested, names);
            let value = outputs.get(output).and_then(|value| value.pointer(pointer)).cloned();
            let missing = || InferenceError::Failed(format!("the model's outputs have no `{requested}` (`{field}`)"));
            Ok((field.clone(), value.ok_or_else(missing)?))
        };
        Ok(ModelResult::Mapped(requested.iter().map(field).collect::<Result<Map<_, _>, InferenceError>>()?))
    }

    fn check_length(&self, truncated: bool, on_long: OnLong) -> Result<(), InferenceError> {
        if !truncated || on_long == OnLong::Truncate {
            return Ok(());
        }
        let limit = self.loaded.description.max_tokens.unwrap_or_default();
        Err(InferenceError::Invalid(format!(
            "a text has more than the model's limit of {limit} tokens; use with = {{ on_long = \"truncate\" }} to truncate it"
        )))
    }
}

fn read_texts(data: &Value, pointer: Option<&Pointer>, defaults: &[&str], key: &str) -> Result<Texts, InferenceError> {
    payload::texts(data, pointer, defaults, key).map_err(InferenceError::Invalid)
}

fn fault(error: &InferenceError) -> Fault {
    match error {
        InferenceError::Invalid(_) => Fault::Invalid,
        InferenceError::Busy(_) | InferenceError::Unavailable(_) => Fault::Retry { after: None },
        InferenceError::Timeout(_) => Fault::Timeout,
        InferenceError::Failed(_) => Fault::Crash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_model_is_retried_and_a_failed_one_crashes() {
        assert_eq!(fault(&InferenceError::Failed("a panic".into())), Fault::Crash);
        assert_eq!(fault(&InferenceError::Busy("full".into())), Fault::Retry { after: None });
    }
}

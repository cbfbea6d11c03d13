//! `rag/generate`: `documents.retrieved` or `documents.reranked` → `answer.generated`, without a language model.

use crate::{
    extract::{self, Answer, Limits},
    functions::{Frame, inference_failed, invalid},
    index::Hit,
};
use async_trait::async_trait;
use futures::future::{join_all, try_join};
use nerve_core::{
    Context, Event, Function, FunctionError, Inference, Outcome,
    inference::{EmbedRequest, Model, Purpose, Vector},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Chunks whose sentences are looked at, and the most sentences.
const LOOKED_AT: (usize, usize) = (5, 48);

/// `with` of `rag/generate`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct GenerateOptions {
    /// The most sentences of an answer.
    pub(crate) sentences: usize,
    /// How much the best sentence must have to do with the question, from 0 to 1.
    pub(crate) threshold: f32,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { sentences: 3, threshold: 0.4 }
    }
}

/// The function, loaded.
pub(crate) struct Generator {
    pub(crate) frame: Frame,
    pub(crate) inference: Arc<dyn Inference>,
    pub(crate) model: Model,
    pub(crate) limits: Limits,
}

#[derive(Deserialize)]
struct Given {
    question: String,
    documents: Vec<Hit>,
    /// Whatever else the prompt had goes along.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Serialize)]
struct Generated {
    question: String,
    #[serde(flatten)]
    answer: Answer,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[async_trait]
impl Function for Generator {
    async fn invoke(&self, batch: Vec<Event>, _context: Context) -> Vec<Outcome> {
        join_all(batch.iter().map(|event| self.frame.within(self.generate(event)))).await
    }
}

impl Generator {
    async fn generate(&self, event: &Event) -> Outcome {
        let given: Result<Given, _> = serde_json::from_slice(&event.data);
        let Given { question, mut documents, mut rest } =
            given.map_err(|error| invalid(format!("its data is not a question with documents: {error}")))?;
        for own in ["answer", "answered", "confidence", "citations"] {
            rest.remove(own);
        }
        documents.truncate(LOOKED_AT.0);
        let sentences = extract::sentences(&documents, LOOKED_AT.1);
        let texts = sentences.iter().map(|sentence| sentence.text.clone()).collect();
        let (asked, said) =
            try_join(self.embed(vec![question.clone()], Purpose::Query), self.embed(texts, Purpose::Document)).await?;
        let asked = asked.first().map(Vec::as_slice).unwrap_or_default();
        let answer = extract::answer(&documents, &sentences, &said, (&question, asked), self.limits);
        self.frame.emission(event, &Generated { question, answer, rest })
    }

    async fn embed(&self, texts: Vec<String>, purpose: Purpose) -> Result<Vec<Vec<f32>>, FunctionError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let request = EmbedRequest { texts, purpose: Some(purpose), ..EmbedRequest::default() };
        let embedded = self.inference.embed(&self.model, request).await.map_err(|error| inference_failed(&error))?;
        let dense = |vector: Vector| match vector {
            Vector::F32(numbers) => Ok(numbers),
            _ => Err(invalid("the model gives no dense vectors: name one for embedding")),
        };
        embedded.into_iter().map(|one| dense(one.vector)).collect()
    }
}

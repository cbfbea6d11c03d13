//! `rag/rerank`: `documents.retrieved` → `documents.reranked`, by a cross-encoder or by likeness.

use crate::{
    embedder::{Embedder, cosine},
    functions::{Frame, inference_failed, invalid},
    index::Hit,
};
use async_trait::async_trait;
use futures::future::join_all;
use nerve_core::{
    Context, Event, Function, FunctionError, Outcome,
    inference::{Purpose, RerankRequest},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `with` of `rag/rerank`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RerankOptions {
    /// The most documents that are kept.
    pub(crate) limit: usize,
    /// How much the model's own relevance weighs.
    pub(crate) relevance: f32,
    /// How much the place among the retrieved weighs.
    pub(crate) retrieved: f32,
}

impl Default for RerankOptions {
    fn default() -> Self {
        Self { limit: 5, relevance: 1.0, retrieved: 0.5 }
    }
}

/// The function, loaded.
pub(crate) struct Reranker {
    pub(crate) frame: Frame,
    pub(crate) embedder: Embedder,
    /// Whether the model reads question and document together.
    pub(crate) cross_encoder: bool,
    pub(crate) options: RerankOptions,
}

#[derive(Serialize, Deserialize)]
struct Retrieved {
    question: String,
    documents: Vec<Ranked>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
struct Ranked {
    #[serde(flatten)]
    hit: Hit,
    /// From 0 to 1, as the model says.
    #[serde(default)]
    relevance: f32,
}

#[async_trait]
impl Function for Reranker {
    async fn invoke(&self, batch: Vec<Event>, _context: Context) -> Vec<Outcome> {
        join_all(batch.iter().map(|event| self.frame.within(self.rerank(event)))).await
    }
}

impl Reranker {
    async fn rerank(&self, event: &Event) -> Outcome {
        let retrieved: Result<Retrieved, _> = serde_json::from_slice(&event.data);
        let mut retrieved =
            retrieved.map_err(|error| invalid(format!("its data is not a question with documents: {error}")))?;
        let relevances = match self.cross_encoder {
            true => self.by_reading(&retrieved).await?,
            false => self.by_likeness(&retrieved).await?,
        };
        let count = retrieved.documents.len();
        for (ranked, relevance) in retrieved.documents.iter_mut().zip(relevances) {
            ranked.relevance = relevance;
        }
        let documents = std::mem::take(&mut retrieved.documents).into_iter().enumerate();
        let mut scored: Vec<(f32, Ranked)> =
            documents.map(|(rank, ranked)| (self.score(ranked.relevance, rank, count), ranked)).collect();
        // Of equals the first stays first.
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        scored.truncate(self.options.limit);
        retrieved.documents = scored.into_iter().map(|(score, ranked)| with_score(ranked, score)).collect();
        self.frame.emission(event, &retrieved)
    }

    /// The model's word and the place among the retrieved, each from 0 to 1.
    fn score(&self, relevance: f32, rank: usize, count: usize) -> f32 {
        // Ranks are far below where an f32 loses whole numbers.
        #[expect(clippy::cast_precision_loss)]
        let place = 1.0 - rank as f32 / count.max(1) as f32;
        self.options.relevance * relevance + self.options.retrieved * place
    }

    async fn by_reading(&self, retrieved: &Retrieved) -> Result<Vec<f32>, FunctionError> {
        let documents = retrieved.documents.iter().map(|ranked| ranked.hit.chunk.text.clone()).collect();
        let request = RerankRequest { query: retrieved.question.clone(), documents, raw: false };
        let Embedder { inference, model } = &self.embedder;
        let relevances = inference.rerank(model, request).await.map_err(|error| inference_failed(&error))?;
        Ok(relevances.into_iter().map(|relevance| relevance.score).collect())
    }

    /// The likeness that the index has found already, and for what was found by words alone, the model's.
    async fn by_likeness(&self, retrieved: &Retrieved) -> Result<Vec<f32>, FunctionError> {
        let documents = &retrieved.documents;
        let unknown = documents.iter().filter(|ranked| ranked.hit.similarity.is_none());
        let texts: Vec<String> = unknown.map(|ranked| ranked.hit.chunk.text.clone()).collect();
        let question = match texts.is_empty() {
            true => Vec::new(),
            false => self.embedder.question(&retrieved.question).await?,
        };
        let mut embedded = self.embedder.embed(texts, Purpose::Document).await?.into_iter();
        let likeness = |ranked: &Ranked| {
            let known = ranked.hit.similarity;
            known.unwrap_or_else(|| embedded.next().map_or(0.0, |vector| cosine(&question, &vector))).clamp(0.0, 1.0)
        };
        Ok(documents.iter().map(likeness).collect())
    }
}

fn with_score(mut ranked: Ranked, score: f32) -> Ranked {
    ranked.hit.score = score;
    ranked
}

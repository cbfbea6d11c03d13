//! `rag/rerank`: `documents.retrieved` → `documents.reranked`, by a cross-encoder or by similarity.

use crate::{
    embedder::{Embedder, cosine},
    function::{FunctionContext, inference_failed, invalid},
    learn::{
        rounded,
        weights::{self, rerank_score},
    },
};
use async_trait::async_trait;
use futures::future::join_all;
use nerve_core::{
    Context, Event, Function, FunctionError, Outcome,
    function::Views,
    inference::{Purpose, RerankRequest},
};
use nerve_events::{
    documents::DEFAULT_COLLECTION,
    feedback::{RankingWeights, UsedWeights},
    retrieval::{DocumentsReranked, DroppedHit, Hit},
};
use serde::Deserialize;

/// `with` of `rag/rerank`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RerankOptions {
    /// Maximum number of documents to keep.
    pub(crate) limit: usize,
    /// Weight of the model's relevance; if neither weight is set, the weights learned by `rag/learn` apply.
    pub(crate) relevance: Option<f32>,
    /// Weight of the original rank.
    pub(crate) retrieved: Option<f32>,
}

impl Default for RerankOptions {
    fn default() -> Self {
        Self { limit: 5, relevance: None, retrieved: None }
    }
}

impl RerankOptions {
    /// The configured weights, else those learned for the collection.
    async fn weights(&self, views: Option<&dyn Views>, collection: &str) -> Result<RankingWeights, FunctionError> {
        let defaults = RankingWeights::default();
        if self.relevance.is_none() && self.retrieved.is_none() {
            return Ok(weights::live_version(views, collection).await?.map_or(defaults, |live| live.weights));
        }
        let (relevance, retrieved) = (self.relevance.unwrap_or(1.0), self.retrieved.unwrap_or(0.5));
        Ok(RankingWeights { relevance, retrieved, ..defaults })
    }
}

/// The loaded function.
pub(crate) struct Reranker {
    pub(crate) context: FunctionContext,
    pub(crate) embedder: Embedder,
    /// Whether the model is a cross-encoder.
    pub(crate) cross_encoder: bool,
    pub(crate) options: RerankOptions,
}

#[async_trait]
impl Function for Reranker {
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        let views = context.views.as_deref();
        join_all(batch.iter().map(|event| self.context.with_timeout(self.rerank(event, views)))).await
    }
}

impl Reranker {
    async fn rerank(&self, event: &Event, views: Option<&dyn Views>) -> Outcome {
        let retrieved: Result<DocumentsReranked, _> = serde_json::from_slice(&event.data);
        let mut retrieved =
            retrieved.map_err(|error| invalid(format!("its data is not a question with documents: {error}")))?;
        Hit::complete(&mut retrieved.documents);
        let relevances = match self.cross_encoder {
            true => self.cross_encoder_scores(&retrieved).await?,
            false => self.similarity_scores(&retrieved).await?,
        };
        let collection = retrieved.parameters.collection.as_deref().unwrap_or(DEFAULT_COLLECTION);
        let weights = self.options.weights(views, collection).await?;
        let count = retrieved.documents.len();
        let documents = std::mem::take(&mut retrieved.documents).into_iter().zip(relevances).enumerate();
        let mut scored: Vec<Hit> = documents
            .map(|(rank, (hit, relevance))| Hit {
                score: rerank_score(&weights, relevance, rank, count),
                relevance: Some(relevance),
                ..hit
            })
            .collect();
        // The sort is stable.
        scored.sort_by(|a, b| b.score.total_cmp(&a.score));
        let dropped = scored.split_off(self.options.limit.min(scored.len()));
        retrieved.dropped = dropped.into_iter().map(without_text).collect();
        let (relevance, retrieved_weight) = (Some(rounded(weights.relevance)), Some(rounded(weights.retrieved)));
        let used = retrieved.weights.take().unwrap_or_default();
        retrieved.weights = Some(UsedWeights { relevance, retrieved: retrieved_weight, ..used });
        retrieved.documents = scored;
        self.context.output(event, &retrieved)
    }

    async fn cross_encoder_scores(&self, retrieved: &DocumentsReranked) -> Result<Vec<f32>, FunctionError> {
        let documents = retrieved.documents.iter().map(|hit| hit.chunk.text.clone()).collect();
        let request = RerankRequest { query: retrieved.question.clone(), documents, raw: false };
        let Embedder { inference, model } = &self.embedder;
        let relevances = inference.rerank(model, request).await.map_err(|error| inference_failed(&error))?;
        Ok(relevances.into_iter().map(|relevance| relevance.score).collect())
    }

    /// Similarities from the index; embeds the documents that have none because only the lexical ranking found them.
    async fn similarity_scores(&self, retrieved: &DocumentsReranked) -> Result<Vec<f32>, FunctionError> {
        let documents = &retrieved.documents;
        let without_similarity = documents.iter().filter(|hit| hit.similarity.is_none());
        let texts: Vec<String> = without_similarity.map(|hit| hit.chunk.text.clone()).collect();
        let question = match texts.is_empty() {
            true => Vec::new(),
            false => self.embedder.question(&retrieved.question).await?,
        };
        let mut embedded = self.embedder.embed(texts, Purpose::Document).await?.into_iter();
        let similarity = |hit: &Hit| {
            let indexed = hit.similarity;
            indexed.unwrap_or_else(|| embedded.next().map_or(0.0, |vector| cosine(&question, &vector))).clamp(0.0, 1.0)
        };
        Ok(documents.iter().map(similarity).collect())
    }
}

fn without_text(hit: Hit) -> DroppedHit {
    let Hit { id, document, name, lexical_rank, dense_rank, relevance, .. } = hit;
    DroppedHit { id, document, name, lexical_rank, dense_rank, relevance }
}

//! `rag/rerank`: `documents.retrieved` → `documents.reranked`, by a cross-encoder or by likeness.

use crate::{
    embedder::{Embedder, cosine},
    function::{Frame, inference_failed, invalid},
    learn::{
        add_used, shown,
        weights::{self, Weights},
    },
};
use async_trait::async_trait;
use futures::future::join_all;
use nerve_core::{
    Context, Event, Function, FunctionError, Outcome,
    function::Views,
    inference::{Purpose, RerankRequest},
};
use nerve_index::{Hit, document::DEFAULT_COLLECTION};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// `with` of `rag/rerank`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RerankOptions {
    /// The most documents that are kept.
    pub(crate) limit: usize,
    /// How much the model's own relevance weighs; where neither weight is said, as much as `rag/learn` has found.
    pub(crate) relevance: Option<f32>,
    /// How much the place among the retrieved weighs.
    pub(crate) retrieved: Option<f32>,
}

impl Default for RerankOptions {
    fn default() -> Self {
        Self { limit: 5, relevance: None, retrieved: None }
    }
}

impl RerankOptions {
    /// The weights that nerve.toml says, else those that were learned for the collection.
    async fn weights(&self, views: Option<&dyn Views>, collection: &str) -> Result<Weights, FunctionError> {
        let builtin = Weights::default();
        if self.relevance.is_none() && self.retrieved.is_none() {
            return Ok(weights::live(views, collection).await?.map_or(builtin, |live| live.weights));
        }
        let (relevance, retrieved) = (self.relevance.unwrap_or(1.0), self.retrieved.unwrap_or(0.5));
        Ok(Weights { relevance, retrieved, ..builtin })
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    collection: Option<String>,
    documents: Vec<Ranked>,
    /// Those that are not kept, for whoever learns of the ranking.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dropped: Vec<Dropped>,
    /// What the rankings weighed.
    #[serde(default)]
    weights: Value,
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

/// A document that is not kept: where it stood, without what it says.
#[derive(Serialize, Deserialize)]
struct Dropped {
    id: String,
    document: String,
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lexical_rank: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dense_rank: Option<usize>,
    relevance: f32,
}

#[async_trait]
impl Function for Reranker {
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        let views = context.views.as_deref();
        join_all(batch.iter().map(|event| self.frame.within(self.rerank(event, views)))).await
    }
}

impl Reranker {
    async fn rerank(&self, event: &Event, views: Option<&dyn Views>) -> Outcome {
        let retrieved: Result<Retrieved, _> = serde_json::from_slice(&event.data);
        let mut retrieved =
            retrieved.map_err(|error| invalid(format!("its data is not a question with documents: {error}")))?;
        let relevances = match self.cross_encoder {
            true => self.by_reading(&retrieved).await?,
            false => self.by_likeness(&retrieved).await?,
        };
        let collection = retrieved.collection.as_deref().unwrap_or(DEFAULT_COLLECTION);
        let weights = self.options.weights(views, collection).await?;
        let count = retrieved.documents.len();
        for (ranked, relevance) in retrieved.documents.iter_mut().zip(relevances) {
            ranked.relevance = relevance;
        }
        let documents = std::mem::take(&mut retrieved.documents).into_iter().enumerate();
        let mut scored: Vec<(f32, Ranked)> =
            documents.map(|(rank, ranked)| (weights.rerank(ranked.relevance, rank, count), ranked)).collect();
        // Of equals the first stays first.
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        let dropped = scored.split_off(self.options.limit.min(scored.len()));
        retrieved.dropped = dropped.into_iter().map(|(_, ranked)| Dropped::of(ranked)).collect();
        add_used(
            &mut retrieved.weights,
            json!({"relevance": shown(weights.relevance), "retrieved": shown(weights.retrieved)}),
        );
        retrieved.documents = scored.into_iter().map(|(score, ranked)| with_score(ranked, score)).collect();
        self.frame.emission(event, &retrieved)
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

impl Dropped {
    fn of(ranked: Ranked) -> Self {
        let Hit { id, document, name, lexical_rank, dense_rank, .. } = ranked.hit;
        Self { id, document, name, lexical_rank, dense_rank, relevance: ranked.relevance }
    }
}

fn with_score(mut ranked: Ranked, score: f32) -> Ranked {
    ranked.hit.score = score;
    ranked
}

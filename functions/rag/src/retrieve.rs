//! `rag/retrieve`: `prompt.received` → `documents.retrieved`, with what is remembered of the conversation.

use crate::{
    embedder::Embedder,
    function::{Frame, blocking, index_failed, invalid},
    learn::{add_used, shown, weights},
    remember::{self, History},
};
use async_trait::async_trait;
use futures::future::join_all;
use nerve_core::{Context, Event, Function, FunctionError, Outcome, function::Views};
use nerve_index::{Hit, Index, Query, Weights, collections::conversation_collection, document::DEFAULT_COLLECTION};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use time::format_description::well_known::Rfc3339;

/// Earlier answers of a conversation that are recalled, and how like the question they must be.
const RECALLED: (usize, f32) = (2, 0.5);
/// A question of fewer words leans on the one before it.
const SHORT: usize = 5;

/// `with` of `rag/retrieve`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RetrieveOptions {
    /// The most documents.
    pub(crate) limit: usize,
    /// How much the ranking by words weighs; where neither weight is said, as much as `rag/learn` has found.
    pub(crate) lexical: Option<f32>,
    /// How much the ranking by meaning weighs.
    pub(crate) dense: Option<f32>,
}

impl Default for RetrieveOptions {
    fn default() -> Self {
        Self { limit: 10, lexical: None, dense: None }
    }
}

impl RetrieveOptions {
    /// The weights that nerve.toml says; else those that were learned for the collection, and their version.
    async fn weights(&self, views: Option<&dyn Views>, collection: &str) -> Result<(Weights, Value), FunctionError> {
        let builtin = Weights::default();
        let (weights, version) = match (self.lexical, self.dense) {
            (None, None) => match weights::live(views, collection).await? {
                Some(live) => {
                    (Weights { lexical: live.weights.lexical, dense: live.weights.dense }, Some(live.version))
                }
                None => (builtin, None),
            },
            (lexical, dense) => {
                let (lexical, dense) = (lexical.unwrap_or(builtin.lexical), dense.unwrap_or(builtin.dense));
                (Weights { lexical, dense }, None)
            }
        };
        let mut used = json!({"lexical": shown(weights.lexical), "dense": shown(weights.dense)});
        if let Some(version) = version {
            add_used(&mut used, json!({ "version": version }));
        }
        Ok((weights, used))
    }
}

/// The function, loaded.
pub(crate) struct Retriever {
    pub(crate) frame: Frame,
    pub(crate) index: Arc<Index>,
    pub(crate) embedder: Embedder,
    pub(crate) options: RetrieveOptions,
}

#[derive(Serialize, Deserialize)]
struct Asked {
    #[serde(alias = "prompt", alias = "text")]
    question: String,
    #[serde(default = "default_collection")]
    collection: String,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    filter: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    conversation: Option<String>,
    /// Whatever else the prompt has goes along.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn default_collection() -> String {
    DEFAULT_COLLECTION.to_owned()
}

#[derive(Serialize)]
struct Retrieved {
    #[serde(flatten)]
    asked: Asked,
    /// When the question came (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    asked_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<History>,
    /// Earlier answers of the conversation that are like the question.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    recalled: Vec<Hit>,
    /// What the rankings weighed, and the version of these weights where they were learned.
    weights: Value,
    documents: Vec<Hit>,
}

#[async_trait]
impl Function for Retriever {
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        let views = context.views.as_deref();
        join_all(batch.iter().map(|event| self.frame.within(self.retrieve(event, views)))).await
    }
}

impl Retriever {
    async fn retrieve(&self, event: &Event, views: Option<&dyn Views>) -> Outcome {
        let asked: Result<Asked, _> = serde_json::from_slice(&event.data);
        let mut asked = asked.map_err(|error| invalid(format!("its data is not a prompt: {error}")))?;
        for own in ["documents", "history", "recalled", "asked_at", "weights"] {
            asked.rest.remove(own);
        }
        let history = match (&asked.conversation, views) {
            (Some(conversation), Some(views)) => remember::recall(views, &asked.collection, conversation).await?,
            _ => None,
        };
        let (weights, used) = self.options.weights(views, &asked.collection).await?;
        let query = self.query(&asked, history.as_ref(), weights).await?;
        let recalled = match (&asked.conversation, &history) {
            (Some(conversation), Some(history)) if !history.summary.is_empty() => {
                self.recall(&query, conversation_collection(&asked.collection, conversation)).await?
            }
            _ => Vec::new(),
        };
        let documents = self.search(query).await?;
        let asked_at = event.time.and_then(|time| time.format(&Rfc3339).ok());
        let history = history.map(History::shown);
        self.frame.emission(event, &Retrieved { asked, asked_at, history, recalled, weights: used, documents })
    }

    /// What is searched for: a short question means something only after the one before it.
    async fn query(&self, asked: &Asked, history: Option<&History>, weights: Weights) -> Result<Query, FunctionError> {
        let before = history.and_then(|history| history.turns.last()).map(|turn| turn.question.as_str());
        let short = asked.question.split_whitespace().count() < SHORT;
        let text = match before.filter(|_| short) {
            Some(before) => format!("{before} {}", asked.question),
            None => asked.question.clone(),
        };
        Ok(Query {
            collection: asked.collection.clone(),
            vector: self.embedder.question(&text).await?,
            text,
            filter: asked.filter.clone(),
            limit: asked.limit.unwrap_or(self.options.limit).clamp(1, 100),
            weights,
        })
    }

    /// Earlier answers of the conversation, which the index has in a collection of their own.
    async fn recall(&self, query: &Query, collection: String) -> Result<Vec<Hit>, FunctionError> {
        let (limit, like) = RECALLED;
        let mut found = self.search(Query { collection, filter: Map::new(), limit, ..query.clone() }).await?;
        found.retain(|hit| hit.similarity.is_some_and(|similarity| similarity >= like));
        Ok(found)
    }

    async fn search(&self, query: Query) -> Result<Vec<Hit>, FunctionError> {
        let index = self.index.clone();
        blocking(move || index.search(&query).map_err(|error| index_failed(&error))).await
    }
}

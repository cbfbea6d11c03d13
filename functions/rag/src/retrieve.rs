//! `rag/retrieve`: `prompt.received` → `documents.retrieved`, with the memory of the conversation.

use crate::{
    embedder::Embedder,
    function::{FunctionContext, blocking, index_failed, invalid},
    learn::{rounded, weights},
    remember,
};
use async_trait::async_trait;
use futures::future::join_all;
use nerve_core::{Context, Event, Function, FunctionError, Outcome, function::Views};
use nerve_events::{
    documents::DEFAULT_COLLECTION,
    feedback::UsedWeights,
    retrieval::{ConversationHistory, DocumentsRetrieved, Hit, PromptReceived, QuestionParameters},
};
use nerve_index::{FusionWeights, Index, Query, collections::conversation_collection};
use serde::Deserialize;
use serde_json::Map;
use std::sync::Arc;
use time::format_description::well_known::Rfc3339;

/// Maximum number of earlier answers retrieved from a conversation.
const MAX_RECALLED_ANSWERS: usize = 2;
/// Minimum similarity of a retrieved earlier answer and the question.
const MIN_RECALL_SIMILARITY: f32 = 0.5;
/// Questions with fewer words are searched together with the preceding question.
const SHORT_QUESTION_WORDS: usize = 5;

/// `with` of `rag/retrieve`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RetrieveOptions {
    /// Maximum number of documents.
    pub(crate) limit: usize,
    /// Weight of the lexical ranking; if neither weight is set, the weights learned by `rag/learn` apply.
    pub(crate) lexical: Option<f32>,
    /// Weight of the dense ranking.
    pub(crate) dense: Option<f32>,
}

impl Default for RetrieveOptions {
    fn default() -> Self {
        Self { limit: 10, lexical: None, dense: None }
    }
}

impl RetrieveOptions {
    /// The configured weights, else those learned for the collection, and their version.
    async fn weights(
        &self,
        views: Option<&dyn Views>,
        collection: &str,
    ) -> Result<(FusionWeights, UsedWeights), FunctionError> {
        let defaults = FusionWeights::default();
        let (weights, version) = match (self.lexical, self.dense) {
            (None, None) => match weights::live_version(views, collection).await? {
                Some(live) => {
                    (FusionWeights { lexical: live.weights.lexical, dense: live.weights.dense }, Some(live.version))
                }
                None => (defaults, None),
            },
            (lexical, dense) => {
                let (lexical, dense) = (lexical.unwrap_or(defaults.lexical), dense.unwrap_or(defaults.dense));
                (FusionWeights { lexical, dense }, None)
            }
        };
        let (lexical, dense) = (Some(rounded(weights.lexical)), Some(rounded(weights.dense)));
        Ok((weights, UsedWeights { lexical, dense, version, ..UsedWeights::default() }))
    }
}

/// The loaded function.
pub(crate) struct Retriever {
    pub(crate) context: FunctionContext,
    pub(crate) index: Arc<Index>,
    pub(crate) embedder: Embedder,
    pub(crate) options: RetrieveOptions,
}

/// A question with its collection.
struct Question {
    text: String,
    collection: String,
    parameters: QuestionParameters,
}

#[async_trait]
impl Function for Retriever {
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        let views = context.views.as_deref();
        join_all(batch.iter().map(|event| self.context.with_timeout(self.retrieve(event, views)))).await
    }
}

impl Retriever {
    async fn retrieve(&self, event: &Event, views: Option<&dyn Views>) -> Outcome {
        let prompt: Result<PromptReceived, _> = serde_json::from_slice(&event.data);
        let mut prompt = prompt.map_err(|error| invalid(format!("its data is not a prompt: {error}")))?;
        let text = prompt.take_question().ok_or_else(|| invalid("its data is not a prompt: it has no `question`"))?;
        let parameters = prompt.parameters.clone();
        let collection = parameters.collection.clone().unwrap_or_else(|| DEFAULT_COLLECTION.to_owned());
        let mut question = Question { text, collection, parameters };
        let mut rest = prompt.into_rest();
        for own in ["documents", "dropped", "history", "recalled", "asked_at", "weights"] {
            rest.remove(own);
        }
        let Question { collection, parameters, .. } = &question;
        let history = match (&parameters.conversation, views) {
            (Some(conversation), Some(views)) => remember::read_history(views, collection, conversation).await?,
            _ => None,
        };
        let (weights, used_weights) = self.options.weights(views, collection).await?;
        let query = self.query(&question, history.as_ref(), weights).await?;
        let recalled = match (&parameters.conversation, &history) {
            (Some(conversation), Some(history)) if !history.summary.is_empty() => {
                self.recall_answers(&query, conversation_collection(collection, conversation)).await?
            }
            _ => Vec::new(),
        };
        let documents = self.search(query).await?;
        question.parameters.collection = Some(question.collection);
        let retrieved = DocumentsRetrieved {
            question: question.text,
            parameters: question.parameters,
            asked_at: event.time.and_then(|time| time.format(&Rfc3339).ok()),
            history,
            recalled,
            weights: Some(used_weights),
            documents,
            rest,
        };
        self.context.output(event, &retrieved)
    }

    /// Builds the query. A short question is combined with the preceding one.
    async fn query(
        &self,
        question: &Question,
        history: Option<&ConversationHistory>,
        weights: FusionWeights,
    ) -> Result<Query, FunctionError> {
        let previous_question = history.and_then(|history| history.turns.last()).map(|turn| turn.question.as_str());
        let is_short = question.text.split_whitespace().count() < SHORT_QUESTION_WORDS;
        let text = match previous_question.filter(|_| is_short) {
            Some(previous_question) => format!("{previous_question} {}", question.text),
            None => question.text.clone(),
        };
        Ok(Query {
            collection: question.collection.clone(),
            vector: self.embedder.question(&text).await?,
            text,
            filter: question.parameters.filter.clone(),
            limit: question.parameters.limit.unwrap_or(self.options.limit).clamp(1, 100),
            weights,
        })
    }

    /// Retrieves earlier answers of the conversation from their own collection.
    async fn recall_answers(&self, query: &Query, collection: String) -> Result<Vec<Hit>, FunctionError> {
        let mut found =
            self.search(Query { collection, filter: Map::new(), limit: MAX_RECALLED_ANSWERS, ..query.clone() }).await?;
        found.retain(|hit| hit.similarity.is_some_and(|similarity| similarity >= MIN_RECALL_SIMILARITY));
        Ok(found)
    }

    async fn search(&self, query: Query) -> Result<Vec<Hit>, FunctionError> {
        let index = self.index.clone();
        blocking(move || index.search(&query).map_err(|error| index_failed(&error))).await
    }
}

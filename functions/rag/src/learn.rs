//! `rag/learn`: `feedback.submitted` → `weights.updated`, `weights.rejected` or `weights.rolled_back`.
//!
//! # Layout
//! - `ranking`: relevance judgments derived from feedback, and the quality of a ranking by them.
//! - `memory`: stored rankings of recent answers, and stored feedback.
//! - `fit`: fits weights to feedback. `weights`: versions of the weights, read by `rag/retrieve` and `rag/rerank`.
//! - `update`: the change of the weights after new feedback.
//!
//! # Flow
//! `documents.reranked` gives the rank of each document in each ranking, and `answer.generated` the cited documents;
//! both are stored by answer id. Feedback on an answer then judges its documents independently of their order, so
//! every version of the weights can be evaluated on all feedback.

mod fit;
mod memory;
mod ranking;
mod update;
pub(crate) mod weights;

use crate::{
    function::{FunctionContext, invalid},
    views::{self, ViewChange},
};
use async_trait::async_trait;
use memory::CollectionFeedback;
pub(crate) use memory::{AnswerRanking, RANKING_KEYS, remove_answers};
use nerve_core::{
    Context, Emission, Event, Fault, Function, FunctionError, Outcome, answer,
    function::{LogLevel, LogSink, Views},
};
use nerve_events::{
    EventData,
    documents::DEFAULT_COLLECTION,
    feedback::{FeedbackSubmitted, WeightsChange, WeightsRejected, WeightsRollbackRequested, WeightsRolledBack},
};
use ranking::Candidate;
use serde::Deserialize;
use std::collections::BTreeMap;
use update::LearnOutcome;

/// Event types that this function emits in addition to its result.
pub(crate) const AUXILIARY_OUTPUTS: &[&str] = &[WeightsRejected::TYPE, WeightsRolledBack::TYPE];
/// Suffix of event types that request a rollback.
const ROLLBACK_SUFFIX: &str = ".rollback_requested";

/// Keys of a collection's feedback and weights.
pub(crate) fn keys_of(collection: &str) -> [String; 2] {
    [memory::feedback_key(collection), weights::key(collection)]
}

/// `with` of `rag/learn`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LearnOptions {
    /// Number of ratings before the first fit.
    pub(crate) enough: usize,
    /// Number of new ratings between fits.
    pub(crate) every: usize,
    /// Maximum number of ratings stored per collection.
    pub(crate) window: usize,
    /// Minimum gain in nDCG on held-out ratings.
    pub(crate) margin: f32,
}

impl Default for LearnOptions {
    fn default() -> Self {
        Self { enough: 20, every: 10, window: 300, margin: 0.01 }
    }
}

impl LearnOptions {
    /// Checks the range of each option.
    ///
    /// # Errors
    /// Names the first option that is out of range.
    pub(crate) fn check(&self) -> Result<(), String> {
        let checks = [
            (
                (1..=500).contains(&self.window),
                format!("`window` is {}: it must be from 1 to 500 ratings", self.window),
            ),
            (
                (6..=self.window).contains(&self.enough),
                format!("`enough` is {}: it must be from 6 ratings to `window`, which is {}", self.enough, self.window),
            ),
            ((1..=500).contains(&self.every), format!("`every` is {}: it must be from 1 to 500 ratings", self.every)),
            ((0.0..=0.5).contains(&self.margin), "`margin` must be from 0 to 0.5".to_owned()),
        ];
        checks.into_iter().find(|(right, _)| !right).map_or(Ok(()), |(_, why)| Err(why))
    }
}

/// The loaded function.
pub(crate) struct Learner {
    pub(crate) context: FunctionContext,
    pub(crate) options: LearnOptions,
    pub(crate) logs: LogSink,
}

/// The parts of an incoming event that are read: of a ranking and of an answer less than their events contain.
#[derive(Deserialize)]
#[serde(untagged)]
enum LearnInput {
    Ranking {
        #[serde(default)]
        collection: Option<String>,
        documents: Vec<Candidate>,
        /// Documents that reranking dropped.
        #[serde(default)]
        dropped: Vec<Candidate>,
    },
    Answer {
        citations: Vec<CitedChunk>,
    },
    Feedback(FeedbackSubmitted),
}

#[derive(Deserialize)]
struct CitedChunk {
    #[serde(default)]
    chunk: String,
}

#[async_trait]
impl Function for Learner {
    /// Processes events in order, because feedback follows its answer; fits weights once per batch and collection.
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut rated_collections: BTreeMap<String, usize> = BTreeMap::new();
        for (index, event) in batch.iter().enumerate() {
            let mut collection = None;
            let stored = async {
                let views = context.views.as_deref().ok_or_else(|| invalid("no storage for weights (views)"))?;
                if event.ty.as_str().ends_with(ROLLBACK_SUFFIX) {
                    return self.roll_back(event, views).await;
                }
                collection = self.store_input(event, views).await?;
                Ok(Vec::new())
            };
            outcomes.push(self.context.with_timeout(stored).await);
            if let Some(collection) = collection {
                rated_collections.insert(collection, index);
            }
        }
        for (collection, index) in rated_collections {
            let Some(views) = context.views.as_deref() else { continue };
            let learned = self.context.with_timeout(self.update_weights(&collection, views)).await;
            if let Some(outcome) = outcomes.get_mut(index) {
                *outcome = learned;
            }
        }
        outcomes
    }
}

impl Learner {
    /// Stores the data of an event. Returns the collection if the event is feedback.
    async fn store_input(&self, event: &Event, views: &dyn Views) -> Result<Option<String>, FunctionError> {
        let input: LearnInput = serde_json::from_slice(&event.data)
            .map_err(|error| invalid(format!("its data is not a ranking, an answer or feedback: {error}")))?;
        let answer = answer::id_of(event).to_owned();
        match input {
            LearnInput::Ranking { collection, mut documents, dropped } => {
                documents.extend(dropped);
                let collection = collection.unwrap_or_else(|| DEFAULT_COLLECTION.to_owned());
                let ranking = AnswerRanking { answer, collection, candidates: documents, cited: Vec::new() };
                memory::store_ranking(views, ranking).await?;
                Ok(None)
            }
            LearnInput::Answer { citations } => {
                let cited = citations.into_iter().map(|cited| cited.chunk).collect();
                memory::store_ranking(views, AnswerRanking { answer, cited, ..AnswerRanking::default() }).await?;
                Ok(None)
            }
            LearnInput::Feedback(feedback) => self.store_feedback(feedback, views).await,
        }
    }

    async fn store_feedback(
        &self,
        feedback: FeedbackSubmitted,
        views: &dyn Views,
    ) -> Result<Option<String>, FunctionError> {
        let ignore = |why: &str| {
            self.logs.log(LogLevel::Info, format!("feedback on the answer {} is ignored: {why}", feedback.answer));
            Ok(None)
        };
        let Some(answer_ranking) = memory::read_ranking(views, &feedback.answer).await? else {
            return ignore("its ranking is unknown or expired");
        };
        let Some(judged) = ranking::judge(&answer_ranking.candidates, &answer_ranking.cited, &feedback) else {
            return ignore("it does not distinguish between the retrieved documents");
        };
        let window = self.options.window;
        let key = memory::feedback_key(&answer_ranking.collection);
        views::update(views, &key, "the feedback", |stored: &mut CollectionFeedback| {
            match stored.add(&feedback.answer, judged.clone(), window) {
                true => ViewChange::Write(()),
                false => ViewChange::Keep(()),
            }
        })
        .await?;
        Ok(Some(answer_ranking.collection))
    }

    /// Updates the weights of a collection from all its feedback.
    async fn update_weights(&self, collection: &str, views: &dyn Views) -> Outcome {
        let feedback: CollectionFeedback =
            views::read(views, &memory::feedback_key(collection)).await?.unwrap_or_default();
        let options = self.options;
        let outcome = views::update(views, &weights::key(collection), "the weights", |versions| {
            update::advance(versions, &feedback, options)
        })
        .await?;
        self.publish_change(collection, outcome)
    }

    async fn roll_back(&self, event: &Event, views: &dyn Views) -> Outcome {
        let request: WeightsRollbackRequested = serde_json::from_slice(&event.data)
            .map_err(|error| invalid(format!("its data is not a rollback request: {error}")))?;
        let collection = request.collection.unwrap_or_else(|| DEFAULT_COLLECTION.to_owned());
        let feedback: CollectionFeedback =
            views::read(views, &memory::feedback_key(&collection)).await?.unwrap_or_default();
        let outcome = views::update(views, &weights::key(&collection), "the weights", |versions| {
            update::roll_back(versions, request.version, feedback.newest)
        })
        .await?;
        if let LearnOutcome::Impossible(why) = outcome {
            return Err(invalid(format!("the weights of `{collection}` cannot be rolled back: {why}")));
        }
        self.publish_change(&collection, outcome)
    }

    fn publish_change(&self, collection: &str, outcome: LearnOutcome) -> Outcome {
        let (ty, change) = match outcome {
            LearnOutcome::Unchanged | LearnOutcome::Impossible(_) => return Ok(Vec::new()),
            LearnOutcome::Updated(change) => (Some(&self.context.emits), change),
            LearnOutcome::Rejected(change) => (self.context.auxiliary_output(WeightsRejected::TYPE), change),
            LearnOutcome::RolledBack(change) => (self.context.auxiliary_output(WeightsRolledBack::TYPE), change),
        };
        let Some(ty) = ty else { return Ok(Vec::new()) };
        let data = serde_json::to_vec(&WeightsChange { collection: collection.to_owned(), ..change });
        let data = data.map_err(|error| FunctionError::new(Fault::Crash, error.to_string()))?;
        let (ty, data, subject) = (ty.clone(), data.into(), Some(collection.to_owned()));
        Ok(vec![Emission { ty, data, content_type: None, subject, partition_key: None }])
    }
}

/// Rounds a weight to four decimals.
pub(crate) fn rounded(weight: f32) -> f64 {
    (f64::from(weight) * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests;

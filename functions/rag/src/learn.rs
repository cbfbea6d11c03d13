//! `rag/learn`: `feedback.submitted` → `weights.updated`, `weights.rejected` or `weights.rolled_back`.
//!
//! # Layout
//! - `ranking`: what an opinion says of the documents that were found, and how good an order is by that.
//! - `memory`: the rankings of the last answers, and what was said of them.
//! - `fit`: weights that suit what was said. `weights`: their versions, which `rag/retrieve` and `rag/rerank` read.
//! - `step`: what one more opinion leads to.
//!
//! # Flow
//! `documents.reranked` says where each ranking had each document, and `answer.generated` which were cited: both are
//! remembered by the answer's id. Feedback of an answer then says which of its documents were right, whatever order
//! they stood in, so every version of the weights can be held against all of it.

mod fit;
mod memory;
mod ranking;
mod step;
pub(crate) mod weights;

use crate::{
    function::{Frame, invalid},
    views::{self, Change},
};
use async_trait::async_trait;
use memory::Feedback;
pub(crate) use memory::{Answered, RANKINGS, without};
use nerve_core::{
    Context, Emission, Event, Fault, Function, FunctionError, Outcome, answer,
    function::{LogLevel, LogSink, Views},
};
use nerve_index::document::DEFAULT_COLLECTION;
use ranking::{Candidate, Opinion};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use step::{Step, Told};

/// Type: weights were fitted, and are no better than those that are live.
pub(crate) const REJECTED: &str = "weights.rejected";
/// Type: weights turned out worse than those before them, which are live again.
pub(crate) const ROLLED_BACK: &str = "weights.rolled_back";
/// The end of the types that ask for weights to be rolled back.
const ROLLBACK: &str = ".rollback_requested";

/// Where the feedback and the weights of a collection are kept.
pub(crate) fn keys_of(collection: &str) -> [String; 2] {
    [memory::feedback_key(collection), weights::key(collection)]
}

/// `with` of `rag/learn`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LearnOptions {
    /// Opinions that there must be before weights are fitted.
    pub(crate) enough: usize,
    /// Further opinions before they are fitted again.
    pub(crate) every: usize,
    /// Opinions that are kept of a collection.
    pub(crate) window: usize,
    /// What weights must gain in nDCG, on opinions that they were not made from.
    pub(crate) margin: f32,
}

impl Default for LearnOptions {
    fn default() -> Self {
        Self { enough: 20, every: 10, window: 300, margin: 0.01 }
    }
}

impl LearnOptions {
    /// Says which option is out of its bounds.
    pub(crate) fn check(&self) -> Result<(), String> {
        let bounds = [
            ((1..=500).contains(&self.window), format!("`window` is {}: from 1 to 500 opinions", self.window)),
            (
                (6..=self.window).contains(&self.enough),
                format!("`enough` is {}: from 6 opinions to `window`, which is {}", self.enough, self.window),
            ),
            ((1..=500).contains(&self.every), format!("`every` is {}: from 1 to 500 opinions", self.every)),
            ((0.0..=0.5).contains(&self.margin), "`margin` must be from 0 to 0.5".to_owned()),
        ];
        bounds.into_iter().find(|(right, _)| !right).map_or(Ok(()), |(_, why)| Err(why))
    }
}

/// The function, loaded.
pub(crate) struct Learner {
    pub(crate) frame: Frame,
    pub(crate) options: LearnOptions,
    pub(crate) logs: LogSink,
}

/// What an event tells.
#[derive(Deserialize)]
#[serde(untagged)]
enum Heard {
    Found {
        #[serde(default)]
        collection: Option<String>,
        documents: Vec<Candidate>,
        /// Those that reranking left out.
        #[serde(default)]
        dropped: Vec<Candidate>,
    },
    Answered {
        citations: Vec<Cited>,
    },
    Said(Opinion),
}

#[derive(Deserialize)]
struct Cited {
    #[serde(default)]
    chunk: String,
}

/// Which version to go back to.
#[derive(Deserialize)]
struct Rollback {
    #[serde(default)]
    collection: Option<String>,
    #[serde(default)]
    version: Option<u64>,
}

#[async_trait]
impl Function for Learner {
    /// In the events' order, since feedback comes after what it is about; weights are fitted once a batch.
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut learnt_of: BTreeMap<String, usize> = BTreeMap::new();
        for (index, event) in batch.iter().enumerate() {
            let mut collection = None;
            let heard = async {
                let views = context.views.as_deref().ok_or_else(|| invalid("there is nowhere to keep weights here"))?;
                if event.ty.as_str().ends_with(ROLLBACK) {
                    return self.roll_back(event, views).await;
                }
                collection = self.hear(event, views).await?;
                Ok(Vec::new())
            };
            outcomes.push(self.frame.within(heard).await);
            if let Some(collection) = collection {
                learnt_of.insert(collection, index);
            }
        }
        for (collection, index) in learnt_of {
            let Some(views) = context.views.as_deref() else { continue };
            let learnt = self.frame.within(self.learn(&collection, views)).await;
            if let Some(outcome) = outcomes.get_mut(index) {
                *outcome = learnt;
            }
        }
        outcomes
    }
}

impl Learner {
    /// Remembers what an event tells; says of which collection it is an opinion.
    async fn hear(&self, event: &Event, views: &dyn Views) -> Result<Option<String>, FunctionError> {
        let heard: Heard = serde_json::from_slice(&event.data)
            .map_err(|error| invalid(format!("its data is neither a ranking, nor an answer, nor feedback: {error}")))?;
        let answer = answer::id_of(event).to_owned();
        match heard {
            Heard::Found { collection, mut documents, dropped } => {
                documents.extend(dropped);
                let collection = collection.unwrap_or_else(|| DEFAULT_COLLECTION.to_owned());
                let told = Answered { answer, collection, candidates: documents, cited: Vec::new() };
                memory::remember(views, told).await?;
                Ok(None)
            }
            Heard::Answered { citations } => {
                let cited = citations.into_iter().map(|cited| cited.chunk).collect();
                memory::remember(views, Answered { answer, cited, ..Answered::default() }).await?;
                Ok(None)
            }
            Heard::Said(opinion) => self.take(opinion, views).await,
        }
    }

    async fn take(&self, opinion: Opinion, views: &dyn Views) -> Result<Option<String>, FunctionError> {
        let nothing = |why: &str| {
            self.logs.log(LogLevel::Info, format!("feedback of the answer {} teaches nothing: {why}", opinion.answer));
            Ok(None)
        };
        let Some(known) = memory::recall(views, &opinion.answer).await? else {
            return nothing("what was found for it is not known, or not any more");
        };
        let Some(judged) = ranking::judge(&known.candidates, &known.cited, &opinion) else {
            return nothing("it tells none of the documents that were found from another");
        };
        let window = self.options.window;
        let key = memory::feedback_key(&known.collection);
        views::update(views, &key, "the feedback", |feedback: &mut Feedback| {
            match feedback.add(&opinion.answer, judged.clone(), window) {
                true => Change::Write(()),
                false => Change::Keep(()),
            }
        })
        .await?;
        Ok(Some(known.collection))
    }

    /// Looks at all that was said of a collection.
    async fn learn(&self, collection: &str, views: &dyn Views) -> Outcome {
        let feedback: Feedback = views::read(views, &memory::feedback_key(collection)).await?.unwrap_or_default();
        let options = self.options;
        let step = views::update(views, &weights::key(collection), "the weights", |versions| {
            step::next(versions, &feedback, options)
        })
        .await?;
        self.tell(collection, step)
    }

    async fn roll_back(&self, event: &Event, views: &dyn Views) -> Outcome {
        let asked: Rollback = serde_json::from_slice(&event.data)
            .map_err(|error| invalid(format!("its data is no request to roll back: {error}")))?;
        let collection = asked.collection.unwrap_or_else(|| DEFAULT_COLLECTION.to_owned());
        let feedback: Feedback = views::read(views, &memory::feedback_key(&collection)).await?.unwrap_or_default();
        let step = views::update(views, &weights::key(&collection), "the weights", |versions| {
            step::back(versions, asked.version, feedback.newest)
        })
        .await?;
        if let Step::Impossible(why) = step {
            return Err(invalid(format!("the weights of `{collection}` cannot be rolled back: {why}")));
        }
        self.tell(&collection, step)
    }

    fn tell(&self, collection: &str, step: Step) -> Outcome {
        let (ty, told) = match step {
            Step::Nothing | Step::Impossible(_) => return Ok(Vec::new()),
            Step::Updated(told) => (Some(&self.frame.emits), told),
            Step::Rejected(told) => (self.frame.side_event(REJECTED), told),
            Step::RolledBack(told) => (self.frame.side_event(ROLLED_BACK), told),
        };
        let Some(ty) = ty else { return Ok(Vec::new()) };
        let data = serde_json::to_vec(&OfCollection { collection, told: &told });
        let data = data.map_err(|error| FunctionError::new(Fault::Crash, error.to_string()))?;
        let (ty, data, subject) = (ty.clone(), data.into(), Some(collection.to_owned()));
        Ok(vec![Emission { ty, data, content_type: None, subject, partition_key: None }])
    }
}

#[derive(Serialize)]
struct OfCollection<'t> {
    collection: &'t str,
    #[serde(flatten)]
    told: &'t Told,
}

/// A weight as people read it: 1.7, and not the nearest 32 bits as 64.
pub(crate) fn shown(weight: f32) -> f64 {
    (f64::from(weight) * 1e4).round() / 1e4
}

/// The weights that a ranking was made by, for whoever reads it.
pub(crate) fn add_used(used: &mut Value, more: Value) {
    match (used, more) {
        (Value::Object(used), Value::Object(more)) => used.extend(more),
        (used, more) => *used = more,
    }
}

#[cfg(test)]
mod tests;

//! `rag/remember`: `answer.evaluated` or `answer.generated` → `memory.updated`: conversation memory.
//!
//! The most recent turns are stored verbatim, in one document per conversation in the bucket `views`. Earlier turns
//! are summarized there, and each is also uploaded to the index as a document, so that retrieval can find it.

use crate::{
    extractive,
    function::{FunctionContext, invalid},
    views::{self, ViewChange},
};
use async_trait::async_trait;
use futures::future::join_all;
use nerve_core::{Context, Emission, Event, Function, FunctionError, Outcome, answer, function::Views};
use nerve_index::{collections::conversation_collection, document::DEFAULT_COLLECTION};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Event type that uploads an earlier answer.
pub(crate) const DOCUMENT_UPLOADED: &str = "document.uploaded";
/// Maximum size of a stored answer in bytes.
const MAX_ANSWER_BYTES: usize = 4096;
/// Number of answer ids stored per conversation, to detect redelivered events.
const MAX_KNOWN_ANSWERS: usize = 64;

/// `with` of `rag/remember`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RememberOptions {
    /// Number of turns stored verbatim.
    pub(crate) window: usize,
    /// Maximum size of the summary in bytes.
    pub(crate) summary: usize,
}

impl Default for RememberOptions {
    fn default() -> Self {
        Self { window: 6, summary: 2000 }
    }
}

impl RememberOptions {
    /// Checks the range of each option.
    ///
    /// # Errors
    /// Names the first option that is out of range.
    pub(crate) fn check(&self) -> Result<(), String> {
        match (self.window, self.summary) {
            (1..=50, 0..=16_384) => Ok(()),
            (1..=50, _) => Err(format!("`summary` is {}: it must be from 0 to 16384 bytes", self.summary)),
            _ => Err(format!("`window` is {}: it must be from 1 to 50 turns", self.window)),
        }
    }
}

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Turn {
    #[serde(default)]
    pub(crate) id: String,
    pub(crate) question: String,
    pub(crate) answer: String,
}

/// Memory of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConversationHistory {
    /// Summary of the turns before `turns`.
    #[serde(default)]
    pub(crate) summary: String,
    /// The most recent turns, oldest first.
    #[serde(default)]
    pub(crate) turns: Vec<Turn>,
    /// Ids of recently added answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    known: Vec<String>,
}

impl ConversationHistory {
    /// Adds a turn. Returns the turns that no longer fit the window.
    fn add(&mut self, turn: Turn, options: RememberOptions) -> Vec<Turn> {
        self.known.push(turn.id.clone());
        self.known.drain(..self.known.len().saturating_sub(MAX_KNOWN_ANSWERS));
        self.turns.push(turn);
        let evicted: Vec<Turn> = self.turns.drain(..self.turns.len().saturating_sub(options.window)).collect();
        for turn in &evicted {
            let line = format!("- {} {}\n", turn.question.trim(), extractive::first_sentence(&turn.answer));
            self.summary.push_str(&line);
        }
        while self.summary.len() > options.summary {
            // Removes the oldest line.
            let end = self.summary.find('\n').map_or(self.summary.len(), |at| at + 1);
            self.summary.drain(..end);
        }
        evicted
    }

    /// The history without internal ids.
    pub(crate) fn without_ids(mut self) -> Self {
        self.known.clear();
        self
    }
}

/// Reads the memory of a conversation.
///
/// # Errors
/// If `views` cannot be read.
pub(crate) async fn read_history(
    views: &dyn Views,
    collection: &str,
    conversation: &str,
) -> Result<Option<ConversationHistory>, FunctionError> {
    views::read(views, &conversation_collection(collection, conversation)).await
}

/// The loaded function.
pub(crate) struct Rememberer {
    pub(crate) context: FunctionContext,
    pub(crate) options: RememberOptions,
}

#[derive(Deserialize)]
struct AnswerInput {
    question: String,
    answer: String,
    #[serde(default)]
    conversation: Option<String>,
    #[serde(default)]
    collection: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Serialize)]
struct MemoryUpdated {
    /// Whether the answer is in the memory of a conversation.
    remembered: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    conversation: Option<String>,
    collection: String,
    question: String,
    answer: String,
    /// Number of turns stored verbatim.
    turns: usize,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[async_trait]
impl Function for Rememberer {
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        join_all(batch.iter().map(|event| self.context.with_timeout(self.remember(event, &context)))).await
    }
}

impl Rememberer {
    async fn remember(&self, event: &Event, context: &Context) -> Outcome {
        let answered: Result<AnswerInput, _> = serde_json::from_slice(&event.data);
        let answered = answered.map_err(|error| invalid(format!("its data is not an answer: {error}")))?;
        let AnswerInput { question, answer: text, conversation, collection, mut rest } = answered;
        for own in ["remembered", "turns"] {
            rest.remove(own);
        }
        let collection = collection.unwrap_or_else(|| DEFAULT_COLLECTION.to_owned());
        let id = answer::id_of(event).to_owned();
        let turn = Turn { id, question: question.clone(), answer: truncated(&text) };
        let (mut turns, mut evicted) = (0, Vec::new());
        if let (Some(conversation), Some(views)) = (&conversation, &context.views) {
            (turns, evicted) = self.add_turn(views.as_ref(), (&collection, conversation), turn).await?;
        }
        let updated = MemoryUpdated {
            remembered: turns > 0,
            conversation: conversation.clone(),
            collection: collection.clone(),
            question,
            answer: text,
            turns,
            rest,
        };
        let mut outcome = self.context.output(event, &updated)?;
        if let (Some(ty), Some(conversation)) = (self.context.auxiliary_output(DOCUMENT_UPLOADED), conversation) {
            for turn in evicted {
                let document = json!({
                    "document": turn.id, "name": turn.question, "collection": conversation_collection(&collection, &conversation),
                    "text": format!("{}\n\n{}", turn.question, turn.answer), "media_type": "text/markdown",
                });
                let data = document.to_string().into_bytes().into();
                let ty = ty.clone();
                outcome.push(Emission { ty, data, content_type: None, subject: None, partition_key: None });
            }
        }
        Ok(outcome)
    }

    /// Adds a turn to a conversation, safely with concurrent writers. A turn that is already stored, because its event
    /// was redelivered, changes nothing.
    async fn add_turn(
        &self,
        views: &dyn Views,
        (collection, conversation): (&str, &str),
        turn: Turn,
    ) -> Result<(usize, Vec<Turn>), FunctionError> {
        let what = format!("the memory of the conversation {conversation}");
        views::update(
            views,
            &conversation_collection(collection, conversation),
            &what,
            |history: &mut ConversationHistory| {
                if history.known.contains(&turn.id) {
                    return ViewChange::Keep((history.turns.len(), Vec::new()));
                }
                let evicted = history.add(turn.clone(), self.options);
                ViewChange::Write((history.turns.len(), evicted))
            },
        )
        .await
    }
}

fn truncated(text: &str) -> String {
    let end = (0..=MAX_ANSWER_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or_default()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(n: usize) -> Turn {
        Turn { id: n.to_string(), question: format!("Question {n}?"), answer: format!("Answer {n}. And more.") }
    }

    #[test]
    fn turns_beyond_the_window_are_summarized() {
        let options = RememberOptions { window: 2, summary: 60 };
        let mut history = ConversationHistory::default();
        let evicted: Vec<usize> = (0..5).map(|n| history.add(turn(n), options).len()).collect();
        assert_eq!(evicted, [0, 0, 1, 1, 1]);
        assert_eq!(history.turns, [turn(3), turn(4)]);
        assert_eq!(history.summary, "- Question 1? Answer 1.\n- Question 2? Answer 2.\n", "the oldest line is gone");
    }
}

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
use nerve_core::{Context, Emission, Event, Fault, Function, FunctionError, Outcome, answer, function::Views};
use nerve_events::{
    EventData,
    answers::{AnsweredQuestion, MemoryUpdated},
    documents::DocumentUploaded,
    retrieval::{ConversationHistory, Turn},
};
use nerve_index::collections::conversation_collection;
use serde::{Deserialize, Serialize};

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

/// Stored memory of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct ConversationMemory {
    #[serde(flatten)]
    history: ConversationHistory,
    /// Ids of recently added answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    known: Vec<String>,
}

impl ConversationMemory {
    /// Adds a turn. Returns the turns that no longer fit the window.
    fn add(&mut self, turn: Turn, options: RememberOptions) -> Vec<Turn> {
        self.known.push(turn.id.clone());
        self.known.drain(..self.known.len().saturating_sub(MAX_KNOWN_ANSWERS));
        let ConversationHistory { summary, turns } = &mut self.history;
        turns.push(turn);
        let evicted: Vec<Turn> = turns.drain(..turns.len().saturating_sub(options.window)).collect();
        for turn in &evicted {
            let line = format!("- {} {}\n", turn.question.trim(), extractive::first_sentence(&turn.answer));
            summary.push_str(&line);
        }
        while summary.len() > options.summary {
            // Removes the oldest line.
            let end = summary.find('\n').map_or(summary.len(), |at| at + 1);
            summary.drain(..end);
        }
        evicted
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
    let memory: Option<ConversationMemory> =
        views::read(views, &conversation_collection(collection, conversation)).await?;
    Ok(memory.map(|memory| memory.history))
}

/// The loaded function.
pub(crate) struct Rememberer {
    pub(crate) context: FunctionContext,
    pub(crate) options: RememberOptions,
}

#[async_trait]
impl Function for Rememberer {
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        join_all(batch.iter().map(|event| self.context.with_timeout(self.remember(event, &context)))).await
    }
}

impl Rememberer {
    async fn remember(&self, event: &Event, context: &Context) -> Outcome {
        let answered: Result<AnsweredQuestion, _> = serde_json::from_slice(&event.data);
        let mut answered = answered.map_err(|error| invalid(format!("its data is not an answer: {error}")))?;
        for own in ["remembered", "turns"] {
            answered.rest.remove(own);
        }
        let collection = answered.collection().to_owned();
        let (mut turns, mut evicted) = (0, Vec::new());
        if let (Some(question), Some(conversation), Some(views)) =
            (&answered.question, &answered.conversation, &context.views)
        {
            let id = answer::id_of(event).to_owned();
            let turn = Turn { id, question: question.clone(), answer: truncated(&answered.answer) };
            (turns, evicted) = self.add_turn(views.as_ref(), (&collection, conversation), turn).await?;
        }
        let conversation = answered.conversation.clone();
        answered.collection = Some(collection.clone());
        let updated = MemoryUpdated { remembered: turns > 0, turns, answered };
        let mut outcome = self.context.output(event, &updated)?;
        if let (Some(ty), Some(conversation)) = (self.context.auxiliary_output(DocumentUploaded::TYPE), conversation) {
            let collection = conversation_collection(&collection, &conversation);
            for turn in evicted {
                let upload = upload_of(turn, collection.clone());
                let upload = serde_json::to_vec(&upload);
                let data = upload.map_err(|error| FunctionError::new(Fault::Crash, error.to_string()))?.into();
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
            |memory: &mut ConversationMemory| {
                if memory.known.contains(&turn.id) {
                    return ViewChange::Keep((memory.history.turns.len(), Vec::new()));
                }
                let evicted = memory.add(turn.clone(), self.options);
                ViewChange::Write((memory.history.turns.len(), evicted))
            },
        )
        .await
    }
}

/// The upload of an earlier turn to the index.
fn upload_of(turn: Turn, collection: String) -> DocumentUploaded {
    let text = format!("{}\n\n{}", turn.question, turn.answer);
    DocumentUploaded {
        collection: Some(collection),
        document: Some(turn.id),
        name: Some(turn.question),
        text: Some(text),
        media_type: Some("text/markdown".to_owned()),
        ..DocumentUploaded::default()
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
        let mut memory = ConversationMemory::default();
        let evicted: Vec<usize> = (0..5).map(|n| memory.add(turn(n), options).len()).collect();
        assert_eq!(evicted, [0, 0, 1, 1, 1]);
        assert_eq!(memory.history.turns, [turn(3), turn(4)]);
        assert_eq!(
            memory.history.summary, "- Question 1? Answer 1.\n- Question 2? Answer 2.\n",
            "the oldest line is gone"
        );
    }
}

//! `rag/remember`: `answer.evaluated` or `answer.generated` → `memory.updated`: what a conversation has come to.
//!
//! The last questions and answers are kept as they are, in a document a conversation in the bucket `views`; of those
//! before them a summary stays there, and each goes into the index as a document of its own, to be found by meaning.

use crate::{
    extract,
    function::{Frame, invalid},
    views::{self, Change},
};
use async_trait::async_trait;
use futures::future::join_all;
use nerve_core::{Context, Emission, Event, Function, FunctionError, Outcome, answer, function::Views};
use nerve_index::{collections::conversation_collection, document::DEFAULT_COLLECTION};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Type of the documents that earlier answers become.
pub(crate) const UPLOADED: &str = "document.uploaded";
/// The longest answer that is kept, in bytes.
const LONGEST_ANSWER: usize = 4096;
/// Answers that are known to be in a conversation already: a repeated event is told by them.
const KNOWN: usize = 64;

/// `with` of `rag/remember`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RememberOptions {
    /// Questions that are kept with their answers.
    pub(crate) window: usize,
    /// The most bytes of the summary of those before them.
    pub(crate) summary: usize,
}

impl Default for RememberOptions {
    fn default() -> Self {
        Self { window: 6, summary: 2000 }
    }
}

impl RememberOptions {
    /// Says which option is out of its bounds.
    pub(crate) fn check(&self) -> Result<(), String> {
        match (self.window, self.summary) {
            (1..=50, 0..=16_384) => Ok(()),
            (1..=50, _) => Err(format!("`summary` is {}: from 0 to 16384 bytes", self.summary)),
            _ => Err(format!("`window` is {}: from 1 to 50 questions", self.window)),
        }
    }
}

/// One question and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Turn {
    #[serde(default)]
    pub(crate) id: String,
    pub(crate) question: String,
    pub(crate) answer: String,
}

/// What is remembered of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct History {
    /// What was said before the turns.
    #[serde(default)]
    pub(crate) summary: String,
    /// The last turns, the oldest first.
    #[serde(default)]
    pub(crate) turns: Vec<Turn>,
    /// Answers that are in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    known: Vec<String>,
}

impl History {
    /// Adds a turn; says which turns no longer fit the window.
    fn add(&mut self, turn: Turn, options: RememberOptions) -> Vec<Turn> {
        self.known.push(turn.id.clone());
        self.known.drain(..self.known.len().saturating_sub(KNOWN));
        self.turns.push(turn);
        let gone: Vec<Turn> = self.turns.drain(..self.turns.len().saturating_sub(options.window)).collect();
        for turn in &gone {
            let line = format!("- {} {}\n", turn.question.trim(), extract::first_sentence(&turn.answer));
            self.summary.push_str(&line);
        }
        while self.summary.len() > options.summary {
            // The oldest line goes first.
            let end = self.summary.find('\n').map_or(self.summary.len(), |at| at + 1);
            self.summary.drain(..end);
        }
        gone
    }

    /// What readers of it need.
    pub(crate) fn shown(mut self) -> Self {
        self.known.clear();
        self
    }
}

/// What is remembered of a conversation, as far as it can be read.
pub(crate) async fn recall(
    views: &dyn Views,
    collection: &str,
    conversation: &str,
) -> Result<Option<History>, FunctionError> {
    views::read(views, &conversation_collection(collection, conversation)).await
}

/// The function, loaded.
pub(crate) struct Rememberer {
    pub(crate) frame: Frame,
    pub(crate) options: RememberOptions,
}

#[derive(Deserialize)]
struct Answered {
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
struct Updated {
    /// Whether it is in the memory of a conversation now.
    remembered: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    conversation: Option<String>,
    collection: String,
    question: String,
    answer: String,
    /// Turns that are kept as they are.
    turns: usize,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[async_trait]
impl Function for Rememberer {
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        join_all(batch.iter().map(|event| self.frame.within(self.remember(event, &context)))).await
    }
}

impl Rememberer {
    async fn remember(&self, event: &Event, context: &Context) -> Outcome {
        let answered: Result<Answered, _> = serde_json::from_slice(&event.data);
        let answered = answered.map_err(|error| invalid(format!("its data is not an answer: {error}")))?;
        let Answered { question, answer: text, conversation, collection, mut rest } = answered;
        for own in ["remembered", "turns"] {
            rest.remove(own);
        }
        let collection = collection.unwrap_or_else(|| DEFAULT_COLLECTION.to_owned());
        let id = answer::id_of(event).to_owned();
        let turn = Turn { id, question: question.clone(), answer: shortened(&text) };
        let (mut turns, mut gone) = (0, Vec::new());
        if let (Some(conversation), Some(views)) = (&conversation, &context.views) {
            (turns, gone) = self.write(views.as_ref(), (&collection, conversation), turn).await?;
        }
        let updated = Updated {
            remembered: turns > 0,
            conversation: conversation.clone(),
            collection: collection.clone(),
            question,
            answer: text,
            turns,
            rest,
        };
        let mut outcome = self.frame.emission(event, &updated)?;
        if let (Some(ty), Some(conversation)) = (self.frame.side_event(UPLOADED), conversation) {
            for turn in gone {
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

    /// Adds a turn to a conversation, whoever else adds to it at the same time. A turn that is in it already, as its
    /// event came again, changes nothing; the turns that it pushed out may be told of again.
    async fn write(
        &self,
        views: &dyn Views,
        (collection, conversation): (&str, &str),
        turn: Turn,
    ) -> Result<(usize, Vec<Turn>), FunctionError> {
        let what = format!("the memory of the conversation {conversation}");
        views::update(views, &conversation_collection(collection, conversation), &what, |history: &mut History| {
            if history.known.contains(&turn.id) {
                return Change::Keep((history.turns.len(), Vec::new()));
            }
            let gone = history.add(turn.clone(), self.options);
            Change::Write((history.turns.len(), gone))
        })
        .await
    }
}

fn shortened(text: &str) -> String {
    let end = (0..=LONGEST_ANSWER.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or_default()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(n: usize) -> Turn {
        Turn { id: n.to_string(), question: format!("Question {n}?"), answer: format!("Answer {n}. And more.") }
    }

    #[test]
    fn the_window_moves_and_what_leaves_it_is_summed_up() {
        let options = RememberOptions { window: 2, summary: 60 };
        let mut history = History::default();
        let gone: Vec<usize> = (0..5).map(|n| history.add(turn(n), options).len()).collect();
        assert_eq!(gone, [0, 0, 1, 1, 1]);
        assert_eq!(history.turns, [turn(3), turn(4)]);
        assert_eq!(history.summary, "- Question 1? Answer 1.\n- Question 2? Answer 2.\n", "the oldest line is gone");
    }
}

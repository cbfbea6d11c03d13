//! What learning remembers: the rankings of the last answers, until somebody says something of them, and what was said.
//!
//! Both are bounded. An answer's ranking is in one of a fixed number of documents, by the answer's id, and the newest
//! of each stay; what was said is the newest of each collection.

use super::ranking::{CANDIDATES, Candidate, Judged};
use crate::views::{self, Change};
use nerve_core::{FunctionError, function::Views};
use nerve_index::collections::digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Documents that rankings are kept in, and rankings of each: some thousand answers, and about 30 MB at most.
const SLOTS: u16 = 2048;
const OF_A_SLOT: usize = 2;
/// One of so many answers is held out: weights are not made from it, but tried on it.
const HELD_OUT: u8 = 3;

/// The keys of all documents of rankings, as a pattern.
pub(crate) const RANKINGS: &str = "ranking.*";

/// An answer, and what it was made from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Answered {
    pub(crate) answer: String,
    pub(crate) collection: String,
    /// In the order that they were found in.
    pub(super) candidates: Vec<Candidate>,
    /// Chunks that the answer cites.
    pub(super) cited: Vec<String>,
}

/// The answers of one document.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Slot {
    answers: Vec<Answered>,
}

/// What readers said of the answers of one collection.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Feedback {
    /// Counts what was said; of each opinion this is when it was.
    pub(super) newest: u64,
    /// The oldest first; of each answer the last that was said.
    pub(super) said: Vec<Said>,
}

/// What a reader said of one answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Said {
    pub(super) answer: String,
    pub(super) at: u64,
    pub(super) ranking: Vec<Judged>,
}

impl Feedback {
    /// Adds what was said; the same said again is the same.
    pub(super) fn add(&mut self, answer: &str, ranking: Vec<Judged>, window: usize) -> bool {
        if self.said.iter().any(|said| said.answer == answer && said.ranking == ranking) {
            return false;
        }
        self.newest += 1;
        self.said.retain(|said| said.answer != answer);
        self.said.push(Said { answer: answer.to_owned(), at: self.newest, ranking });
        self.said.drain(..self.said.len().saturating_sub(window));
        true
    }

    /// What weights are made from, and what they are tried on: which of them, the answer's id alone decides.
    pub(super) fn split(&self) -> (Vec<&[Judged]>, Vec<&[Judged]>) {
        let of = |held_out: bool| {
            let said = self.said.iter().filter(move |said| is_held_out(&said.answer) == held_out);
            said.map(|said| said.ranking.as_slice()).collect()
        };
        (of(false), of(true))
    }

    /// What was said after this.
    pub(super) fn since(&self, at: u64) -> Vec<&[Judged]> {
        self.said.iter().filter(|said| said.at > at).map(|said| said.ranking.as_slice()).collect()
    }
}

pub(super) fn is_held_out(answer: &str) -> bool {
    Sha256::digest(answer).first().is_some_and(|byte| byte % HELD_OUT == 0)
}

/// Where the feedback of a collection is kept.
pub(super) fn feedback_key(collection: &str) -> String {
    format!("feedback.{}", digest(collection))
}

fn slot_of(answer: &str) -> String {
    let digest = Sha256::digest(answer);
    let number = digest.iter().skip(1).take(2).fold(0_u16, |number, byte| (number << 8) | u16::from(*byte));
    format!("ranking.{}", number % SLOTS)
}

/// Remembers what was found for an answer, or what it cites, whichever is told first.
pub(super) async fn remember(views: &dyn Views, told: Answered) -> Result<(), FunctionError> {
    views::update(views, &slot_of(&told.answer), "what is remembered of answers", |slot: &mut Slot| {
        let at = slot.answers.iter().position(|known| known.answer == told.answer);
        let mut known = at.map(|at| slot.answers.remove(at)).unwrap_or_default();
        let before = known.clone();
        known.answer.clone_from(&told.answer);
        if !told.candidates.is_empty() {
            known.candidates = told.candidates.iter().take(CANDIDATES).cloned().map(Candidate::shortened).collect();
            known.collection.clone_from(&told.collection);
        }
        if !told.cited.is_empty() {
            known.cited.clone_from(&told.cited);
        }
        if known == before {
            return Change::Keep(());
        }
        slot.answers.push(known);
        slot.answers.drain(..slot.answers.len().saturating_sub(OF_A_SLOT));
        Change::Write(())
    })
    .await
}

/// What is remembered of an answer.
pub(super) async fn recall(views: &dyn Views, answer: &str) -> Result<Option<Answered>, FunctionError> {
    let slot: Slot = views::read(views, &slot_of(answer)).await?.unwrap_or_default();
    Ok(slot.answers.into_iter().find(|known| known.answer == answer && !known.candidates.is_empty()))
}

/// Removes the answers that `is_erased` names from a document of rankings: how many these are, and the document that stays, if any
/// answer does. Nothing for a document that has none of them.
pub(crate) fn without(document: &[u8], is_erased: impl Fn(&Answered) -> bool) -> Option<(usize, Option<Vec<u8>>)> {
    let mut slot: Slot = serde_json::from_slice(document).ok()?;
    let before = slot.answers.len();
    slot.answers.retain(|known| !is_erased(known));
    let removed = before - slot.answers.len();
    let left = if slot.answers.is_empty() { None } else { serde_json::to_vec(&slot).ok() };
    (removed > 0).then_some((removed, left))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::tests::InMemory;

    fn found(answer: &str) -> Answered {
        let candidates = vec![Candidate { id: "1".into(), text: "ü".repeat(2000), ..Candidate::default() }; 30];
        Answered { answer: answer.into(), collection: "c".into(), candidates, ..Answered::default() }
    }

    #[tokio::test]
    async fn an_answer_is_known_by_what_was_found_for_it_in_any_order() {
        let views = InMemory::default();
        remember(&views, Answered { answer: "a".into(), cited: vec!["1".into()], ..Answered::default() })
            .await
            .unwrap();
        assert_eq!(recall(&views, "a").await.unwrap(), None, "nothing was found for it yet");
        remember(&views, found("a")).await.unwrap();
        let known = recall(&views, "a").await.unwrap().unwrap();
        assert_eq!((known.collection.as_str(), known.cited), ("c", vec!["1".to_owned()]));
        assert_eq!((known.candidates.len(), known.candidates[0].text.len()), (CANDIDATES, 2000));
    }

    #[tokio::test]
    async fn only_so_many_answers_are_remembered() {
        let views = InMemory::default();
        for n in 0..6000 {
            let candidates = vec![Candidate::default()];
            remember(&views, Answered { candidates, answer: n.to_string(), ..Answered::default() }).await.unwrap();
        }
        assert!(views.0.lock().unwrap().len() <= usize::from(SLOTS));
        assert!(recall(&views, "5999").await.unwrap().is_some());
        let mut known = 0;
        for n in 0..6000 {
            known += usize::from(recall(&views, &n.to_string()).await.unwrap().is_some());
        }
        assert!((3000..=usize::from(SLOTS) * OF_A_SLOT).contains(&known), "{known}");
    }

    #[test]
    fn the_last_that_was_said_of_an_answer_counts_once() {
        let judged = |gain| vec![Judged { lexical_rank: Some(1), dense_rank: None, relevance: None, gain }];
        let mut feedback = Feedback::default();
        assert!(feedback.add("a", judged(0.0), 2) && feedback.add("b", judged(0.0), 2));
        assert!(!feedback.add("a", judged(0.0), 2), "the event came again");
        assert!(feedback.add("a", judged(1.0), 2) && feedback.add("c", judged(0.0), 2));
        let said: Vec<(&str, u64)> = feedback.said.iter().map(|said| (said.answer.as_str(), said.at)).collect();
        assert_eq!(said, [("a", 3), ("c", 4)]);
        assert_eq!(feedback.since(3).len(), 1);
        let share = (0..3000).filter(|n: &usize| is_held_out(&n.to_string())).count();
        assert!((900..1100).contains(&share), "{share}");
    }
}

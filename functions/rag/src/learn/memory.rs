//! Stored rankings of recent answers, and stored feedback.
//!
//! Both are limited. An answer id selects one of a fixed number of documents, which keeps its newest rankings; each
//! collection keeps its newest feedback.

use super::ranking::{Candidate, JudgedCandidate, MAX_CANDIDATES};
use crate::views::{self, ViewChange};
use nerve_core::{FunctionError, function::Views};
use nerve_index::collections::name_digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Number of documents with rankings: some thousand answers, and about 30 MB at most.
const RANKING_SLOTS: u16 = 2048;
/// Number of rankings per document.
const RANKINGS_PER_SLOT: usize = 2;
/// One of this many answers is held out of fitting and used for evaluation.
const HELD_OUT_DIVISOR: u8 = 3;

/// Key pattern of the documents with rankings.
pub(crate) const RANKING_KEYS: &str = "ranking.*";

/// An answer with its ranking and citations.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct AnswerRanking {
    pub(crate) answer: String,
    pub(crate) collection: String,
    /// Candidates in the order of the ranking.
    pub(super) candidates: Vec<Candidate>,
    /// Ids of the chunks that the answer cites.
    pub(super) cited: Vec<String>,
}

/// Rankings of one document.
#[derive(Debug, Default, Serialize, Deserialize)]
struct RankingSlot {
    answers: Vec<AnswerRanking>,
}

/// Feedback on the answers of one collection.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct CollectionFeedback {
    /// Sequence number of the newest feedback.
    pub(super) newest: u64,
    /// Judged answers, oldest first; one per answer.
    #[serde(rename = "said")]
    pub(super) judged: Vec<JudgedAnswer>,
}

/// Feedback on one answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct JudgedAnswer {
    pub(super) answer: String,
    pub(super) at: u64,
    pub(super) ranking: Vec<JudgedCandidate>,
}

impl CollectionFeedback {
    /// Adds feedback. Returns `false` if the same feedback is already stored.
    pub(super) fn add(&mut self, answer: &str, ranking: Vec<JudgedCandidate>, window: usize) -> bool {
        if self.judged.iter().any(|judged| judged.answer == answer && judged.ranking == ranking) {
            return false;
        }
        self.newest += 1;
        self.judged.retain(|judged| judged.answer != answer);
        self.judged.push(JudgedAnswer { answer: answer.to_owned(), at: self.newest, ranking });
        self.judged.drain(..self.judged.len().saturating_sub(window));
        true
    }

    /// Splits the feedback by answer id into training and held-out rankings.
    pub(super) fn split(&self) -> (Vec<&[JudgedCandidate]>, Vec<&[JudgedCandidate]>) {
        let of = |held_out: bool| {
            let judged = self.judged.iter().filter(move |judged| is_held_out(&judged.answer) == held_out);
            judged.map(|judged| judged.ranking.as_slice()).collect()
        };
        (of(false), of(true))
    }

    /// Rankings of the feedback after sequence number `at`.
    pub(super) fn since(&self, at: u64) -> Vec<&[JudgedCandidate]> {
        self.judged.iter().filter(|judged| judged.at > at).map(|judged| judged.ranking.as_slice()).collect()
    }
}

pub(super) fn is_held_out(answer: &str) -> bool {
    Sha256::digest(answer).first().is_some_and(|byte| byte % HELD_OUT_DIVISOR == 0)
}

/// Key of a collection's feedback.
pub(super) fn feedback_key(collection: &str) -> String {
    format!("feedback.{}", name_digest(collection))
}

fn slot_key(answer: &str) -> String {
    let digest = Sha256::digest(answer);
    let number = digest.iter().skip(1).take(2).fold(0_u16, |number, byte| (number << 8) | u16::from(*byte));
    format!("ranking.{}", number % RANKING_SLOTS)
}

/// Stores the ranking or the citations of an answer, in any order.
///
/// # Errors
/// If `views` cannot be read or written.
pub(super) async fn store_ranking(views: &dyn Views, answered: AnswerRanking) -> Result<(), FunctionError> {
    views::update(views, &slot_key(&answered.answer), "what is remembered of answers", |slot: &mut RankingSlot| {
        let at = slot.answers.iter().position(|existing| existing.answer == answered.answer);
        let mut existing = at.map(|at| slot.answers.remove(at)).unwrap_or_default();
        let previous = existing.clone();
        existing.answer.clone_from(&answered.answer);
        if !answered.candidates.is_empty() {
            existing.candidates =
                answered.candidates.iter().take(MAX_CANDIDATES).cloned().map(Candidate::truncated).collect();
            existing.collection.clone_from(&answered.collection);
        }
        if !answered.cited.is_empty() {
            existing.cited.clone_from(&answered.cited);
        }
        if existing == previous {
            return ViewChange::Keep(());
        }
        slot.answers.push(existing);
        slot.answers.drain(..slot.answers.len().saturating_sub(RANKINGS_PER_SLOT));
        ViewChange::Write(())
    })
    .await
}

/// Reads the ranking of an answer.
///
/// # Errors
/// If `views` cannot be read.
pub(super) async fn read_ranking(views: &dyn Views, answer: &str) -> Result<Option<AnswerRanking>, FunctionError> {
    let slot: RankingSlot = views::read(views, &slot_key(answer)).await?.unwrap_or_default();
    Ok(slot.answers.into_iter().find(|existing| existing.answer == answer && !existing.candidates.is_empty()))
}

/// Removes the answers that satisfy `is_erased` from a document of rankings. Returns their number and the remaining
/// document; `None` if there are no such answers.
pub(crate) fn remove_answers(
    document: &[u8],
    is_erased: impl Fn(&AnswerRanking) -> bool,
) -> Option<(usize, Option<Vec<u8>>)> {
    let mut slot: RankingSlot = serde_json::from_slice(document).ok()?;
    let previous = slot.answers.len();
    slot.answers.retain(|existing| !is_erased(existing));
    let removed = previous - slot.answers.len();
    let left = if slot.answers.is_empty() { None } else { serde_json::to_vec(&slot).ok() };
    (removed > 0).then_some((removed, left))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::tests::InMemoryViews;

    fn found(answer: &str) -> AnswerRanking {
        let candidates = vec![Candidate { id: "1".into(), text: "ü".repeat(2000), ..Candidate::default() }; 30];
        AnswerRanking { answer: answer.into(), collection: "c".into(), candidates, ..AnswerRanking::default() }
    }

    #[tokio::test]
    async fn ranking_and_citations_are_stored_in_any_order() {
        let views = InMemoryViews::default();
        store_ranking(
            &views,
            AnswerRanking { answer: "a".into(), cited: vec!["1".into()], ..AnswerRanking::default() },
        )
        .await
        .unwrap();
        assert_eq!(read_ranking(&views, "a").await.unwrap(), None, "nothing was found for it yet");
        store_ranking(&views, found("a")).await.unwrap();
        let existing = read_ranking(&views, "a").await.unwrap().unwrap();
        assert_eq!((existing.collection.as_str(), existing.cited), ("c", vec!["1".to_owned()]));
        assert_eq!((existing.candidates.len(), existing.candidates[0].text.len()), (MAX_CANDIDATES, 2000));
    }

    #[tokio::test]
    async fn number_of_stored_rankings_is_limited() {
        let views = InMemoryViews::default();
        for n in 0..6000 {
            let candidates = vec![Candidate::default()];
            store_ranking(&views, AnswerRanking { candidates, answer: n.to_string(), ..AnswerRanking::default() })
                .await
                .unwrap();
        }
        assert!(views.0.lock().len() <= usize::from(RANKING_SLOTS));
        assert!(read_ranking(&views, "5999").await.unwrap().is_some());
        let mut existing = 0;
        for n in 0..6000 {
            existing += usize::from(read_ranking(&views, &n.to_string()).await.unwrap().is_some());
        }
        assert!((3000..=usize::from(RANKING_SLOTS) * RANKINGS_PER_SLOT).contains(&existing), "{existing}");
    }

    #[test]
    fn latest_feedback_on_an_answer_counts_once() {
        let judged = |gain| vec![JudgedCandidate { lexical_rank: Some(1), dense_rank: None, relevance: None, gain }];
        let mut feedback = CollectionFeedback::default();
        assert!(feedback.add("a", judged(0.0), 2) && feedback.add("b", judged(0.0), 2));
        assert!(!feedback.add("a", judged(0.0), 2), "the event came again");
        assert!(feedback.add("a", judged(1.0), 2) && feedback.add("c", judged(0.0), 2));
        let judged: Vec<(&str, u64)> =
            feedback.judged.iter().map(|judged| (judged.answer.as_str(), judged.at)).collect();
        assert_eq!(judged, [("a", 3), ("c", 4)]);
        assert_eq!(feedback.since(3).len(), 1);
        let share = (0..3000).filter(|n: &usize| is_held_out(&n.to_string())).count();
        assert!((900..1100).contains(&share), "{share}");
    }
}

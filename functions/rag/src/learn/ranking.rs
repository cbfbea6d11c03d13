//! What readers say of a ranking, and how good an order is by that: nDCG (Järvelin and Kekäläinen, 2002).

use crate::{extract, learn::weights::Weights};
use nerve_index::fusion::share;
use serde::{Deserialize, Serialize};

/// A correction is said by a text that has this share of its words.
const SAYS: f32 = 0.6;
/// What a rating tells of a document that an answer cited, against a reader's own choice of one: the first documents
/// are cited more often, whether they are right or not.
const RATED: f32 = 0.5;
/// The most candidates of one ranking that are kept.
pub(super) const CANDIDATES: usize = 20;
/// The longest beginning of a text that is kept to hold corrections against, in bytes.
const LONGEST_TEXT: usize = 2000;

/// A document that was found for a question, and where each ranking had it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Candidate {
    /// The chunk.
    pub(super) id: String,
    pub(super) document: String,
    pub(super) name: String,
    pub(super) text: String,
    /// By words, from 1.
    pub(super) lexical_rank: Option<usize>,
    /// By meaning, from 1.
    pub(super) dense_rank: Option<usize>,
    /// As the reranker's model says, from 0 to 1.
    pub(super) relevance: Option<f32>,
}

impl Candidate {
    /// The same with no more text than is needed.
    pub(super) fn shortened(mut self) -> Self {
        let end = (0..=LONGEST_TEXT.min(self.text.len())).rev().find(|at| self.text.is_char_boundary(*at));
        self.text.truncate(end.unwrap_or_default());
        self
    }
}

/// What a reader says of an answer.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(super) struct Opinion {
    /// The answer.
    #[serde(default)]
    pub(super) answer: String,
    /// From -1, wrong, to 1, right.
    #[serde(default)]
    pub(super) rating: Option<f32>,
    /// What would have been right.
    #[serde(default)]
    pub(super) correction: Option<String>,
    /// The chunk that says it, or its document.
    #[serde(default)]
    pub(super) citation: Option<String>,
}

/// A document of a judged ranking: where it stood, and how right it is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Judged {
    #[serde(rename = "l", skip_serializing_if = "Option::is_none", default)]
    pub(super) lexical_rank: Option<usize>,
    #[serde(rename = "d", skip_serializing_if = "Option::is_none", default)]
    pub(super) dense_rank: Option<usize>,
    #[serde(rename = "r", skip_serializing_if = "Option::is_none", default)]
    pub(super) relevance: Option<f32>,
    /// From 0 to 1.
    #[serde(rename = "g")]
    pub(super) gain: f32,
}

/// What a reader's opinion says of each document that was found; none where it tells no document from another.
pub(super) fn judge(candidates: &[Candidate], cited: &[String], opinion: &Opinion) -> Option<Vec<Judged>> {
    let judged = |candidate: &Candidate| Judged {
        lexical_rank: candidate.lexical_rank,
        dense_rank: candidate.dense_rank,
        relevance: candidate.relevance,
        gain: gain(candidate, cited, opinion).clamp(0.0, 1.0),
    };
    let judged: Vec<Judged> = candidates.iter().map(judged).collect();
    let first = judged.first()?.gain;
    judged.iter().any(|one| (one.gain - first).abs() > f32::EPSILON).then_some(judged)
}

fn gain(candidate: &Candidate, cited: &[String], opinion: &Opinion) -> f32 {
    if let Some(chosen) = &opinion.citation {
        return f32::from(u8::from([&candidate.id, &candidate.document, &candidate.name].contains(&chosen)));
    }
    let said = opinion.correction.as_deref().map_or(0.0, |correction| extract::covered(correction, &candidate.text));
    if said >= SAYS {
        return said;
    }
    let is_cited = cited.contains(&candidate.id);
    match opinion.rating {
        Some(rating) if rating > 0.0 && is_cited => RATED * rating,
        // What was cited is wrong: any other may be right.
        Some(rating) if rating < 0.0 && opinion.correction.is_none() && !is_cited => RATED * -rating,
        _ => 0.0,
    }
}

/// How good the orders are that weights give, from 0 to 1: of what retrieval hands on, and of what reranking makes of it.
pub(super) fn quality(ranking: &[Judged], weights: &Weights) -> f32 {
    let fused = fused(ranking, weights);
    let first = ndcg(fused.iter().filter_map(|at| ranking.get(*at)));
    match reranked(ranking, &fused, weights) {
        Some(order) => (first + ndcg(order.iter().filter_map(|at| ranking.get(*at)))) / 2.0,
        None => first,
    }
}

/// Places in the order that the fusion gives them; equals stay as they were.
pub(super) fn fused(ranking: &[Judged], weights: &Weights) -> Vec<usize> {
    let of = |weight: f32, rank: Option<usize>| rank.map_or(0.0, |rank| share(weight, rank));
    let score = |one: &Judged| of(weights.lexical, one.lexical_rank) + of(weights.dense, one.dense_rank);
    ordered(ranking.iter().map(score).collect())
}

/// The same after reranking; none where nothing was reranked.
pub(super) fn reranked(ranking: &[Judged], fused: &[usize], weights: &Weights) -> Option<Vec<usize>> {
    let mut scores = vec![0.0; ranking.len()];
    for (rank, at) in fused.iter().enumerate() {
        let relevance = ranking.get(*at)?.relevance?;
        *scores.get_mut(*at)? = weights.rerank(relevance, rank, ranking.len());
    }
    Some(ordered_like(fused, &scores))
}

fn ordered(scores: Vec<f32>) -> Vec<usize> {
    let places: Vec<usize> = (0..scores.len()).collect();
    ordered_like(&places, &scores)
}

/// Places by their scores, the best first; equals stay in this order.
fn ordered_like(places: &[usize], scores: &[f32]) -> Vec<usize> {
    let score = |at: &usize| scores.get(*at).copied().unwrap_or_default();
    let mut places = places.to_vec();
    places.sort_by(|a, b| score(b).total_cmp(&score(a)));
    places
}

fn ndcg<'j>(order: impl Iterator<Item = &'j Judged>) -> f32 {
    let gains: Vec<f32> = order.map(|one| one.gain).collect();
    let mut best = gains.clone();
    best.sort_by(|a, b| b.total_cmp(a));
    let dcg = |gains: &[f32]| -> f32 {
        // Places are far below where an f32 loses whole numbers.
        #[expect(clippy::cast_precision_loss)]
        gains.iter().enumerate().map(|(place, gain)| gain / (place as f32 + 2.0).log2()).sum()
    };
    let ideal = dcg(&best);
    if ideal > 0.0 { dcg(&gains) / ideal } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates() -> Vec<Candidate> {
        let candidate = |id: &str, text: &str, lexical, dense| Candidate {
            id: id.into(),
            document: format!("{id}.md"),
            text: text.into(),
            lexical_rank: lexical,
            dense_rank: dense,
            ..Candidate::default()
        };
        vec![
            candidate("1", "Late invoices cost ten percent more.", Some(1), Some(3)),
            candidate("2", "Refunds are paid within a week.", Some(2), Some(1)),
            candidate("3", "Trains are slow.", None, Some(2)),
        ]
    }

    fn gains(cited: &[&str], opinion: Opinion) -> Option<Vec<f32>> {
        let cited: Vec<String> = cited.iter().map(|id| (*id).to_owned()).collect();
        judge(&candidates(), &cited, &opinion).map(|judged| judged.iter().map(|one| one.gain).collect())
    }

    #[test]
    fn an_opinion_says_which_documents_are_right() {
        let opinion = Opinion::default;
        let chosen = |citation: &str| Opinion { citation: Some(citation.into()), rating: Some(-1.0), ..opinion() };
        assert_eq!(gains(&["1"], chosen("2")), Some(vec![0.0, 1.0, 0.0]));
        assert_eq!(gains(&["1"], chosen("3.md")), Some(vec![0.0, 0.0, 1.0]));
        assert_eq!(gains(&["1"], chosen("somewhere else")), None, "it was not found");
        let rated = |rating| Opinion { rating: Some(rating), ..opinion() };
        assert_eq!(gains(&["1"], rated(1.0)), Some(vec![0.5, 0.0, 0.0]));
        assert_eq!(gains(&["1"], rated(-0.5)), Some(vec![0.0, 0.25, 0.25]));
        assert_eq!((gains(&["1"], rated(0.0)), gains(&[], rated(1.0))), (None, None));
        assert_eq!(gains(&["1", "2", "3"], rated(1.0)), None, "it tells none from another");
        let corrected = Opinion { correction: Some("Refunds are paid in a week".into()), ..rated(-1.0) };
        let gains = gains(&["1"], corrected).unwrap();
        assert!(gains[1] > 0.6 && gains[0] == 0.0 && gains[2] == 0.0, "{gains:?}");
    }

    #[test]
    fn an_order_is_as_good_as_its_first_places() {
        let ranking = judge(&candidates(), &[], &Opinion { citation: Some("2".into()), ..Opinion::default() }).unwrap();
        let weights = |lexical, dense| Weights { lexical, dense, ..Weights::default() };
        assert_eq!(fused(&ranking, &weights(1.0, 0.0)), [0, 1, 2]);
        assert_eq!(fused(&ranking, &weights(0.0, 1.0)), [1, 2, 0]);
        assert_eq!(quality(&ranking, &weights(0.0, 1.0)), 1.0);
        assert!((quality(&ranking, &weights(1.0, 0.0)) - 1.0 / 3f32.log2()).abs() < 1e-6);
    }

    #[test]
    fn reranking_counts_where_there_was_some() {
        let mut ranking =
            judge(&candidates(), &[], &Opinion { citation: Some("3".into()), ..Opinion::default() }).unwrap();
        for (one, relevance) in ranking.iter_mut().zip([0.1, 0.2, 0.9]) {
            one.relevance = Some(relevance);
        }
        let weights = |relevance, retrieved| Weights { relevance, retrieved, ..Weights::default() };
        let order = |weights: Weights| reranked(&ranking, &fused(&ranking, &weights), &weights).unwrap();
        assert_eq!(order(weights(1.0, 0.0)), [2, 1, 0]);
        assert_eq!(order(weights(0.0, 1.0)), fused(&ranking, &Weights::default()));
        assert!(quality(&ranking, &weights(1.0, 0.0)) > quality(&ranking, &weights(0.0, 1.0)));
    }
}

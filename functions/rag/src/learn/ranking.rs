//! Relevance judgments derived from feedback, and the quality of a ranking: nDCG (Järvelin and Kekäläinen, 2002).

use super::weights::rerank_score;
use crate::extractive;
use nerve_events::feedback::{FeedbackSubmitted, RankingWeights};
use nerve_index::fusion::rank_score;
use serde::{Deserialize, Serialize};

/// Minimum share of a correction's words that a relevant text contains.
const MIN_CORRECTION_COVERAGE: f32 = 0.6;
/// Gain of a cited document from a rating, relative to a document chosen by the reader: top documents are cited more
/// often regardless of relevance.
const RATING_GAIN: f32 = 0.5;
/// Maximum number of candidates stored per ranking.
pub(super) const MAX_CANDIDATES: usize = 20;
/// Maximum size of a candidate's stored text in bytes, used to match corrections.
const MAX_CANDIDATE_TEXT_BYTES: usize = 2000;

/// A retrieved document and its rank in each ranking.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Candidate {
    /// Id of the chunk.
    pub(super) id: String,
    pub(super) document: String,
    pub(super) name: String,
    pub(super) text: String,
    /// Rank in the lexical ranking, from 1.
    pub(super) lexical_rank: Option<usize>,
    /// Rank in the dense ranking, from 1.
    pub(super) dense_rank: Option<usize>,
    /// Relevance by the reranking model, from 0 to 1.
    pub(super) relevance: Option<f32>,
}

impl Candidate {
    /// The candidate with truncated text.
    pub(super) fn truncated(mut self) -> Self {
        let end = (0..=MAX_CANDIDATE_TEXT_BYTES.min(self.text.len())).rev().find(|at| self.text.is_char_boundary(*at));
        self.text.truncate(end.unwrap_or_default());
        self
    }
}

/// A candidate with its relevance judgment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct JudgedCandidate {
    #[serde(rename = "l", skip_serializing_if = "Option::is_none", default)]
    pub(super) lexical_rank: Option<usize>,
    #[serde(rename = "d", skip_serializing_if = "Option::is_none", default)]
    pub(super) dense_rank: Option<usize>,
    #[serde(rename = "r", skip_serializing_if = "Option::is_none", default)]
    pub(super) relevance: Option<f32>,
    /// Relevance from 0 to 1.
    #[serde(rename = "g")]
    pub(super) gain: f32,
}

/// Judges each candidate by the feedback; `None` if the feedback does not distinguish between them.
pub(super) fn judge(
    candidates: &[Candidate],
    cited: &[String],
    feedback: &FeedbackSubmitted,
) -> Option<Vec<JudgedCandidate>> {
    let judged = |candidate: &Candidate| JudgedCandidate {
        lexical_rank: candidate.lexical_rank,
        dense_rank: candidate.dense_rank,
        relevance: candidate.relevance,
        gain: gain(candidate, cited, feedback).clamp(0.0, 1.0),
    };
    let judged: Vec<JudgedCandidate> = candidates.iter().map(judged).collect();
    let first = judged.first()?.gain;
    judged.iter().any(|one| (one.gain - first).abs() > f32::EPSILON).then_some(judged)
}

fn gain(candidate: &Candidate, cited: &[String], feedback: &FeedbackSubmitted) -> f32 {
    if let Some(chosen) = &feedback.citation {
        return f32::from(u8::from([&candidate.id, &candidate.document, &candidate.name].contains(&chosen)));
    }
    let coverage =
        feedback.correction.as_deref().map_or(0.0, |correction| extractive::word_coverage(correction, &candidate.text));
    if coverage >= MIN_CORRECTION_COVERAGE {
        return coverage;
    }
    let is_cited = cited.contains(&candidate.id);
    // A rating from -1 to 1 fits.
    #[expect(clippy::cast_possible_truncation)]
    match feedback.rating.map(|rating| rating as f32) {
        Some(rating) if rating > 0.0 && is_cited => RATING_GAIN * rating,
        // The cited documents are wrong, so any other may be right.
        Some(rating) if rating < 0.0 && feedback.correction.is_none() && !is_cited => RATING_GAIN * -rating,
        _ => 0.0,
    }
}

/// Quality of the orders that weights produce, from 0 to 1: the mean nDCG of retrieval and of reranking.
pub(super) fn quality(ranking: &[JudgedCandidate], weights: &RankingWeights) -> f32 {
    let fused = fused(ranking, weights);
    let first = ndcg(fused.iter().filter_map(|at| ranking.get(*at)));
    match reranked(ranking, &fused, weights) {
        Some(order) => (first + ndcg(order.iter().filter_map(|at| ranking.get(*at)))) / 2.0,
        None => first,
    }
}

/// Indices in the order of the fusion; the order of equal scores is kept.
pub(super) fn fused(ranking: &[JudgedCandidate], weights: &RankingWeights) -> Vec<usize> {
    let of = |weight: f32, rank: Option<usize>| rank.map_or(0.0, |rank| rank_score(weight, rank));
    let score = |one: &JudgedCandidate| of(weights.lexical, one.lexical_rank) + of(weights.dense, one.dense_rank);
    ordered(ranking.iter().map(score).collect())
}

/// Indices in the order of the reranking; `None` if there was none.
pub(super) fn reranked(ranking: &[JudgedCandidate], fused: &[usize], weights: &RankingWeights) -> Option<Vec<usize>> {
    let mut scores = vec![0.0; ranking.len()];
    for (rank, at) in fused.iter().enumerate() {
        let relevance = ranking.get(*at)?.relevance?;
        *scores.get_mut(*at)? = rerank_score(weights, relevance, rank, ranking.len());
    }
    Some(ordered_by(fused, &scores))
}

fn ordered(scores: Vec<f32>) -> Vec<usize> {
    let indices: Vec<usize> = (0..scores.len()).collect();
    ordered_by(&indices, &scores)
}

/// Indices by descending score; the order of equal scores is kept.
fn ordered_by(indices: &[usize], scores: &[f32]) -> Vec<usize> {
    let score = |at: &usize| scores.get(*at).copied().unwrap_or_default();
    let mut indices = indices.to_vec();
    indices.sort_by(|a, b| score(b).total_cmp(&score(a)));
    indices
}

fn ndcg<'j>(order: impl Iterator<Item = &'j JudgedCandidate>) -> f32 {
    let gains: Vec<f32> = order.map(|one| one.gain).collect();
    let mut best = gains.clone();
    best.sort_by(|a, b| b.total_cmp(a));
    let dcg = |gains: &[f32]| -> f32 {
        // Ranks are far below the integer precision of an f32.
        #[expect(clippy::cast_precision_loss)]
        gains.iter().enumerate().map(|(rank, gain)| gain / (rank as f32 + 2.0).log2()).sum()
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

    fn gains(cited: &[&str], feedback: FeedbackSubmitted) -> Option<Vec<f32>> {
        let cited: Vec<String> = cited.iter().map(|id| (*id).to_owned()).collect();
        judge(&candidates(), &cited, &feedback).map(|judged| judged.iter().map(|one| one.gain).collect())
    }

    #[test]
    fn feedback_judges_each_candidate() {
        let feedback = FeedbackSubmitted::default;
        let chosen =
            |citation: &str| FeedbackSubmitted { citation: Some(citation.into()), rating: Some(-1.0), ..feedback() };
        assert_eq!(gains(&["1"], chosen("2")), Some(vec![0.0, 1.0, 0.0]));
        assert_eq!(gains(&["1"], chosen("3.md")), Some(vec![0.0, 0.0, 1.0]));
        assert_eq!(gains(&["1"], chosen("somewhere else")), None, "it was not found");
        let rated = |rating| FeedbackSubmitted { rating: Some(rating), ..feedback() };
        assert_eq!(gains(&["1"], rated(1.0)), Some(vec![0.5, 0.0, 0.0]));
        assert_eq!(gains(&["1"], rated(-0.5)), Some(vec![0.0, 0.25, 0.25]));
        assert_eq!((gains(&["1"], rated(0.0)), gains(&[], rated(1.0))), (None, None));
        assert_eq!(gains(&["1", "2", "3"], rated(1.0)), None, "it tells none from another");
        let corrected = FeedbackSubmitted { correction: Some("Refunds are paid in a week".into()), ..rated(-1.0) };
        let gains = gains(&["1"], corrected).unwrap();
        assert!(gains[1] > 0.6 && gains[0] == 0.0 && gains[2] == 0.0, "{gains:?}");
    }

    #[test]
    fn quality_depends_on_the_top_ranks() {
        let ranking = judge(
            &candidates(),
            &[],
            &FeedbackSubmitted { citation: Some("2".into()), ..FeedbackSubmitted::default() },
        )
        .unwrap();
        let weights = |lexical, dense| RankingWeights { lexical, dense, ..RankingWeights::default() };
        assert_eq!(fused(&ranking, &weights(1.0, 0.0)), [0, 1, 2]);
        assert_eq!(fused(&ranking, &weights(0.0, 1.0)), [1, 2, 0]);
        assert_eq!(quality(&ranking, &weights(0.0, 1.0)), 1.0);
        assert!((quality(&ranking, &weights(1.0, 0.0)) - 1.0 / 3f32.log2()).abs() < 1e-6);
    }

    #[test]
    fn quality_includes_reranking() {
        let mut ranking = judge(
            &candidates(),
            &[],
            &FeedbackSubmitted { citation: Some("3".into()), ..FeedbackSubmitted::default() },
        )
        .unwrap();
        for (one, relevance) in ranking.iter_mut().zip([0.1, 0.2, 0.9]) {
            one.relevance = Some(relevance);
        }
        let weights = |relevance, retrieved| RankingWeights { relevance, retrieved, ..RankingWeights::default() };
        let order = |weights: RankingWeights| reranked(&ranking, &fused(&ranking, &weights), &weights).unwrap();
        assert_eq!(order(weights(1.0, 0.0)), [2, 1, 0]);
        assert_eq!(order(weights(0.0, 1.0)), fused(&ranking, &RankingWeights::default()));
        assert!(quality(&ranking, &weights(1.0, 0.0)) > quality(&ranking, &weights(0.0, 1.0)));
    }
}

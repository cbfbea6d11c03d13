//! `rag/evaluate`: `answer.generated` → `answer.evaluated`, and `answer.flagged` if a measure is beyond its threshold.
//!
//! The measures follow RAGAS (Es et al., 2023), without a language model as judge: a sentence is grounded as far as a
//! citation has a similar vector or contains its words.

use crate::{
    embedder::{Embedder, cosine},
    extractive,
    function::{FunctionContext, invalid},
};
use async_trait::async_trait;
use futures::future::join_all;
use nerve_core::{Context, Emission, Event, Fault, Function, FunctionError, Outcome, inference::Purpose};
use nerve_events::{
    EventData,
    answers::{AnswerEvaluated, AnswerFlagged, AnswerGenerated, Citation, ContextDocument, Evaluation, Flag, Usage},
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Maximum number of sentences that are evaluated.
const MAX_SENTENCES: usize = 64;

/// `with` of `rag/evaluate`: thresholds beyond which an answer is flagged.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EvaluateOptions {
    /// Minimum groundedness of the least grounded sentence, from 0 to 1.
    pub(crate) groundedness: f32,
    /// Minimum similarity of the answer and the question, from 0 to 1.
    pub(crate) relevance: f32,
    /// Minimum context precision, from 0 to 1.
    pub(crate) precision: f32,
    /// Maximum latency in milliseconds; 0 for no limit.
    pub(crate) latency_ms: u64,
    /// Maximum cost; 0 for no limit.
    pub(crate) cost: f64,
    /// Price of a million prompt tokens and of a million completion tokens.
    pub(crate) price: Price,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        Self { groundedness: 0.5, relevance: 0.3, precision: 0.0, latency_ms: 0, cost: 0.0, price: Price::default() }
    }
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Price {
    prompt: f64,
    completion: f64,
}

impl Price {
    // Token counts are far below the integer precision of an f64.
    #[expect(clippy::cast_precision_loss)]
    fn of(self, usage: Usage) -> f64 {
        (self.prompt * usage.prompt_tokens as f64 + self.completion * usage.completion_tokens as f64) / 1e6
    }
}

/// The loaded function.
pub(crate) struct Evaluator {
    pub(crate) context: FunctionContext,
    pub(crate) embedder: Embedder,
    pub(crate) options: EvaluateOptions,
}

#[async_trait]
impl Function for Evaluator {
    async fn invoke(&self, batch: Vec<Event>, _context: Context) -> Vec<Outcome> {
        join_all(batch.iter().map(|event| self.context.with_timeout(self.evaluate(event)))).await
    }
}

impl Evaluator {
    async fn evaluate(&self, event: &Event) -> Outcome {
        let generated: Result<AnswerGenerated, _> = serde_json::from_slice(&event.data);
        let generated = generated.map_err(|error| invalid(format!("its data is not an answer: {error}")))?;
        let mut evaluation = if generated.answered { self.measure(&generated).await? } else { Evaluation::default() };
        evaluation.latency_ms = latency(&generated, event.time);
        evaluation.tokens = generated.usage.map_or(0, |usage| usage.total());
        evaluation.cost = generated.usage.map_or(0.0, |usage| self.options.price.of(usage));
        let flags = self.options.flags(&evaluation);
        let evaluated = AnswerEvaluated { generated, evaluation, flags };
        let mut outcome = self.context.output(event, &evaluated)?;
        if !evaluated.flags.is_empty()
            && let Some(ty) = self.context.auxiliary_output(AnswerFlagged::TYPE)
        {
            let AnswerEvaluated { generated, evaluation, flags } = evaluated;
            let data = serde_json::to_vec(&AnswerFlagged { generated, evaluation, flags });
            let data = data.map_err(|error| FunctionError::new(Fault::Crash, error.to_string()))?.into();
            let (ty, subject) = (ty.clone(), event.subject.clone());
            outcome.push(Emission { ty, data, content_type: None, subject, partition_key: None });
        }
        Ok(outcome)
    }

    /// Measures an answer that does not decline to answer. Without its question, its relevance is unknown.
    async fn measure(&self, generated: &AnswerGenerated) -> Result<Evaluation, FunctionError> {
        let sentences = extractive::claims(&generated.answer, MAX_SENTENCES);
        let mut texts: Vec<String> = sentences.iter().map(|claim| claim.text.clone()).collect();
        texts.extend(generated.citations.iter().map(|citation| citation.text.clone()));
        texts.push(generated.answer.clone());
        let vectors = self.embedder.embed(texts, Purpose::Document).await?;
        let question = match &generated.question {
            Some(question) => Some(self.embedder.question(question).await?),
            None => None,
        };
        let (claimed, rest) = vectors.split_at(sentences.len().min(vectors.len()));
        let (cited, answer) = rest.split_at(generated.citations.len().min(rest.len()));
        let grounded: Vec<f32> = sentences
            .iter()
            .zip(claimed)
            .map(|(claim, vector)| groundedness(claim, vector, &generated.citations, cited))
            .collect();
        // Sentence counts are far below the integer precision of an f32.
        #[expect(clippy::cast_precision_loss)]
        let mean = (!grounded.is_empty()).then(|| grounded.iter().sum::<f32>() / grounded.len() as f32);
        Ok(Evaluation {
            groundedness: mean,
            least_grounded: grounded.iter().copied().min_by(f32::total_cmp),
            relevance: question.zip(answer.first()).map(|(question, vector)| cosine(&question, vector).clamp(0.0, 1.0)),
            context_precision: context_precision(generated),
            ..Evaluation::default()
        })
    }
}

/// Coverage of a sentence by its best citation: one that the sentence names, or any if no citation has a number.
fn groundedness(claim: &extractive::Claim, vector: &[f32], citations: &[Citation], cited: &[Vec<f32>]) -> f32 {
    let named = citations.iter().any(|citation| citation.number.is_some());
    let is_eligible =
        |citation: &Citation| !named || citation.number.is_some_and(|number| claim.numbers.contains(&number));
    let coverage = |(citation, other): (&Citation, &Vec<f32>)| {
        is_eligible(citation)
            .then(|| cosine(vector, other).max(extractive::word_coverage(&claim.text, &citation.text)).clamp(0.0, 1.0))
    };
    citations.iter().zip(cited).filter_map(coverage).max_by(f32::total_cmp).unwrap_or(0.0)
}

/// Context precision: the mean, over cited documents, of the share of cited documents up to that rank.
fn context_precision(generated: &AnswerGenerated) -> Option<f32> {
    let is_cited = |source: &ContextDocument| generated.citations.iter().any(|citation| cites(citation, source));
    let (mut sum, mut found) = (0.0, 0_u16);
    for (rank, _) in generated.context.iter().enumerate().filter(|(_, source)| is_cited(source)) {
        found += 1;
        sum += f32::from(found) / f32::from(u16::try_from(rank + 1).unwrap_or(u16::MAX));
    }
    (found > 0).then(|| sum / f32::from(found))
}

/// Whether a citation is of this chunk, or of its document if a generator does not name chunks.
fn cites(citation: &Citation, source: &ContextDocument) -> bool {
    match citation.chunk.is_empty() || source.chunk.is_empty() {
        true => citation.source == source.source,
        false => citation.chunk == source.chunk,
    }
}

fn latency(generated: &AnswerGenerated, answered_at: Option<OffsetDateTime>) -> Option<u64> {
    let asked_at = generated.rest.get("asked_at").and_then(Value::as_str)?;
    let asked_at = OffsetDateTime::parse(asked_at, &Rfc3339).ok()?;
    u64::try_from((answered_at? - asked_at).whole_milliseconds()).ok()
}

impl EvaluateOptions {
    /// Checks the range of each option.
    ///
    /// # Errors
    /// Names the first option that is out of range.
    pub(crate) fn check(&self) -> Result<(), String> {
        let ratios = BTreeMap::from([
            ("groundedness", self.groundedness),
            ("relevance", self.relevance),
            ("precision", self.precision),
        ]);
        if let Some((name, value)) = ratios.into_iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
            return Err(format!("`{name}` is {value}: it must be from 0 to 1"));
        }
        let money = [self.cost, self.price.prompt, self.price.completion];
        if money.iter().any(|amount| *amount < 0.0 || !amount.is_finite()) {
            return Err("`cost` and `price` must not be negative".to_owned());
        }
        Ok(())
    }

    fn flags(&self, evaluation: &Evaluation) -> Vec<Flag> {
        let mut flags = Vec::new();
        let minimums = [
            ("groundedness", evaluation.least_grounded, self.groundedness),
            ("relevance", evaluation.relevance, self.relevance),
            ("context_precision", evaluation.context_precision, self.precision),
        ];
        for (measure, value, threshold) in minimums {
            if let Some(value) = value.filter(|value| *value < threshold) {
                flags.push(Flag { measure: measure.to_owned(), value: value.into(), threshold: threshold.into() });
            }
        }
        // Times are far below the integer precision of an f64.
        #[expect(clippy::cast_precision_loss)]
        let maximums = [
            ("latency_ms", evaluation.latency_ms.unwrap_or_default() as f64, self.latency_ms as f64),
            ("cost", evaluation.cost, self.cost),
        ];
        for (measure, value, threshold) in maximums {
            if threshold > 0.0 && value > threshold {
                flags.push(Flag { measure: measure.to_owned(), value, threshold });
            }
        }
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn generated(value: Value) -> AnswerGenerated {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn context_precision_rewards_cited_documents_at_the_top() {
        let of = |cited: &[&str]| {
            let citations: Vec<Value> = cited.iter().map(|chunk| json!({"chunk": chunk})).collect();
            let context = json!([{"chunk": "a"}, {"chunk": "b"}, {"chunk": "c"}, {"chunk": "d"}]);
            context_precision(&generated(
                json!({"question": "", "answer": "", "citations": citations, "context": context}),
            ))
        };
        assert_eq!((of(&["a"]), of(&["b"]), of(&["a", "b"]), of(&[])), (Some(1.0), Some(0.5), Some(1.0), None));
        assert_eq!(of(&["a", "c"]), Some((1.0 + 2.0 / 3.0) / 2.0));
        let without_chunks = json!({"answer": "", "citations": [{"source": "b", "text": ""}],
                                    "context": [{"source": "a"}, {"source": "b"}]});
        assert_eq!(context_precision(&generated(without_chunks)), Some(0.5));
    }

    #[test]
    fn claim_is_grounded_by_its_own_citations() {
        let citation =
            |number: Option<usize>, text: &str| Citation { number, text: text.into(), ..Citation::default() };
        let claims = extractive::claims("Late invoices cost more [1]. Trains are slow [2].", 10);
        let (near, far) = (vec![1.0, 0.0], vec![0.0, 1.0]);
        let numbered = [citation(Some(1), "x"), citation(Some(2), "Trains are slow.")];
        let both = [near.clone(), far.clone()];
        assert_eq!(groundedness(&claims[0], &near, &numbered, &both), 1.0);
        assert_eq!(groundedness(&claims[0], &far, &numbered, &both), 0.0, "the other citation does not count");
        assert_eq!(groundedness(&claims[1], &near, &numbered, &both), 1.0, "its words are all there");
        assert_eq!(groundedness(&claims[1], &near, &[], &[]), 0.0);
        assert_eq!(groundedness(&claims[0], &far, &[citation(None, "x"), citation(None, "y")], &both), 1.0);
    }

    #[test]
    fn measure_beyond_its_threshold_is_flagged() {
        let options = EvaluateOptions { latency_ms: 10, cost: 0.5, ..EvaluateOptions::default() };
        let fine = Evaluation { least_grounded: Some(0.9), relevance: Some(0.9), ..Evaluation::default() };
        assert!(options.flags(&fine).is_empty() && options.flags(&Evaluation::default()).is_empty());
        let bad = Evaluation { least_grounded: Some(0.1), latency_ms: Some(11), cost: 0.6, ..fine };
        let flagged: Vec<String> = options.flags(&bad).into_iter().map(|flag| flag.measure).collect();
        assert_eq!(flagged, ["groundedness", "latency_ms", "cost"]);
    }

    #[test]
    fn latency_and_cost_are_measured() {
        let answer = generated(json!({"question": "", "answer": "", "asked_at": "2026-01-01T00:00:00Z"}));
        let later = time::macros::datetime!(2026-01-01 00:00:01.5 UTC);
        assert_eq!((latency(&answer, Some(later)), latency(&answer, None)), (Some(1500), None));
        let price = Price { prompt: 1.0, completion: 2.0 };
        assert_eq!(price.of(Usage { prompt_tokens: 1_000_000, completion_tokens: 500_000 }), 2.0);
    }
}

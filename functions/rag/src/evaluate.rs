//! `rag/evaluate`: `answer.generated` → `answer.evaluated`, and `answer.flagged` where something is below its bound.
//!
//! The measures are those of RAGAS (Es et al., 2023), without a language model to judge: what a sentence claims is
//! grounded as far as a citation says the same, by meaning or word for word.

use crate::{
    embedder::{Embedder, cosine},
    extract::{self, Citation},
    function::{Frame, invalid},
    generate::{Usage, known},
};
use async_trait::async_trait;
use futures::future::join_all;
use nerve_core::{Context, Emission, Event, Fault, Function, FunctionError, Outcome, inference::Purpose};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Type: an answer is below one of its bounds.
pub(crate) const FLAGGED: &str = "answer.flagged";
/// Sentences of an answer that are looked at.
const SENTENCES: usize = 64;

/// `with` of `rag/evaluate`: below (or, of time and cost, above) these an answer is flagged.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EvaluateOptions {
    /// How far the least grounded sentence must be covered by a citation, from 0 to 1.
    pub(crate) groundedness: f32,
    /// How near the answer must be to the question, from 0 to 1.
    pub(crate) relevance: f32,
    /// How far the cited documents must stand before the others, from 0 to 1.
    pub(crate) precision: f32,
    /// The longest an answer may take, in milliseconds; 0 is no bound.
    pub(crate) latency_ms: u64,
    /// The most an answer may cost; 0 is no bound.
    pub(crate) cost: f64,
    /// What a million tokens cost that a language model reads, and writes.
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
    // Tokens are far below where an f64 loses whole numbers.
    #[expect(clippy::cast_precision_loss)]
    fn of(self, usage: Usage) -> f64 {
        (self.prompt * usage.prompt_tokens as f64 + self.completion * usage.completion_tokens as f64) / 1e6
    }
}

/// The function, loaded.
pub(crate) struct Evaluator {
    pub(crate) frame: Frame,
    pub(crate) embedder: Embedder,
    pub(crate) options: EvaluateOptions,
}

#[derive(Deserialize, Serialize)]
struct Generated {
    question: String,
    answer: String,
    #[serde(default = "yes")]
    answered: bool,
    #[serde(default)]
    citations: Vec<Citation>,
    #[serde(default)]
    context: Vec<Source>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize, Serialize)]
struct Source {
    chunk: String,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// What is measured of an answer; nothing of one that says that the documents do not answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
struct Evaluation {
    /// How far the sentences are covered by citations, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    groundedness: Option<f32>,
    /// The same, of the sentence that is covered least.
    #[serde(skip_serializing_if = "Option::is_none")]
    least_grounded: Option<f32>,
    /// How near the answer is to the question.
    #[serde(skip_serializing_if = "Option::is_none")]
    relevance: Option<f32>,
    /// How far the cited documents stand before the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    context_precision: Option<f32>,
    /// From the question's event to the answer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<u64>,
    tokens: usize,
    cost: f64,
}

#[derive(Serialize)]
struct Evaluated<'g> {
    #[serde(flatten)]
    generated: &'g Generated,
    evaluation: Evaluation,
    /// What is out of its bound, and by how much.
    flags: Vec<Flag>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Flag {
    measure: &'static str,
    value: f64,
    bound: f64,
}

#[async_trait]
impl Function for Evaluator {
    async fn invoke(&self, batch: Vec<Event>, _context: Context) -> Vec<Outcome> {
        join_all(batch.iter().map(|event| self.frame.within(self.evaluate(event)))).await
    }
}

impl Evaluator {
    async fn evaluate(&self, event: &Event) -> Outcome {
        let generated: Result<Generated, _> = serde_json::from_slice(&event.data);
        let generated = generated.map_err(|error| invalid(format!("its data is not an answer: {error}")))?;
        let mut evaluation = if generated.answered { self.measure(&generated).await? } else { Evaluation::default() };
        evaluation.latency_ms = latency(&generated, event.time);
        evaluation.tokens = generated.usage.map_or(0, |usage| usage.prompt_tokens + usage.completion_tokens);
        evaluation.cost = generated.usage.map_or(0.0, |usage| self.options.price.of(usage));
        let flags = self.options.flags(&evaluation);
        let flagged = !flags.is_empty();
        let evaluated = Evaluated { generated: &generated, evaluation, flags };
        let mut outcome = self.frame.emission(event, &evaluated)?;
        if flagged && let Some(ty) = known(FLAGGED).and_then(|_| self.frame.side_event(FLAGGED)) {
            let data =
                serde_json::to_vec(&evaluated).map_err(|error| FunctionError::new(Fault::Crash, error.to_string()))?;
            let subject = event.subject.clone();
            let (ty, data) = (ty.clone(), data.into());
            outcome.push(Emission { ty, data, content_type: None, subject, partition_key: None });
        }
        Ok(outcome)
    }

    async fn measure(&self, generated: &Generated) -> Result<Evaluation, FunctionError> {
        let sentences = extract::claims(&generated.answer, SENTENCES);
        let mut texts: Vec<String> = sentences.iter().map(|claim| claim.text.clone()).collect();
        texts.extend(generated.citations.iter().map(|citation| citation.text.clone()));
        texts.push(generated.answer.clone());
        let vectors = self.embedder.embed(texts, Purpose::Document).await?;
        let question = self.embedder.question(&generated.question).await?;
        let (claimed, rest) = vectors.split_at(sentences.len().min(vectors.len()));
        let (cited, answer) = rest.split_at(generated.citations.len().min(rest.len()));
        let grounded: Vec<f32> = sentences
            .iter()
            .zip(claimed)
            .map(|(claim, vector)| groundedness(claim, vector, &generated.citations, cited))
            .collect();
        // Sentences are few, far below where an f32 loses whole numbers.
        #[expect(clippy::cast_precision_loss)]
        let mean = (!grounded.is_empty()).then(|| grounded.iter().sum::<f32>() / grounded.len() as f32);
        Ok(Evaluation {
            groundedness: mean,
            least_grounded: grounded.iter().copied().min_by(f32::total_cmp),
            relevance: answer.first().map(|vector| cosine(&question, vector).clamp(0.0, 1.0)),
            context_precision: precision(generated),
            ..Evaluation::default()
        })
    }
}

/// How far the citation that says most of a sentence covers it: those that the sentence names, or where no sentence
/// names any, all of them.
fn groundedness(claim: &extract::Claim, vector: &[f32], citations: &[Citation], cited: &[Vec<f32>]) -> f32 {
    let named = citations.iter().any(|citation| citation.number.is_some());
    let counts = |citation: &Citation| !named || citation.number.is_some_and(|number| claim.numbers.contains(&number));
    let covers = |(citation, other): (&Citation, &Vec<f32>)| {
        counts(citation)
            .then(|| cosine(vector, other).max(extract::covered(&claim.text, &citation.text)).clamp(0.0, 1.0))
    };
    citations.iter().zip(cited).filter_map(covers).max_by(f32::total_cmp).unwrap_or(0.0)
}

/// Context precision: at the place of each document that is cited, the share of those up to there that are.
fn precision(generated: &Generated) -> Option<f32> {
    let is_cited = |source: &Source| generated.citations.iter().any(|citation| citation.chunk == source.chunk);
    let (mut sum, mut found) = (0.0, 0_u16);
    for (place, _) in generated.context.iter().enumerate().filter(|(_, source)| is_cited(source)) {
        found += 1;
        sum += f32::from(found) / f32::from(u16::try_from(place + 1).unwrap_or(u16::MAX));
    }
    (found > 0).then(|| sum / f32::from(found))
}

fn latency(generated: &Generated, answered_at: Option<OffsetDateTime>) -> Option<u64> {
    let asked_at = generated.rest.get("asked_at").and_then(Value::as_str)?;
    let asked_at = OffsetDateTime::parse(asked_at, &Rfc3339).ok()?;
    u64::try_from((answered_at? - asked_at).whole_milliseconds()).ok()
}

impl EvaluateOptions {
    /// Says which option is out of its bounds.
    pub(crate) fn check(&self) -> Result<(), String> {
        let shares = BTreeMap::from([
            ("groundedness", self.groundedness),
            ("relevance", self.relevance),
            ("precision", self.precision),
        ]);
        if let Some((name, value)) = shares.into_iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
            return Err(format!("`{name}` is {value}: it must be from 0 to 1"));
        }
        let money = [self.cost, self.price.prompt, self.price.completion];
        if money.iter().any(|amount| *amount < 0.0 || !amount.is_finite()) {
            return Err("`cost` and `price` must not be below 0".to_owned());
        }
        Ok(())
    }

    fn flags(&self, evaluation: &Evaluation) -> Vec<Flag> {
        let mut flags = Vec::new();
        let low = [
            ("groundedness", evaluation.least_grounded, self.groundedness),
            ("relevance", evaluation.relevance, self.relevance),
            ("context_precision", evaluation.context_precision, self.precision),
        ];
        for (measure, value, bound) in low {
            if let Some(value) = value.filter(|value| *value < bound) {
                flags.push(Flag { measure, value: value.into(), bound: bound.into() });
            }
        }
        // Times are far below where an f64 loses whole numbers.
        #[expect(clippy::cast_precision_loss)]
        let high = [
            ("latency_ms", evaluation.latency_ms.unwrap_or_default() as f64, self.latency_ms as f64),
            ("cost", evaluation.cost, self.cost),
        ];
        for (measure, value, bound) in high {
            if bound > 0.0 && value > bound {
                flags.push(Flag { measure, value, bound });
            }
        }
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn generated(value: Value) -> Generated {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_cited_should_stand_first() {
        let of = |cited: &[&str]| {
            let citations: Vec<Value> = cited.iter().map(|chunk| json!({"chunk": chunk})).collect();
            let context = json!([{"chunk": "a"}, {"chunk": "b"}, {"chunk": "c"}, {"chunk": "d"}]);
            precision(&generated(json!({"question": "", "answer": "", "citations": citations, "context": context})))
        };
        assert_eq!((of(&["a"]), of(&["b"]), of(&["a", "b"]), of(&[])), (Some(1.0), Some(0.5), Some(1.0), None));
        assert_eq!(of(&["a", "c"]), Some((1.0 + 2.0 / 3.0) / 2.0));
    }

    #[test]
    fn a_claim_is_grounded_by_the_citations_it_names() {
        let citation =
            |number: Option<usize>, text: &str| Citation { number, text: text.into(), ..Citation::default() };
        let claims = extract::claims("Late invoices cost more [1]. Trains are slow [2].", 10);
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
    fn what_is_out_of_bounds_is_flagged_with_its_value() {
        let options = EvaluateOptions { latency_ms: 10, cost: 0.5, ..EvaluateOptions::default() };
        let fine = Evaluation { least_grounded: Some(0.9), relevance: Some(0.9), ..Evaluation::default() };
        assert!(options.flags(&fine).is_empty() && options.flags(&Evaluation::default()).is_empty());
        let bad = Evaluation { least_grounded: Some(0.1), latency_ms: Some(11), cost: 0.6, ..fine };
        let flagged: Vec<&str> = options.flags(&bad).iter().map(|flag| flag.measure).collect();
        assert_eq!(flagged, ["groundedness", "latency_ms", "cost"]);
    }

    #[test]
    fn time_and_money_are_counted() {
        let answer = generated(json!({"question": "", "answer": "", "asked_at": "2026-01-01T00:00:00Z"}));
        let later = time::macros::datetime!(2026-01-01 00:00:01.5 UTC);
        assert_eq!((latency(&answer, Some(later)), latency(&answer, None)), (Some(1500), None));
        let price = Price { prompt: 1.0, completion: 2.0 };
        assert_eq!(price.of(Usage { prompt_tokens: 1_000_000, completion_tokens: 500_000 }), 2.0);
    }
}

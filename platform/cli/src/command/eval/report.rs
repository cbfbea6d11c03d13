//! Results of an evaluation run, compared with the last run.

use super::{Question, run::QuestionResult};
use crate::output;
use anyhow::anyhow;
use nerve_broker::bus::Bus;
use nerve_core::function::Views;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

/// Maximum listed questions with problems.
const MAX_LISTED_QUESTIONS: usize = 10;

/// Averages of one run. Shares are from 0 to 1; `None` if no question has the required data.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct EvalRun {
    #[serde(with = "time::serde::rfc3339::option")]
    at: Option<OffsetDateTime>,
    questions: usize,
    answered: usize,
    failed: usize,
    /// Share of questions whose source is among the top 5 documents in the context of the answer.
    recall_at_5: Option<f64>,
    /// Share of questions whose source is among the top 10 retrieved documents.
    recall_at_10: Option<f64>,
    /// Mean reciprocal rank of the source.
    reciprocal_rank: Option<f64>,
    /// Share of questions whose source is cited.
    cited: Option<f64>,
    groundedness: Option<f64>,
    relevance: Option<f64>,
    context_precision: Option<f64>,
    latency_p50_ms: Option<f64>,
    latency_p99_ms: Option<f64>,
    tokens: u64,
    cost: f64,
    flagged: usize,
    /// Questions whose source was not retrieved, and failed questions with the cause.
    #[serde(default)]
    missed: Vec<String>,
}

impl EvalRun {
    pub(super) fn of(questions: &[Question], results: Vec<QuestionResult>) -> Self {
        let mut run = Self { at: Some(OffsetDateTime::now_utc()), questions: questions.len(), ..Self::default() };
        let (mut at_5, mut at_10, mut ranks, mut cited) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut grounded, mut relevant, mut precise, mut late) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (question, one) in questions.iter().zip(results) {
            let is_source = |name: &String| question.source.iter().any(|source| name.ends_with(source.as_str()));
            if !question.source.is_empty() {
                let is_found = one.context.iter().take(5).any(is_source);
                at_5.push(share(is_found));
                at_10.push(share(one.retrieved.iter().take(10).any(is_source)));
                // Ranks are exact in an f64.
                #[expect(clippy::cast_precision_loss)]
                ranks.push(one.context.iter().position(is_source).map_or(0.0, |index| 1.0 / (index + 1) as f64));
                if !is_found {
                    run.missed.push(format!("{} (not found: {})", question.question, question.source.join(", ")));
                }
            }
            let answer = match one.answer {
                Ok(answer) => answer,
                Err(why) => {
                    run.failed += 1;
                    run.missed.push(format!("{} ({why})", question.question));
                    continue;
                }
            };
            run.answered += usize::from(answer.get("answered") != Some(&Value::Bool(false)));
            let citations = answer.get("citations").and_then(Value::as_array).into_iter().flatten();
            let sources = citations.filter_map(|one| one.get("source").and_then(Value::as_str).map(str::to_owned));
            if !question.source.is_empty() {
                cited.push(share(sources.collect::<Vec<_>>().iter().any(is_source)));
            }
            let measure = |name: &str| answer.pointer(&format!("/evaluation/{name}")).and_then(Value::as_f64);
            grounded.extend(measure("groundedness"));
            relevant.extend(measure("relevance"));
            precise.extend(measure("context_precision"));
            late.extend(measure("latency_ms"));
            run.tokens += answer.pointer("/evaluation/tokens").and_then(Value::as_u64).unwrap_or_default();
            run.cost += measure("cost").unwrap_or_default();
            let flags = answer.get("flags").and_then(Value::as_array);
            run.flagged += usize::from(flags.is_some_and(|flags| !flags.is_empty()));
        }
        late.sort_by(f64::total_cmp);
        Self {
            recall_at_5: mean(&at_5),
            recall_at_10: mean(&at_10),
            reciprocal_rank: mean(&ranks),
            cited: mean(&cited),
            groundedness: mean(&grounded),
            relevance: mean(&relevant),
            context_precision: mean(&precise),
            latency_p50_ms: percentile(&late, 50),
            latency_p99_ms: percentile(&late, 99),
            ..run
        }
    }

    /// Returns names, values and digits of the measures.
    fn rows(&self) -> Vec<(&'static str, Option<f64>, usize)> {
        // Counts are exact in an f64.
        #[expect(clippy::cast_precision_loss)]
        let count = |count: usize| Some(count as f64);
        #[expect(clippy::cast_precision_loss)]
        let tokens = self.tokens as f64;
        vec![
            ("questions", count(self.questions), 0),
            ("answered", count(self.answered), 0),
            ("failed", count(self.failed), 0),
            ("flagged", count(self.flagged), 0),
            ("recall@5", self.recall_at_5, 3),
            ("recall@10 of retrieval", self.recall_at_10, 3),
            ("mean reciprocal rank", self.reciprocal_rank, 3),
            ("source cited", self.cited, 3),
            ("groundedness", self.groundedness, 3),
            ("relevance", self.relevance, 3),
            ("context precision", self.context_precision, 3),
            ("latency p50, ms", self.latency_p50_ms, 0),
            ("latency p99, ms", self.latency_p99_ms, 0),
            ("tokens", Some(tokens), 0),
            ("cost", Some(self.cost), 4),
        ]
    }
}

/// Returns the nearest-rank percentile of sorted values.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

fn share(yes: bool) -> f64 {
    if yes { 1.0 } else { 0.0 }
}

fn mean(values: &[f64]) -> Option<f64> {
    // The number of questions is exact in an f64.
    #[expect(clippy::cast_precision_loss)]
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// A run with the previous one.
#[derive(Serialize)]
pub(super) struct EvalReport<'r> {
    #[serde(flatten)]
    pub(super) run: &'r EvalRun,
    pub(super) before: Option<&'r EvalRun>,
}

impl EvalReport<'_> {
    pub(super) fn to_text(&self) -> String {
        let before = self.before.map(EvalRun::rows).unwrap_or_default();
        let format =
            |value: Option<f64>, digits: usize| value.map_or("–".to_owned(), |value| format!("{value:.digits$}"));
        let rows = self.run.rows().into_iter().enumerate().map(|(index, (name, now, digits))| {
            let last = before.get(index).and_then(|(_, last, _)| *last);
            let change = match (now, last) {
                (Some(now), Some(last)) => format!("{:+.digits$}", now - last),
                _ => String::new(),
            };
            let last = if self.before.is_some() { format(last, digits) } else { String::new() };
            [name.to_owned(), format(now, digits), last, change]
        });
        let last = if self.before.is_some() { ["", "now", "last run", "change"] } else { ["", "now", "", ""] };
        let mut text = output::table(last, rows);
        for missed in self.run.missed.iter().take(MAX_LISTED_QUESTIONS) {
            text.push_str(&format!("\nmissed: {missed}"));
        }
        if let Some(more) = self.run.missed.len().checked_sub(MAX_LISTED_QUESTIONS + 1) {
            text.push_str(&format!("\nand {} more", more + 1));
        }
        text
    }
}

/// Loads the last run of these questions.
pub(super) async fn load(bus: &Bus, key: &str) -> anyhow::Result<Option<EvalRun>> {
    let view = bus.view(key).await.map_err(|error| anyhow!("cannot read the last run: {error}"))?;
    Ok(view.and_then(|view| serde_json::from_slice(&view.data).ok()))
}

/// Stores this run as the last one.
pub(super) async fn store(bus: &Bus, key: &str, run: &EvalRun) -> anyhow::Result<()> {
    let last = bus.view(key).await.map_err(|error| anyhow!("cannot store this run: {error}"))?;
    let data = serde_json::to_vec(run)?;
    // After concurrent runs, either may be the last one.
    let stored = bus.put_view(key, data.into(), last.map(|view| view.revision)).await;
    stored.map(drop).map_err(|error| anyhow!("cannot store this run: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&values, 50), percentile(&values, 99)), (Some(50.0), Some(99.0)));
        assert_eq!((percentile(&[7.0], 50), percentile(&[7.0], 99), percentile(&[], 99)), (Some(7.0), Some(7.0), None));
    }

    #[test]
    fn run_is_measured_and_compared() {
        let question = |source: &[&str]| Question {
            question: "q".into(),
            source: source.iter().map(|name| (*name).to_owned()).collect(),
            collection: None,
        };
        let result = |context: &[&str], answer: Result<Value, String>| QuestionResult {
            retrieved: context.iter().map(|name| (*name).to_owned()).collect(),
            context: context.iter().map(|name| (*name).to_owned()).collect(),
            answer,
        };
        let good = json!({"answered": true, "citations": [{"source": "docs/a.md"}], "flags": [],
                          "evaluation": {"groundedness": 1.0, "latency_ms": 10, "tokens": 5, "cost": 0.5}});
        let bad = json!({"answered": false, "flags": [{}], "evaluation": {"latency_ms": 30, "tokens": 0, "cost": 0}});
        let run = EvalRun::of(
            &[question(&["a.md"]), question(&["b.md"]), question(&["c.md"]), question(&[])],
            vec![
                result(&["docs/x.md", "docs/a.md"], Ok(good)),
                result(&["docs/x.md"], Ok(bad)),
                result(&[], Err("it failed".into())),
                result(&["docs/x.md"], Ok(json!({}))),
            ],
        );
        assert_eq!((run.questions, run.answered, run.failed, run.flagged, run.tokens), (4, 2, 1, 1, 5));
        assert_eq!((run.recall_at_5, run.reciprocal_rank, run.cited), (Some(1.0 / 3.0), Some(0.5 / 3.0), Some(0.5)));
        assert_eq!((run.groundedness, run.relevance), (Some(1.0), None));
        assert_eq!((run.latency_p50_ms, run.latency_p99_ms), (Some(10.0), Some(30.0)));
        assert_eq!(run.missed, ["q (not found: b.md)", "q (not found: c.md)", "q (it failed)"]);
        let before = EvalRun { recall_at_5: Some(0.5), ..run.clone() };
        let text = EvalReport { run: &run, before: Some(&before) }.to_text();
        let row = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::split_whitespace);
        assert_eq!(row("recall@5").unwrap().collect::<Vec<_>>(), ["0.333", "0.500", "-0.167"], "{text}");
        let first = EvalReport { run: &run, before: None }.to_text();
        assert!(!first.contains("last run") && first.contains("missed: q (it failed)"), "{first}");
    }
}

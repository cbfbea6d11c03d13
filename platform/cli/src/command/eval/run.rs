//! Asks the questions and waits for the evaluations of the answers.

use super::Question;
use crate::failure::Failure;
use futures::{StreamExt, stream};
use nerve_broker::bus::{Bus, Start};
use nerve_core::{Event, Pattern, answer::Part, event::CORRELATION_ID};
use nerve_events::{
    EventData,
    answers::AnswerEvaluated,
    retrieval::{PromptReceived, QuestionParameters},
};
use serde_json::Value;
use std::{collections::HashMap, time::Duration};
use time::OffsetDateTime;
use uuid::Uuid;

/// Timeout of an evaluation after its answer.
const EVALUATION_TIMEOUT: Duration = Duration::from_secs(20);

/// The result of one question.
pub(super) struct QuestionResult {
    /// The retrieved documents, best first.
    pub(super) retrieved: Vec<String>,
    /// The documents in the context of the answer, best first.
    pub(super) context: Vec<String>,
    /// The answer with its evaluation, if any, or the cause of the failure.
    pub(super) answer: Result<Value, String>,
}

/// Asks all questions, `at_once` of them concurrently, and waits `patience` for each.
pub(super) async fn ask_all(
    bus: &Bus,
    questions: &[Question],
    (at_once, patience): (usize, Duration),
) -> anyhow::Result<Vec<QuestionResult>> {
    let mut evaluated = bus.tail(&Pattern::parse(format!("events.{}", AnswerEvaluated::TYPE))?, Start::New).await?;
    let pending = stream::iter(questions).map(|question| ask(bus, question, patience)).buffered(at_once);
    let results: Vec<(String, QuestionResult)> =
        pending.collect::<Vec<_>>().await.into_iter().collect::<anyhow::Result<_>>()?;
    let mut missing: HashMap<&str, ()> =
        results.iter().filter(|(_, one)| one.answer.is_ok()).map(|(id, _)| (id.as_str(), ())).collect();
    let mut evaluations: HashMap<String, Value> = HashMap::new();
    while !missing.is_empty() {
        let Ok(tailed) = tokio::time::timeout(EVALUATION_TIMEOUT, evaluated.next()).await else { break };
        let id = tailed.event.extension(CORRELATION_ID).unwrap_or_default().to_owned();
        if missing.remove(id.as_str()).is_some() {
            evaluations.insert(id, serde_json::from_slice(&tailed.event.data).unwrap_or_default());
        }
    }
    drop(missing);
    let with_evaluation = |(id, mut one): (String, QuestionResult)| {
        if let (Ok(answer), Some(evaluation)) = (&mut one.answer, evaluations.remove(&id)) {
            *answer = evaluation;
        }
        one
    };
    Ok(results.into_iter().map(with_evaluation).collect())
}

async fn ask(bus: &Bus, question: &Question, patience: Duration) -> anyhow::Result<(String, QuestionResult)> {
    let parameters = QuestionParameters { collection: question.collection.clone(), ..QuestionParameters::default() };
    let data = PromptReceived { question: Some(question.question.clone()), parameters, ..PromptReceived::default() };
    let id = Uuid::now_v7().to_string();
    let event = Event::new(id.as_str(), "/nerve/eval", PromptReceived::event_type());
    let mut event = event.with_data("application/json", serde_json::to_vec(&data)?);
    event.time = Some(OffsetDateTime::now_utc());
    let mut parts = bus.answer(&id, None).await?;
    bus.publish_own(&event).await.map_err(|error| Failure::new("cannot ask a question").because(error))?;
    let mut result = QuestionResult { retrieved: Vec::new(), context: Vec::new(), answer: Err("no answer".to_owned()) };
    let read = async {
        loop {
            let part = parts.next().await;
            let data: Value = serde_json::from_slice(&part.event.data).unwrap_or_default();
            match part.part {
                Part::Retrieved => result.retrieved = names(&data, "documents", "document"),
                Part::Done => {
                    result.context = names(&data, "context", "source");
                    result.answer = Ok(data);
                    return;
                }
                Part::Error => {
                    let message = data.get("message").and_then(Value::as_str).unwrap_or("it failed");
                    result.answer = Err(message.to_owned());
                    return;
                }
                _ => {}
            }
        }
    };
    let in_time = tokio::time::timeout(patience, read).await;
    if in_time.is_err() {
        result.answer = Err(format!("no answer within {patience:?}"));
    }
    Ok((id, result))
}

fn names(data: &Value, list: &str, field: &str) -> Vec<String> {
    let items = data.get(list).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(|item| item.get(field).and_then(Value::as_str).map(str::to_owned)).collect()
}

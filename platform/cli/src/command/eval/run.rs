//! Asks the questions, and waits for what is said of their answers.

use super::Question;
use crate::failure::Failure;
use futures::{StreamExt, stream};
use nerve_broker::bus::{Bus, Start};
use nerve_core::{Event, EventType, Pattern, answer::Part, event::CORRELATION_ID};
use serde_json::{Value, json};
use std::{collections::HashMap, time::Duration};
use time::OffsetDateTime;
use uuid::Uuid;

/// How long after its answer an evaluation may come.
const EVALUATION: Duration = Duration::from_secs(20);

/// What came of one question.
pub(super) struct Asked {
    /// The documents that were found, the best first.
    pub(super) retrieved: Vec<String>,
    /// The documents that the answer was made from, the best first.
    pub(super) context: Vec<String>,
    /// The answer, with its evaluation where there is one; or why there is none.
    pub(super) answer: Result<Value, String>,
}

/// Asks all questions, `at_once` side by side, and waits `patience` for each.
pub(super) async fn ask_all(
    bus: &Bus,
    questions: &[Question],
    (at_once, patience): (usize, Duration),
) -> anyhow::Result<Vec<Asked>> {
    let mut evaluated = bus.tail(&Pattern::parse("events.answer.evaluated")?, Start::New).await?;
    let asking = stream::iter(questions).map(|question| ask(bus, question, patience)).buffered(at_once);
    let asked: Vec<(String, Asked)> = asking.collect::<Vec<_>>().await.into_iter().collect::<anyhow::Result<_>>()?;
    let mut missing: HashMap<&str, ()> =
        asked.iter().filter(|(_, one)| one.answer.is_ok()).map(|(id, _)| (id.as_str(), ())).collect();
    let mut evaluations: HashMap<String, Value> = HashMap::new();
    while !missing.is_empty() {
        let Ok(tailed) = tokio::time::timeout(EVALUATION, evaluated.next()).await else { break };
        let id = tailed.event.extension(CORRELATION_ID).unwrap_or_default().to_owned();
        if missing.remove(id.as_str()).is_some() {
            evaluations.insert(id, serde_json::from_slice(&tailed.event.data).unwrap_or_default());
        }
    }
    drop(missing);
    let with_evaluation = |(id, mut one): (String, Asked)| {
        if let (Ok(answer), Some(evaluation)) = (&mut one.answer, evaluations.remove(&id)) {
            *answer = evaluation;
        }
        one
    };
    Ok(asked.into_iter().map(with_evaluation).collect())
}

async fn ask(bus: &Bus, question: &Question, patience: Duration) -> anyhow::Result<(String, Asked)> {
    let data = json!({"question": question.question, "collection": question.collection});
    let id = Uuid::now_v7().to_string();
    let event = Event::new(id.as_str(), "/nerve/eval", EventType::parse("prompt.received")?);
    let mut event = event.with_data("application/json", serde_json::to_vec(&data)?);
    event.time = Some(OffsetDateTime::now_utc());
    let mut parts = bus.answer(&id, None).await?;
    bus.publish_own(&event).await.map_err(|error| Failure::new("a question could not be asked").because(error))?;
    let mut asked = Asked { retrieved: Vec::new(), context: Vec::new(), answer: Err("it never came".to_owned()) };
    let reading = async {
        loop {
            let part = parts.next().await;
            let data: Value = serde_json::from_slice(&part.event.data).unwrap_or_default();
            match part.part {
                Part::Retrieved => asked.retrieved = names(&data, "documents", "document"),
                Part::Done => {
                    asked.context = names(&data, "context", "source");
                    asked.answer = Ok(data);
                    return;
                }
                Part::Error => {
                    let message = data.get("message").and_then(Value::as_str).unwrap_or("it failed");
                    asked.answer = Err(message.to_owned());
                    return;
                }
                _ => {}
            }
        }
    };
    let in_time = tokio::time::timeout(patience, reading).await;
    if in_time.is_err() {
        asked.answer = Err(format!("nothing came within {patience:?}"));
    }
    Ok((id, asked))
}

fn names(data: &Value, list: &str, field: &str) -> Vec<String> {
    let items = data.get(list).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(|item| item.get(field).and_then(Value::as_str).map(str::to_owned)).collect()
}

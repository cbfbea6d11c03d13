//! State of an agent: its conversation with the model, its usage and its pending tool calls.

use super::Budget;
use nerve_events::{agent::AgentState, answers::Usage};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

/// The initial state: system prompt, earlier messages and question.
///
/// # Errors
/// If the data has no question.
pub(super) fn initial(
    name: &str,
    mut data: Map<String, Value>,
    system: &str,
    at: OffsetDateTime,
) -> Result<AgentState, String> {
    let named = ["question", "prompt", "text"].into_iter().find(|name| data.contains_key(*name));
    let question = named.and_then(|name| data.remove(name));
    let Some(Value::String(question)) = question else {
        return Err("its data has no `question`".to_owned());
    };
    let mut messages = vec![json!({"role": "system", "content": system})];
    if let Some(Value::Array(earlier)) = data.remove("messages") {
        messages.extend(earlier);
    }
    messages.push(json!({"role": "user", "content": question}));
    data.insert("question".to_owned(), question.into());
    let (pending, called) = (Vec::new(), Vec::new());
    Ok(AgentState {
        agent_name: name.to_owned(),
        question_data: data,
        messages,
        steps: 0,
        usage: Usage::default(),
        started_at: at,
        pending,
        called,
    })
}

/// The part of the budget that is exhausted, as text; `None` if none is.
pub(super) fn exhausted_budget(state: &AgentState, budget: Budget, now: OffsetDateTime) -> Option<String> {
    if state.steps >= budget.steps {
        return Some(format!("{} steps", budget.steps));
    }
    if state.usage.total() >= budget.tokens {
        return Some(format!("{} tokens", budget.tokens));
    }
    let expired = std::time::Duration::try_from(now - state.started_at).is_ok_and(|age| age >= budget.time);
    expired.then(|| humantime::format_duration(budget.time).to_string())
}

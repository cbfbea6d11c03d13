//! State of an agent: its conversation with the model, its usage and its pending tool calls.

use super::{Budget, chat};
use crate::generate::Usage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

/// State carried in an agent's events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct AgentState {
    /// Name of the agent function; other functions may receive events of these types too.
    #[serde(rename = "by")]
    pub(super) agent_name: String,
    /// Data of the question.
    #[serde(rename = "asked")]
    pub(super) question_data: Map<String, Value>,
    /// Messages of the conversation, in OpenAI's format.
    pub(super) messages: Vec<Value>,
    /// Number of model calls.
    #[serde(deserialize_with = "nerve_core::limits::count")]
    pub(super) steps: usize,
    #[serde(default)]
    pub(super) usage: Usage,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) started_at: OffsetDateTime,
    /// Requested tool calls that are still to be made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) pending: Vec<PendingCall>,
    /// Tools that were called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) called: Vec<String>,
}

/// A tool call still to be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PendingCall {
    pub(super) call: String,
    pub(super) tool: String,
    pub(super) arguments: Map<String, Value>,
}

impl AgentState {
    /// The initial state: system prompt, earlier messages and question.
    ///
    /// # Errors
    /// If the data has no question.
    pub(super) fn new(
        name: &str,
        mut data: Map<String, Value>,
        system: &str,
        at: OffsetDateTime,
    ) -> Result<Self, String> {
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
        Ok(Self {
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

    pub(super) fn question(&self) -> &str {
        self.question_data.get("question").and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn add(&mut self, usage: Usage) {
        self.usage.prompt_tokens += usage.prompt_tokens;
        self.usage.completion_tokens += usage.completion_tokens;
    }

    pub(super) fn tokens(&self) -> usize {
        self.usage.prompt_tokens + self.usage.completion_tokens
    }

    /// The part of the budget that is exhausted, as text; `None` if none is.
    pub(super) fn exhausted_budget(&self, budget: Budget, now: OffsetDateTime) -> Option<String> {
        if self.steps >= budget.steps {
            return Some(format!("{} steps", budget.steps));
        }
        if self.tokens() >= budget.tokens {
            return Some(format!("{} tokens", budget.tokens));
        }
        let expired = std::time::Duration::try_from(now - self.started_at).is_ok_and(|age| age >= budget.time);
        expired.then(|| humantime::format_duration(budget.time).to_string())
    }
}

impl From<chat::Usage> for Usage {
    fn from(usage: chat::Usage) -> Self {
        Self { prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens }
    }
}

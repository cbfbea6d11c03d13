//! What an agent knows: the conversation with the model, what it has cost, and which tools are still to be called.

use super::{Budget, chat};
use crate::generate::Usage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

/// What travels in an agent's events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Knowledge {
    /// The function whose step it is; others take events of these types too.
    pub(super) by: String,
    /// What the question came with.
    pub(super) asked: Map<String, Value>,
    /// The conversation, as OpenAI's API has it.
    pub(super) messages: Vec<Value>,
    /// Times that the model was asked.
    #[serde(deserialize_with = "nerve_core::limits::count")]
    pub(super) steps: usize,
    #[serde(default)]
    pub(super) usage: Usage,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) started_at: OffsetDateTime,
    /// Calls that the model asked for and that were not made yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) pending: Vec<Pending>,
    /// Tools that were called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) called: Vec<String>,
}

/// A call to be made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) call: String,
    pub(super) tool: String,
    pub(super) arguments: Map<String, Value>,
}

impl Knowledge {
    /// The beginning: what the model is told, what was said before, and the question.
    pub(super) fn begun(
        by: &str,
        mut asked: Map<String, Value>,
        system: &str,
        at: OffsetDateTime,
    ) -> Result<Self, String> {
        let named = ["question", "prompt", "text"].into_iter().find(|name| asked.contains_key(*name));
        let question = named.and_then(|name| asked.remove(name));
        let Some(Value::String(question)) = question else {
            return Err("its data has no `question`".to_owned());
        };
        let mut messages = vec![json!({"role": "system", "content": system})];
        if let Some(Value::Array(before)) = asked.remove("messages") {
            messages.extend(before);
        }
        messages.push(json!({"role": "user", "content": question}));
        asked.insert("question".to_owned(), question.into());
        let (pending, called) = (Vec::new(), Vec::new());
        Ok(Self {
            by: by.to_owned(),
            asked,
            messages,
            steps: 0,
            usage: Usage::default(),
            started_at: at,
            pending,
            called,
        })
    }

    pub(super) fn question(&self) -> &str {
        self.asked.get("question").and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn add(&mut self, usage: Usage) {
        self.usage.prompt_tokens += usage.prompt_tokens;
        self.usage.completion_tokens += usage.completion_tokens;
    }

    pub(super) fn tokens(&self) -> usize {
        self.usage.prompt_tokens + self.usage.completion_tokens
    }

    /// Which part of the budget is spent, in words.
    pub(super) fn spent(&self, budget: Budget, now: OffsetDateTime) -> Option<String> {
        if self.steps >= budget.steps {
            return Some(format!("{} steps", budget.steps));
        }
        if self.tokens() >= budget.tokens {
            return Some(format!("{} tokens", budget.tokens));
        }
        let over = std::time::Duration::try_from(now - self.started_at).is_ok_and(|age| age >= budget.time);
        over.then(|| humantime::format_duration(budget.time).to_string())
    }
}

impl From<chat::Usage> for Usage {
    fn from(usage: chat::Usage) -> Self {
        Self { prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens }
    }
}

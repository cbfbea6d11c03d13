//! A conversation with tools, as OpenAI's chat completions have it.

use crate::function::invalid;
use nerve_core::{Fault, FunctionError, limits, tool::Tool};
use serde::Deserialize;
use serde_json::{Value, json};

/// The longest that is told to a model of what a tool returned, in bytes.
const LONGEST: usize = 16 * 1024;

/// What a model decided.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Decision {
    /// What it says.
    pub(super) text: String,
    /// Tools that it wants to be called.
    pub(super) calls: Vec<Wanted>,
    pub(super) finish: String,
    pub(super) usage: crate::generate::Usage,
}

/// A tool that a model wants to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) id: String,
    pub(super) name: String,
    /// JSON, as the model wrote it.
    pub(super) arguments: String,
}

#[derive(Debug, Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub(super) struct Usage {
    #[serde(default, deserialize_with = "limits::count")]
    pub(super) prompt_tokens: usize,
    #[serde(default, deserialize_with = "limits::count")]
    pub(super) completion_tokens: usize,
}

#[derive(Debug, Deserialize)]
struct Choice {
    message: Message,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<ToolCall>>,
}

#[derive(Debug, Deserialize)]
struct ToolCall {
    #[serde(default)]
    id: Option<String>,
    function: Named,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
    /// Text by OpenAI's API; some servers send the object itself.
    #[serde(default)]
    arguments: Value,
}

impl Decision {
    /// Reads a completion; `step` makes ids where the endpoint gives none.
    pub(super) fn read(completion: &[u8], step: usize) -> Result<Self, FunctionError> {
        let read: Result<Completion, _> = serde_json::from_slice(completion);
        let Completion { choices, usage } = read.map_err(|error| {
            FunctionError::new(Fault::Retry { after: None }, format!("the endpoint's answer cannot be read: {error}"))
        })?;
        let choice = choices.into_iter().next().ok_or_else(|| invalid("the endpoint's answer has no choice"))?;
        let calls = choice.message.tool_calls.unwrap_or_default().into_iter().enumerate();
        let wanted = |(place, call): (usize, ToolCall)| Wanted {
            id: call.id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("call-{step}-{place}")),
            name: call.function.name,
            arguments: match call.function.arguments {
                Value::String(text) => text,
                Value::Null => String::new(),
                other => other.to_string(),
            },
        };
        Ok(Self {
            text: choice.message.content.unwrap_or_default(),
            calls: calls.map(wanted).collect(),
            finish: choice.finish_reason.unwrap_or_else(|| "stop".to_owned()),
            usage: usage.unwrap_or_default().into(),
        })
    }

    /// The same as a message of the conversation.
    pub(super) fn message(&self) -> Value {
        let call = |call: &Wanted| {
            let function = json!({"name": call.name, "arguments": call.arguments});
            json!({"id": call.id, "type": "function", "function": function})
        };
        json!({"role": "assistant", "content": self.text, "tool_calls": self.calls.iter().map(call).collect::<Vec<_>>()})
    }
}

/// A tool, as a model is told of it.
pub(super) fn described(tool: &Tool) -> Value {
    let function = json!({"name": tool.name, "description": tool.spec.description, "parameters": tool.spec.parameters});
    json!({"type": "function", "function": function})
}

/// What came of a call, as a message of the conversation.
pub(super) fn told(call: &str, text: &str) -> Value {
    let end = (0..=LONGEST.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    let shown = text.get(..end).unwrap_or_default();
    let cut = if end < text.len() { " […]" } else { "" };
    json!({"role": "tool", "tool_call_id": call, "content": format!("{shown}{cut}")})
}

//! Conversations with tools, in the format of OpenAI's chat completions.

use crate::function::invalid;
use nerve_core::{Fault, FunctionError, tool::Tool};
use nerve_events::answers::Usage;
use serde::Deserialize;
use serde_json::{Value, json};

/// Maximum size of a tool result in the conversation, in bytes.
const MAX_TOOL_RESULT_BYTES: usize = 16 * 1024;

/// Decision of the model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Decision {
    /// Text of the model.
    pub(super) text: String,
    /// Requested tool calls.
    pub(super) calls: Vec<RequestedCall>,
    pub(super) finish: String,
    pub(super) usage: Usage,
}

/// A tool call that the model requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestedCall {
    pub(super) id: String,
    pub(super) name: String,
    /// Arguments in JSON, as written by the model.
    pub(super) arguments: String,
}

#[derive(Debug, Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
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
    function: FunctionCall,
}

#[derive(Debug, Deserialize)]
struct FunctionCall {
    name: String,
    /// A string in OpenAI's API; some servers send an object.
    #[serde(default)]
    arguments: Value,
}

impl Decision {
    /// Reads a completion; `step` is part of generated call ids if the endpoint returns none.
    ///
    /// # Errors
    /// If the completion cannot be read or has no choice.
    pub(super) fn read(completion: &[u8], step: usize) -> Result<Self, FunctionError> {
        let read: Result<Completion, _> = serde_json::from_slice(completion);
        let Completion { choices, usage } = read.map_err(|error| {
            FunctionError::new(Fault::Retry { after: None }, format!("the endpoint's response cannot be read: {error}"))
        })?;
        let choice = choices.into_iter().next().ok_or_else(|| invalid("the endpoint's response has no choice"))?;
        let calls = choice.message.tool_calls.unwrap_or_default().into_iter().enumerate();
        let requested_call = |(index, call): (usize, ToolCall)| RequestedCall {
            id: call.id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("call-{step}-{index}")),
            name: call.function.name,
            arguments: match call.function.arguments {
                Value::String(text) => text,
                Value::Null => String::new(),
                other => other.to_string(),
            },
        };
        Ok(Self {
            text: choice.message.content.unwrap_or_default(),
            calls: calls.map(requested_call).collect(),
            finish: choice.finish_reason.unwrap_or_else(|| "stop".to_owned()),
            usage: usage.unwrap_or_default(),
        })
    }

    /// The decision as a message of the conversation.
    pub(super) fn message(&self) -> Value {
        let call = |call: &RequestedCall| {
            let function = json!({"name": call.name, "arguments": call.arguments});
            json!({"id": call.id, "type": "function", "function": function})
        };
        json!({"role": "assistant", "content": self.text, "tool_calls": self.calls.iter().map(call).collect::<Vec<_>>()})
    }
}

/// Definition of a tool for the model.
pub(super) fn tool_definition(tool: &Tool) -> Value {
    let function = json!({"name": tool.name, "description": tool.spec.description, "parameters": tool.spec.parameters});
    json!({"type": "function", "function": function})
}

/// The result of a tool call as a message of the conversation.
pub(super) fn tool_message(call: &str, text: &str) -> Value {
    let end =
        (0..=MAX_TOOL_RESULT_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    let shown = text.get(..end).unwrap_or_default();
    let cut = if end < text.len() { " […]" } else { "" };
    json!({"role": "tool", "tool_call_id": call, "content": format!("{shown}{cut}")})
}

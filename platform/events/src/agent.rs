//! Agents: questions for them, their steps, and their tool calls.

use crate::{answers::Usage, retrieval::PromptReceived};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;

/// A question for an agent, if another pipeline takes `prompt.received`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentAsked {
    /// The question.
    #[serde(flatten)]
    pub prompt: PromptReceived,
}

/// The agent must choose the next step: a tool call or the answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentStep {
    /// The question.
    #[schemars(length(min = 1))]
    pub question: String,
    /// Collection of the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub collection: Option<String>,
    /// Conversation of the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
    /// State of the agent. `rag/agent` ignores the steps of other agents.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    #[schemars(with = "Option<AgentState>")]
    pub agent: Value,
}

/// State of an agent, carried in its events.
// The state of `rag/agent`. Other agents need only some of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentState {
    /// Name of the agent function; other functions may receive events of these types too.
    #[serde(rename = "by")]
    #[schemars(with = "Option<Value>")]
    pub agent_name: String,
    /// Data of the question.
    #[serde(rename = "asked")]
    #[schemars(with = "Option<Value>")]
    pub question_data: Map<String, Value>,
    /// Messages of the conversation, in OpenAI's format.
    #[schemars(with = "Vec<Map<String, Value>>")]
    pub messages: Vec<Value>,
    /// Number of model calls.
    #[serde(deserialize_with = "nerve_core::limits::count")]
    pub steps: usize,
    /// Token usage of all steps.
    #[serde(default)]
    pub usage: Usage,
    /// Time of the question (RFC 3339).
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "Option<String>")]
    pub started_at: OffsetDateTime,
    /// Requested tool calls that are still to be made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Map<String, Value>>", default)]
    pub pending: Vec<PendingCall>,
    /// Tools that were called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Value", default)]
    pub called: Vec<String>,
}

impl AgentState {
    /// The question.
    pub fn question(&self) -> &str {
        self.question_data.get("question").and_then(Value::as_str).unwrap_or_default()
    }
}

/// A tool call still to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingCall {
    /// The call's id.
    pub call: String,
    /// The tool's name.
    pub tool: String,
    /// The arguments.
    pub arguments: Map<String, Value>,
}

/// A tool call; the last token of the type is the tool's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolCalled {
    /// The call's id, chosen by the agent.
    #[schemars(length(min = 1))]
    pub call: String,
    /// The tool's name.
    #[schemars(length(min = 1))]
    pub tool: String,
    /// The arguments.
    pub arguments: Map<String, Value>,
    /// The agent's state, which the function does not receive.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    #[schemars(with = "Option<Map<String, Value>>")]
    pub agent: Value,
}

impl ToolCalled {
    /// Creates the result of this call.
    pub fn into_result(self, result: Result<Value, String>) -> ToolReturned {
        let (result, error) = match result {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(error)),
        };
        ToolReturned { call: self.call, tool: self.tool, arguments: None, result, error, agent: self.agent }
    }
}

/// A tool has returned: `result`, or `error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("anyOf" = [{"required": ["result"]}, {"required": ["error"]}]))]
pub struct ToolReturned {
    /// The call's id.
    #[schemars(length(min = 1))]
    pub call: String,
    /// The tool's name.
    #[schemars(length(min = 1))]
    pub tool: String,
    /// The arguments of the call, if they are repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Map<String, Value>>,
    /// The result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// The error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The agent's state, unchanged.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    #[schemars(with = "Option<Map<String, Value>>")]
    pub agent: Value,
}

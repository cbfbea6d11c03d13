//! Tools: deployed functions that an agent calls by an event, and the data of calls and results.
//!
//! An agent emits `tool.called.NAME`, whose data is a [`ToolCall`]. The function with `tool` in its table receives only
//! the arguments as the data of that event. The data that it emits as `tool.returned` becomes a [`ToolResult`]: the
//! worker adds the call's id and the agent's state.

use crate::{EventType, FunctionSpec, subject::EVENTS_PREFIX};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Prefix of the types of tool calls; the tool's name follows.
pub const CALL_TYPE_PREFIX: &str = "tool.called.";
/// The built-in agent function.
pub const AGENT: &str = "rag/agent";
/// Type: the agent continues without a tool call.
pub const STEP: &str = "agent.step";
/// Type: the result or error of a tool call.
pub const RETURNED: &str = "tool.returned";

/// Whether events of this type are steps of an agent, with or without a tool call.
pub fn is_step(ty: &str) -> bool {
    ty == STEP || ty.starts_with(CALL_TYPE_PREFIX)
}

/// Maximum length of a tool name that models accept.
const MAX_NAME_BYTES: usize = 64;

/// `tool` of a function in `nerve.toml`: its description for agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolSpec {
    /// The purpose of the tool, and when to use it.
    pub description: String,
    /// JSON Schema of its arguments, an object.
    pub parameters: Map<String, Value>,
}

/// A deployed tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// Its name: the last token of the type of its calls.
    pub name: String,
    /// Its description for agents.
    pub spec: ToolSpec,
}

/// The data of `tool.called.NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The call's id, chosen by the agent.
    pub call: String,
    /// The tool's name.
    pub tool: String,
    /// The arguments.
    pub arguments: Map<String, Value>,
    /// The agent's state, which the function does not receive.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub agent: Value,
}

/// The data of `tool.returned`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolResult {
    /// The call's id.
    pub call: String,
    /// The tool's name.
    pub tool: String,
    /// The result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// The error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The agent's state, unchanged.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub agent: Value,
}

impl ToolCall {
    /// Creates the result of this call.
    pub fn into_result(self, result: Result<Value, String>) -> ToolResult {
        let (result, error) = match result {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(error)),
        };
        ToolResult { call: self.call, tool: self.tool, result, error, agent: self.agent }
    }
}

/// Returns the name of the tool that events of this type call.
pub fn called_tool(ty: &EventType) -> Option<&str> {
    ty.as_str().strip_prefix(CALL_TYPE_PREFIX)
}

/// Whether models accept this tool name.
pub fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.chars().all(good)
}

impl FunctionSpec {
    /// Returns this function as a tool; `None` if agents cannot call it.
    pub fn as_tool(&self) -> Option<Tool> {
        let spec = self.tool.clone()?;
        let called = |on: &crate::Pattern| {
            let name = on.as_str().strip_prefix(EVENTS_PREFIX)?.strip_prefix(CALL_TYPE_PREFIX)?;
            is_name(name).then(|| name.to_owned())
        };
        Some(Tool { name: self.on.iter().find_map(called)?, spec })
    }
}

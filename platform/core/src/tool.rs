//! Tools: deployed functions that an agent calls by an event.
//!
//! An agent emits `tool.called.NAME`. The function with `tool` in its table receives only the arguments as the data of
//! that event. To the data that it emits as `tool.returned` the worker adds the call's id and the agent's state.

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

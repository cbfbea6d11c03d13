//! Tools: deployed functions that an agent may call by an event, and what passes between the two.
//!
//! An agent emits `tool.called.NAME`, whose data is a [`Call`]. The function with `tool` in its table is handed the
//! call's arguments alone, as the data of that event. What it emits as `tool.returned` becomes a [`Returned`]: the
//! worker adds which call it belongs to, and what the agent sent along for itself.

use crate::{EventType, FunctionSpec, subject::EVENTS_PREFIX};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What the types begin with by which tools are called; the tool's name follows.
pub const CALLED: &str = "tool.called.";
/// The built-in function that is an agent.
pub const AGENT: &str = "rag/agent";
/// The type of the event in which an agent goes on by itself.
pub const STEP: &str = "agent.step";
/// Type: a tool has run, or cannot.
pub const RETURNED: &str = "tool.returned";
/// Whether events of this type are steps of an agent: it goes on by itself, or calls a tool.
pub fn is_step(ty: &str) -> bool {
    ty == STEP || ty.starts_with(CALLED)
}

/// The longest name that models take.
const LONGEST_NAME: usize = 64;

/// `tool` of a function in `nerve.toml`: what agents are told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolSpec {
    /// What it does, and when to use it.
    pub description: String,
    /// Its arguments, as JSON Schema of an object.
    pub parameters: Map<String, Value>,
}

/// A tool that may be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// Its name: the last word of the events that call it.
    pub name: String,
    /// What agents are told of it.
    pub spec: ToolSpec,
}

/// The data of `tool.called.NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The call's id, which the agent chose.
    pub call: String,
    /// The tool's name.
    pub tool: String,
    /// What it is called with.
    pub arguments: Map<String, Value>,
    /// The agent's own; the function is not shown it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub agent: Value,
}

/// The data of `tool.returned`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returned {
    /// The call's id.
    pub call: String,
    /// The tool's name.
    pub tool: String,
    /// What it found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The agent's own, as it came.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub agent: Value,
}

impl Call {
    /// What the tool answers.
    pub fn returned(self, result: Result<Value, String>) -> Returned {
        let (result, error) = match result {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(error)),
        };
        Returned { call: self.call, tool: self.tool, result, error, agent: self.agent }
    }
}

/// The tool that events of this type call.
pub fn called(ty: &EventType) -> Option<&str> {
    ty.as_str().strip_prefix(CALLED)
}

/// Whether models take this as the name of a tool.
pub fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(good)
}

impl FunctionSpec {
    /// The tool that this function is to agents.
    pub fn as_tool(&self) -> Option<Tool> {
        let spec = self.tool.clone()?;
        let called = |on: &crate::Pattern| {
            let name = on.as_str().strip_prefix(EVENTS_PREFIX)?.strip_prefix(CALLED)?;
            is_name(name).then(|| name.to_owned())
        };
        Some(Tool { name: self.on.iter().find_map(called)?, spec })
    }
}

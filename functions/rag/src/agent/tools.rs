//! Validation of tool calls. Errors go to the model, which may correct its next call.

use super::chat::RequestedCall;
use nerve_core::tool::Tool;
use serde_json::{Map, Value};

/// Maximum number of schema errors reported per call.
const MAX_REPORTED_ERRORS: usize = 3;

/// Validates a call and returns its arguments.
///
/// # Errors
/// If the tool is unknown or the arguments do not match its schema.
pub(super) fn check_call(tools: &[Tool], call: &RequestedCall) -> Result<Map<String, Value>, String> {
    let Some(tool) = tools.iter().find(|tool| tool.name == call.name) else {
        let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
        let known =
            if names.is_empty() { "there are none".to_owned() } else { format!("there are {}", names.join(", ")) };
        return Err(format!("there is no tool `{}`; {known}", call.name));
    };
    let text = if call.arguments.trim().is_empty() { "{}" } else { &call.arguments };
    let arguments: Value =
        serde_json::from_str(text).map_err(|error| format!("the arguments are not JSON ({error})"))?;
    let schema = Value::Object(tool.spec.parameters.clone());
    let validator = validator(&schema)?;
    let errors =
        validator.iter_errors(&arguments).take(MAX_REPORTED_ERRORS).map(|error| match error.instance_path().as_str() {
            "" => error.to_string(),
            path => format!("at {path}: {error}"),
        });
    let errors: Vec<String> = errors.collect();
    match arguments {
        Value::Object(arguments) if errors.is_empty() => Ok(arguments),
        Value::Object(_) => Err(format!("the arguments do not match the schema: {}", errors.join("; "))),
        _ => Err("the arguments are not an object".to_owned()),
    }
}

fn validator(schema: &Value) -> Result<jsonschema::Validator, String> {
    jsonschema::validator_for(schema).map_err(|error| format!("the tool's parameters are not a JSON Schema: {error}"))
}

/// Checks the parameters of a tool.
///
/// # Errors
/// If they are not a valid JSON Schema.
pub(crate) fn check_parameters(parameters: &Map<String, Value>) -> Result<(), String> {
    validator(&Value::Object(parameters.clone())).map(drop)
}

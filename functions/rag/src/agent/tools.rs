//! Which call fits which tool: what does not is told to the model, which may do better in its next step.

use super::chat::Wanted;
use nerve_core::tool::Tool;
use serde_json::{Map, Value};

/// Mistakes that are told of one call.
const TOLD: usize = 3;

/// The arguments of a call, if there is such a tool and they fit its schema.
pub(super) fn check(tools: &[Tool], call: &Wanted) -> Result<Map<String, Value>, String> {
    let Some(tool) = tools.iter().find(|tool| tool.name == call.name) else {
        let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
        let known =
            if names.is_empty() { "there are none".to_owned() } else { format!("there are {}", names.join(", ")) };
        return Err(format!("there is no tool `{}`; {known}", call.name));
    };
    let text = if call.arguments.trim().is_empty() { "{}" } else { &call.arguments };
    let arguments: Value =
        serde_json::from_str(text).map_err(|error| format!("the arguments are no JSON ({error})"))?;
    let schema = Value::Object(tool.spec.parameters.clone());
    let validator = validator(&schema)?;
    let mistakes = validator.iter_errors(&arguments).take(TOLD).map(|mistake| match mistake.instance_path().as_str() {
        "" => mistake.to_string(),
        place => format!("at {place}: {mistake}"),
    });
    let mistakes: Vec<String> = mistakes.collect();
    match arguments {
        Value::Object(arguments) if mistakes.is_empty() => Ok(arguments),
        Value::Object(_) => Err(format!("the arguments do not fit: {}", mistakes.join("; "))),
        _ => Err("the arguments are no object".to_owned()),
    }
}

fn validator(schema: &Value) -> Result<jsonschema::Validator, String> {
    jsonschema::validator_for(schema).map_err(|error| format!("the tool's parameters are no JSON Schema: {error}"))
}

/// Says what is wrong with the parameters of a tool.
pub(crate) fn check_parameters(parameters: &Map<String, Value>) -> Result<(), String> {
    validator(&Value::Object(parameters.clone())).map(drop)
}

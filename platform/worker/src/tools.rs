//! Tools: functions that an agent calls by events.
//!
//! The function receives only the arguments of a call. Its result is published with the call's id and the agent's state.
//! If its retries are exhausted, the error is published as the result.

use nerve_core::{
    Emission, Event, Fault, FunctionError, FunctionSpec,
    tool::{self, Tool},
};
use nerve_events::{
    EventData,
    agent::{ToolCalled, ToolReturned},
};
use nerve_registry::Catalogue;
use serde_json::Value;

/// Returns the deployed tools.
pub(super) fn deployed(catalogue: &Catalogue) -> Vec<Tool> {
    catalogue.functions.values().filter_map(|entry| entry.record.spec.as_tool()).collect()
}

/// Whether an event is a call of this function as a tool.
pub(super) fn is_call(spec: &FunctionSpec, event: &Event) -> bool {
    spec.tool.is_some() && tool::called_tool(&event.ty).is_some()
}

/// Replaces the data of a call by its arguments. An event that is no call is unchanged.
pub(super) fn arguments_of(event: Event) -> Event {
    let Ok(call) = serde_json::from_slice::<ToolCalled>(&event.data) else { return event };
    let arguments = Value::Object(call.arguments).to_string().into_bytes();
    event.with_data("application/json", arguments)
}

/// Adds the call's id and the agent's state to a result. Without a result, adds a result that is `null`.
///
/// # Errors
/// [`Fault::Invalid`] for more than one result.
pub(super) fn complete_results(call: &Event, mut emissions: Vec<Emission>) -> Result<Vec<Emission>, FunctionError> {
    let count = emissions.iter().filter(|emission| emission.ty.as_str() == ToolReturned::TYPE).count();
    match count {
        0 => emissions.push(emission(&Value::Null)?),
        1 => {}
        count => {
            let message = format!(
                "a tool returns a call once; the function emitted {count} events of type {}",
                ToolReturned::TYPE
            );
            return Err(FunctionError::new(Fault::Invalid, message));
        }
    }
    for emission in emissions.iter_mut().filter(|emission| emission.ty.as_str() == ToolReturned::TYPE) {
        let Ok(call) = serde_json::from_slice::<ToolCalled>(&call.data) else { continue };
        let text = || Value::String(String::from_utf8_lossy(&emission.data).into_owned());
        let result = serde_json::from_slice(&emission.data).unwrap_or_else(|_| text());
        emission.data = bytes_of(&call.into_result(Ok(result)))?;
        emission.content_type = None;
    }
    Ok(emissions)
}

/// Builds the result of a tool whose retries are exhausted. Returns `None` if the event is no call.
pub(super) fn failed_result(call: &Event, why: &str) -> Option<Emission> {
    let call: ToolCalled = serde_json::from_slice(&call.data).ok()?;
    let returned = serde_json::to_value(call.into_result(Err(why.to_owned()))).ok()?;
    emission(&returned).ok()
}

fn emission(data: &Value) -> Result<Emission, FunctionError> {
    let ty = ToolReturned::event_type();
    Ok(Emission { ty, data: bytes_of(data)?, content_type: None, subject: None, partition_key: None })
}

fn bytes_of(value: &impl serde::Serialize) -> Result<bytes::Bytes, FunctionError> {
    let bytes = serde_json::to_vec(value).map_err(|error| FunctionError::new(Fault::Crash, error.to_string()))?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::EventType;
    use serde_json::json;

    fn call() -> Event {
        let data = json!({"call": "1", "tool": "find", "arguments": {"what": "fees"}, "agent": {"steps": 2}});
        let event = Event::new("1", "/s", EventType::parse("tool.called.find").unwrap());
        event.with_data("application/json", data.to_string())
    }

    fn value(data: &[u8]) -> Value {
        serde_json::from_slice(data).unwrap()
    }

    #[test]
    fn tool_receives_arguments_and_its_result_has_the_call_id() {
        assert_eq!(value(&arguments_of(call()).data), json!({"what": "fees"}));
        let found = emission(&json!({"price": 3})).unwrap();
        let answer = complete_results(&call(), vec![found.clone()]).unwrap();
        let expected = json!({"call": "1", "tool": "find", "result": {"price": 3}, "agent": {"steps": 2}});
        assert_eq!(value(&answer[0].data), expected);
        let nothing = complete_results(&call(), vec![]).unwrap();
        assert_eq!((nothing.len(), &value(&nothing[0].data)["result"]), (1, &Value::Null));
        assert!(complete_results(&call(), vec![found.clone(), found]).unwrap_err().message.contains("once"));
    }

    #[test]
    fn failed_tool_returns_its_error() {
        let answer = failed_result(&call(), "no such thing").unwrap();
        let expected = json!({"call": "1", "tool": "find", "error": "no such thing", "agent": {"steps": 2}});
        assert_eq!((answer.ty.as_str(), value(&answer.data)), (ToolReturned::TYPE, expected));
        let other = Event::new("1", "/s", EventType::parse("a").unwrap()).with_data("application/json", "{}");
        assert!(failed_result(&other, "x").is_none());
    }
}

//! Tools: functions that an agent calls by events.
//!
//! The function is handed a call's arguments and nothing else; what it returns goes back with the call's id, and with
//! what the agent sent along for itself. A function that fails for good answers all the same, by its error.

use nerve_core::{
    Emission, Event, EventType, Fault, FunctionError, FunctionSpec,
    tool::{self, RETURNED, Tool, ToolCall},
};
use nerve_registry::Catalogue;
use serde_json::Value;

/// The tools that are deployed.
pub(super) fn deployed(catalogue: &Catalogue) -> Vec<Tool> {
    catalogue.functions.values().filter_map(|entry| entry.record.spec.as_tool()).collect()
}

/// Whether an event is a call of this function as a tool.
pub(super) fn is_call(spec: &FunctionSpec, event: &Event) -> bool {
    spec.tool.is_some() && tool::called_tool(&event.ty).is_some()
}

/// What the function is handed of a call: the arguments, as the event's data. What is no call is handed as it is.
pub(super) fn given(event: Event) -> Event {
    let Ok(call) = serde_json::from_slice::<ToolCall>(&event.data) else { return event };
    let arguments = Value::Object(call.arguments).to_string().into_bytes();
    event.with_data("application/json", arguments)
}

/// What the function returned for a call, with the call's id; that it returned nothing is an answer too.
pub(super) fn answered(call: &Event, mut emissions: Vec<Emission>) -> Result<Vec<Emission>, FunctionError> {
    let count = emissions.iter().filter(|emission| emission.ty.as_str() == RETURNED).count();
    match count {
        0 => emissions.push(emission(&Value::Null)?),
        1 => {}
        more => {
            let message = format!("a tool answers a call once, and it emitted {more} events of type {RETURNED}");
            return Err(FunctionError::new(Fault::Invalid, message));
        }
    }
    for emission in emissions.iter_mut().filter(|emission| emission.ty.as_str() == RETURNED) {
        let Ok(call) = serde_json::from_slice::<ToolCall>(&call.data) else { continue };
        let text = || Value::String(String::from_utf8_lossy(&emission.data).into_owned());
        let result = serde_json::from_slice(&emission.data).unwrap_or_else(|_| text());
        emission.data = bytes_of(&call.into_result(Ok(result)))?;
        emission.content_type = None;
    }
    Ok(emissions)
}

/// The answer of a tool that failed for good; none where the event is no call.
pub(super) fn failed(call: &Event, why: &str) -> Option<Emission> {
    let call: ToolCall = serde_json::from_slice(&call.data).ok()?;
    let returned = serde_json::to_value(call.into_result(Err(why.to_owned()))).ok()?;
    emission(&returned).ok()
}

fn emission(data: &Value) -> Result<Emission, FunctionError> {
    let crash = |error: &dyn std::fmt::Display| FunctionError::new(Fault::Crash, error.to_string());
    let ty = EventType::parse(RETURNED).map_err(|error| crash(&error))?;
    Ok(Emission { ty, data: bytes_of(data)?, content_type: None, subject: None, partition_key: None })
}

fn bytes_of(value: &impl serde::Serialize) -> Result<bytes::Bytes, FunctionError> {
    let bytes = serde_json::to_vec(value).map_err(|error| FunctionError::new(Fault::Crash, error.to_string()))?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn a_function_sees_the_arguments_and_its_result_goes_back_to_the_call() {
        assert_eq!(value(&given(call()).data), json!({"what": "fees"}));
        let found = emission(&json!({"price": 3})).unwrap();
        let answer = answered(&call(), vec![found.clone()]).unwrap();
        let expected = json!({"call": "1", "tool": "find", "result": {"price": 3}, "agent": {"steps": 2}});
        assert_eq!(value(&answer[0].data), expected);
        let nothing = answered(&call(), vec![]).unwrap();
        assert_eq!((nothing.len(), &value(&nothing[0].data)["result"]), (1, &Value::Null));
        assert!(answered(&call(), vec![found.clone(), found]).unwrap_err().message.contains("once"));
    }

    #[test]
    fn a_function_that_fails_answers_too() {
        let answer = failed(&call(), "no such thing").unwrap();
        let expected = json!({"call": "1", "tool": "find", "error": "no such thing", "agent": {"steps": 2}});
        assert_eq!((answer.ty.as_str(), value(&answer.data)), (RETURNED, expected));
        let other = Event::new("1", "/s", EventType::parse("a").unwrap()).with_data("application/json", "{}");
        assert!(failed(&other, "x").is_none());
    }
}

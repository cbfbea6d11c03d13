//! `/v1/functions`: what is deployed, and calling one directly.

use super::{
    Gateway, modes,
    modes::Posted,
    problem::{Answer, Problem},
    publish::{broker_problem, check_connected},
};
use axum::{
    Json,
    body::Body,
    extract::{Path, Request, State},
    response::IntoResponse,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header, request::Parts};
use nerve_broker::bus::InvokeError;
use nerve_core::{Event, EventType, Fault, FunctionError, Name, Pattern, limits};
use nerve_registry::{Entry, FunctionRecord};
use serde::Serialize;
use std::time::Duration;
use time::OffsetDateTime;

/// The type of the event that a body which is no CloudEvent becomes.
const INVOKE_TYPE: &str = "nerve.invoke";
/// What a call may take beyond the function's own timeout: the way there and back, and the wait for a free slot.
const SLACK: Duration = Duration::from_secs(5);
/// When to call again a function that cannot answer now.
const AGAIN: Duration = Duration::from_secs(1);

/// One function, without its environment and its secrets.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a Name,
    revision: u64,
    stream: &'a str,
    runtime: &'static str,
    on: &'a [Pattern],
    emits: &'a [Pattern],
    concurrency: usize,
    timeout_ms: u128,
    memory: u64,
}

/// Lists what is deployed.
pub(super) async fn list(State(gateway): State<Gateway>) -> Answer {
    let catalogue = gateway.catalogue();
    let listed: Vec<_> = catalogue.functions.values().map(Listed::of).collect();
    Ok(Json(serde_json::json!({ "functions": listed })).into_response())
}

impl<'a> Listed<'a> {
    fn of(entry: &'a Entry<FunctionRecord>) -> Self {
        let spec = &entry.record.spec;
        Self {
            name: &entry.name,
            revision: entry.revision,
            stream: &entry.record.stream,
            runtime: spec.run.runtime(),
            on: &spec.on,
            emits: &spec.emits,
            concurrency: spec.concurrency,
            timeout_ms: spec.timeout.as_millis(),
            memory: spec.memory,
        }
    }
}

/// Calls a function with the request as its event, and answers the events that it returns; they are not published.
pub(super) async fn invoke(State(gateway): State<Gateway>, Path(name): Path<String>, request: Request<Body>) -> Answer {
    let unknown =
        || Problem::not_found(format!("no function `{name}` is deployed; GET /v1/functions lists those that are"));
    let function = Name::parse(name.as_str()).map_err(|_| unknown())?;
    let timeout = gateway.catalogue().functions.get(&function).ok_or_else(unknown)?.record.spec.timeout;
    let (parts, body) = request.into_parts();
    let body = gateway.bodies().read(&parts.headers, body, gateway.config().max_api_body).await?;
    let event = input(&parts, &body.bytes)?;
    check_connected(gateway.bus())?;
    match gateway.bus().invoke(&function, &event, timeout + SLACK).await {
        Ok(events) => Ok(Json(events).into_response()),
        Err(error) => Err(invoke_problem(&error)),
    }
}

fn input(parts: &Parts, body: &Bytes) -> Answer<Event> {
    match modes::read(&parts.headers, body)? {
        Posted::One(event) => Ok(*event),
        Posted::Batch(_) => {
            Err(Problem::bad_request("a function is called with one event; POST /v1/events takes batches"))
        }
        Posted::Plain => plain_input(&parts.headers, parts.uri.path(), body),
    }
}

fn plain_input(headers: &HeaderMap, path: &str, body: &Bytes) -> Answer<Event> {
    let ty = EventType::parse(INVOKE_TYPE).map_err(|error| Problem::bad_request(error.to_string()))?;
    let mut event = Event::new(uuid::Uuid::now_v7().to_string(), path, ty);
    event.time = Some(OffsetDateTime::now_utc());
    event.data = body.clone();
    let declared = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    event.content_type = declared.filter(|_| !body.is_empty()).map(str::to_owned);
    let sound = |body: &Bytes| body.is_empty() || serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
    if event.is_json() && !sound(body) {
        return Err(Problem::bad_request("the body is not JSON; say what it is in the header Content-Type"));
    }
    Ok(event)
}

/// Whose fault a failed call is, as a status.
fn invoke_problem(error: &InvokeError) -> Problem {
    let told = error.to_string();
    match error {
        InvokeError::Bus(error) => broker_problem(error),
        InvokeError::NoWorker(_) => {
            Problem::unavailable(format!("{told}: start `nerve worker`, or wait for it to load the function"), AGAIN)
        }
        InvokeError::Timeout(..) => Problem::new(StatusCode::GATEWAY_TIMEOUT, told),
        InvokeError::Function(FunctionError { fault, .. }) => match fault {
            Fault::Invalid => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, told),
            Fault::Timeout => Problem::new(StatusCode::GATEWAY_TIMEOUT, told),
            Fault::Crash => Problem::new(StatusCode::BAD_GATEWAY, told),
            Fault::Retry { after } => Problem::unavailable(told, after.map_or(AGAIN, limits::clamp_wait)),
            Fault::Interrupted => Problem::unavailable(told, AGAIN),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_body_becomes_an_event() {
        let event = |headers: &[(&'static str, &str)], body: &str| {
            let pair =
                |(name, value): &(&'static str, &str)| (http::HeaderName::from_static(name), value.parse().unwrap());
            plain_input(&headers.iter().map(pair).collect(), "/v1/functions/f/invoke", &Bytes::from(body.to_owned()))
        };
        let json = event(&[("content-type", "application/json")], r#"{"a":1}"#).unwrap();
        assert_eq!((json.ty.as_str(), json.data), (INVOKE_TYPE, Bytes::from_static(br#"{"a":1}"#)));
        assert_eq!(event(&[("content-type", "text/plain")], "{").unwrap().content_type.as_deref(), Some("text/plain"));
        assert!(event(&[("content-type", "application/json")], "").unwrap().data.is_empty());
        assert_eq!(event(&[], "{").unwrap_err().status(), 400);
        assert_eq!(event(&[("content-type", "application/json")], "{").unwrap_err().status(), 400);
    }

    #[test]
    fn each_way_to_fail_has_its_status() {
        let name = || Name::parse("f").unwrap();
        let failed = |fault| InvokeError::Function(FunctionError::new(fault, "why"));
        let cases = [
            (InvokeError::NoWorker(name()), 503),
            (InvokeError::Timeout(name(), SLACK), 504),
            (failed(Fault::Invalid), 422),
            (failed(Fault::Timeout), 504),
            (failed(Fault::Crash), 502),
            (failed(Fault::Retry { after: None }), 503),
            (failed(Fault::Interrupted), 503),
        ];
        for (error, status) in cases {
            assert_eq!(invoke_problem(&error).status(), status, "{error:?}");
        }
    }
}

//! `/v1/functions`: lists and calls functions.

use crate::{
    Gateway,
    api::{
        cloudevents::{self, ParsedRequest, cloud_event},
        openapi::{BROKER, Docs, any, list_of, text},
    },
    http::problem::{HttpResult, Problem, ProblemType},
    publish::{broker_problem, check_connected},
};
use axum::{
    Json,
    body::Body,
    extract::{Path, Request, State},
    response::IntoResponse,
};
use bytes::Bytes;
use http::{HeaderMap, header, request::Parts};
use nerve_broker::bus::InvokeError;
use nerve_core::{Event, EventType, Fault, FunctionError, Name, Pattern, limits};
use nerve_registry::{Entry, FunctionRecord};
use serde::Serialize;
use std::time::Duration;
use time::OffsetDateTime;
use utoipa::ToSchema;

/// The event type of a body that is not a CloudEvent.
const INVOKE_TYPE: &str = "nerve.invoke";
/// Time of a call beyond the function's timeout: transport and the wait for a free slot.
const CALL_OVERHEAD: Duration = Duration::from_secs(5);
/// `Retry-After` of a function that cannot respond.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A function without its environment and secrets.
#[derive(Serialize, ToSchema)]
struct FunctionSummary<'a> {
    #[schema(value_type = String)]
    name: &'a Name,
    /// Counts the deployments of the function.
    revision: u64,
    /// The stream that it consumes.
    stream: &'a str,
    runtime: &'static str,
    /// The subjects that it consumes.
    #[schema(value_type = Vec<String>)]
    on: &'a [Pattern],
    /// The event types that it may emit.
    #[schema(value_type = Vec<String>)]
    emits: &'a [Pattern],
    concurrency: usize,
    /// Maximum duration of a call, in milliseconds.
    #[schema(value_type = u64)]
    timeout_ms: u128,
    /// Maximum memory, in bytes.
    memory: u64,
}

/// The deployed functions.
#[derive(Serialize, ToSchema)]
struct FunctionList<'a> {
    functions: Vec<FunctionSummary<'a>>,
}

/// Lists the deployed functions.
pub(crate) async fn list(State(gateway): State<Gateway>) -> HttpResult {
    let catalogue = gateway.catalogue();
    let functions = catalogue.functions.values().map(FunctionSummary::of).collect();
    Ok(Json(FunctionList { functions }).into_response())
}

impl<'a> FunctionSummary<'a> {
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

/// Calls a function with the request as its event. Responds with the events that it returns, which are not published.
pub(crate) async fn invoke(
    State(gateway): State<Gateway>,
    Path(name): Path<String>,
    request: Request<Body>,
) -> HttpResult {
    let unknown = || Problem::not_found(format!("function `{name}` is not deployed; see GET /v1/functions"));
    let function = Name::parse(name.as_str()).map_err(|_| unknown())?;
    let timeout = gateway.catalogue().functions.get(&function).ok_or_else(unknown)?.record.spec.timeout;
    let (parts, body) = gateway.read_api(request).await?;
    let event = input(&parts, &body.bytes)?;
    check_connected(gateway.bus())?;
    match gateway.bus().invoke(&function, &event, timeout + CALL_OVERHEAD).await {
        Ok(events) => Ok(Json(events).into_response()),
        Err(error) => Err(invoke_problem(&error)),
    }
}

fn input(parts: &Parts, body: &Bytes) -> HttpResult<Event> {
    match cloudevents::parse(&parts.headers, body)? {
        ParsedRequest::One(event) => Ok(*event),
        ParsedRequest::Batch(_) => {
            Err(Problem::invalid_request("a call takes one event; POST /v1/events takes batches"))
        }
        ParsedRequest::Plain => plain_input(&parts.headers, parts.uri.path(), body),
    }
}

fn plain_input(headers: &HeaderMap, path: &str, body: &Bytes) -> HttpResult<Event> {
    let ty = EventType::parse(INVOKE_TYPE).map_err(|error| Problem::invalid_request(error.to_string()))?;
    let mut event = Event::new(uuid::Uuid::now_v7().to_string(), path, ty);
    event.time = Some(OffsetDateTime::now_utc());
    event.data = body.clone();
    let declared = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    event.content_type = declared.filter(|_| !body.is_empty()).map(str::to_owned);
    let sound = |body: &Bytes| body.is_empty() || serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
    if event.is_json() && !sound(body) {
        return Err(Problem::new(ProblemType::InvalidJson, "the body is not JSON: set the header Content-Type"));
    }
    Ok(event)
}

/// The problem of a failed call.
fn invoke_problem(error: &InvokeError) -> Problem {
    let message = error.to_string();
    let unavailable = |detail, wait| Problem::retry_after(ProblemType::FunctionUnavailable, detail, wait);
    match error {
        InvokeError::Bus(error) => broker_problem(error),
        InvokeError::NoWorker(_) => {
            unavailable(format!("{message}: start `nerve worker`, or wait for it to load the function"), RETRY_AFTER)
        }
        InvokeError::Timeout(..) => Problem::new(ProblemType::Timeout, message),
        InvokeError::Function(FunctionError { fault, .. }) => match fault {
            Fault::Invalid => Problem::new(ProblemType::InputRefused, message),
            Fault::Timeout => Problem::new(ProblemType::Timeout, message),
            Fault::Crash => Problem::new(ProblemType::FunctionFailed, message),
            Fault::Retry { after } => unavailable(message, after.map_or(RETRY_AFTER, limits::clamp_wait)),
            Fault::Interrupted => unavailable(message, RETRY_AFTER),
        },
    }
}

/// The documentation of [`list`].
pub(crate) fn list_docs(docs: Docs) -> Docs {
    docs.json::<FunctionList<'_>>(200, "The deployed functions")
}

/// The documentation of [`invoke`].
pub(crate) fn invoke_docs(docs: Docs) -> Docs {
    use ProblemType::{FunctionFailed, FunctionUnavailable, InputRefused, InvalidEvent, InvalidJson, Timeout};
    docs.path("name", "The name of the function")
        .body_like("application/json", any())
        .body_like("text/plain", text())
        .body_like("application/cloudevents+json", cloud_event())
        .json_like(200, "The events that the function returns", list_of(cloud_event()))
        .problems(&[InvalidEvent, InvalidJson, InputRefused, FunctionFailed, FunctionUnavailable, Timeout])
        .problems(BROKER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_body_becomes_an_event() {
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
    fn each_failure_has_its_status() {
        let name = || Name::parse("f").unwrap();
        let failed = |fault| InvokeError::Function(FunctionError::new(fault, "why"));
        let cases = [
            (InvokeError::NoWorker(name()), 503),
            (InvokeError::Timeout(name(), CALL_OVERHEAD), 504),
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

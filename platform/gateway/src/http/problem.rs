//! Error responses: problem documents (RFC 9457), or OpenAI's error object on the routes that OpenAI's clients use.

mod types;

pub(crate) use types::ProblemType;

use axum::{
    body::Body,
    extract::rejection::QueryRejection,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use std::{any::Any, time::Duration};
use utoipa::ToSchema;

/// The media type of a problem document.
pub(crate) const MEDIA_TYPE: &str = "application/problem+json";

/// An error response: its type, an explanation and headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    ty: ProblemType,
    detail: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// The result of a handler.
pub(crate) type HttpResult<T = Response> = Result<T, Problem>;

/// A problem document.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct Document<'a> {
    /// The path of the documentation of this type of problem.
    #[serde(rename = "type")]
    ty: &'a str,
    /// The type in words.
    title: &'a str,
    /// The HTTP status.
    status: u16,
    /// The cause and the next step.
    detail: &'a str,
}

/// The body of an error on a route that OpenAI's clients use.
#[derive(Serialize, ToSchema)]
pub(crate) struct OpenAiError<'a> {
    error: OpenAiErrorDetails<'a>,
}

/// OpenAI's description of an error.
#[derive(Serialize, ToSchema)]
struct OpenAiErrorDetails<'a> {
    /// The cause and the next step.
    message: &'a str,
    /// The class of the error.
    #[serde(rename = "type")]
    ty: &'static str,
    /// Always null.
    param: Option<&'static str>,
    /// The type of the problem; GET /problems/{code} documents it.
    code: &'static str,
}

/// The format of the errors of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorFormat {
    /// A problem document.
    Problem,
    /// OpenAI's error object.
    OpenAi,
}

impl Problem {
    /// A problem of this type with an explanation.
    pub(crate) fn new(ty: ProblemType, detail: impl Into<String>) -> Self {
        Self { ty, detail: detail.into(), headers: Vec::new() }
    }

    /// A problem whose request may be retried after `wait`.
    pub(crate) fn retry_after(ty: ProblemType, detail: impl Into<String>, wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self::new(ty, detail).with(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)))
    }

    pub(crate) fn invalid_request(detail: impl Into<String>) -> Self {
        Self::new(ProblemType::InvalidRequest, detail)
    }

    /// A body that is not the JSON of `what`.
    pub(crate) fn invalid_json(what: &str, error: &serde_json::Error) -> Self {
        Self::new(ProblemType::InvalidJson, format!("invalid {what}: {error}"))
    }

    /// A query with an unknown or invalid parameter; `known` lists the known ones.
    pub(crate) fn invalid_query(rejection: &QueryRejection, known: &str) -> Self {
        Self::invalid_request(format!("{}; the known ones are {known}", rejection.body_text()))
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(ProblemType::NotFound, detail)
    }

    /// A method that the path does not have, with those that it has.
    pub(crate) fn method_not_allowed(allowed: HeaderValue) -> Self {
        let detail = "method not allowed on this path; see the header Allow";
        Self::new(ProblemType::MethodNotAllowed, detail).with(header::ALLOW, allowed)
    }

    /// This problem with a header.
    pub(crate) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Closes the connection after the response: the rest of the request is not read.
    pub(crate) fn closing(self) -> Self {
        self.with(header::CONNECTION, HeaderValue::from_static("close"))
    }

    /// The status.
    pub(crate) fn status(&self) -> StatusCode {
        self.ty.status()
    }

    /// The explanation.
    #[cfg(test)]
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// OpenAI's error object about this problem.
    pub(crate) fn to_openai(&self) -> OpenAiError<'_> {
        let ty = self.ty;
        let error = OpenAiErrorDetails { message: &self.detail, ty: ty.openai_type(), param: None, code: ty.name() };
        OpenAiError { error }
    }

    /// The response in this format.
    pub(crate) fn respond(self, format: ErrorFormat) -> Response {
        let (body, media_type) = match format {
            ErrorFormat::Problem => (serde_json::to_vec(&self.document()), MEDIA_TYPE),
            ErrorFormat::OpenAi => (serde_json::to_vec(&self.to_openai()), "application/json"),
        };
        let mut response = Response::new(Body::from(body.unwrap_or_default()));
        *response.status_mut() = self.status();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        response.headers_mut().extend(self.headers);
        response
    }

    fn document(&self) -> Document<'_> {
        Document { ty: self.ty.uri(), title: self.ty.title(), status: self.status().as_u16(), detail: &self.detail }
    }
}

/// A problem that [`finish`] turns into a body: only there the format of the route is known.
#[derive(Clone)]
struct Pending(Problem);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status();
        response.extensions_mut().insert(Pending(self));
        response
    }
}

/// Gives an error response its body, also one of the framework.
pub(crate) fn finish(mut response: Response, format: impl FnOnce() -> ErrorFormat) -> Response {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    if let Some(Pending(problem)) = response.extensions_mut().remove() {
        return problem.respond(format());
    }
    // The framework responds in plain text or without a body; JSON is a handler's own, such as that of health checks.
    if response.headers().get(header::CONTENT_TYPE).is_some_and(|value| value == "application/json") {
        return response;
    }
    let problem = match status {
        StatusCode::NOT_FOUND => Problem::not_found("unknown path"),
        StatusCode::METHOD_NOT_ALLOWED => {
            let allowed = response.headers_mut().remove(header::ALLOW);
            Problem::method_not_allowed(allowed.unwrap_or_else(|| HeaderValue::from_static("")))
        }
        status if status.is_client_error() => Problem::invalid_request("the request is malformed"),
        _ => internal(),
    };
    problem.respond(format())
}

/// The response to a request whose handler panicked.
pub(crate) fn after_panic(panic: Box<dyn Any + Send>) -> Response {
    let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    tracing::error!(message, "a request handler panicked: this is a bug in Nerve");
    internal().into_response()
}

fn internal() -> Problem {
    Problem::new(ProblemType::Internal, "internal error; see the gateway log")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    async fn finished(format: ErrorFormat) -> (Response, Value) {
        let problem = Problem::retry_after(ProblemType::Overloaded, "later", Duration::from_millis(10));
        let (parts, body) = finish(problem.into_response(), || format).into_parts();
        let body = axum::body::to_bytes(body, 1024).await.unwrap();
        (Response::from_parts(parts, Body::empty()), serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn problem_becomes_a_document_with_its_status() {
        let (response, document) = finished(ErrorFormat::Problem).await;
        assert_eq!(
            (response.status().as_u16(), &response.headers()[header::RETRY_AFTER]),
            (503, &HeaderValue::from(1))
        );
        assert_eq!(response.headers()[header::CONTENT_TYPE], MEDIA_TYPE);
        let expected = json!({"type": "/problems/overloaded", "title": "Overloaded", "status": 503, "detail": "later"});
        assert_eq!(document, expected);
    }

    #[tokio::test]
    async fn problem_of_an_openai_route_is_an_error_object() {
        let (response, document) = finished(ErrorFormat::OpenAi).await;
        assert_eq!(
            (response.status().as_u16(), &response.headers()[header::RETRY_AFTER]),
            (503, &HeaderValue::from(1))
        );
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        let error = json!({"message": "later", "type": "server_error", "param": null, "code": "overloaded"});
        assert_eq!(document, json!({ "error": error }));
    }
}

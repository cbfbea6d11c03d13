//! Problem documents (RFC 9457), the body of every error response.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use std::{any::Any, time::Duration};

/// The media type of a problem document.
pub(crate) const MEDIA_TYPE: &str = "application/problem+json";

/// An error response: status, explanation, headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// The result of a handler.
pub(crate) type HttpResult<T = Response> = Result<T, Problem>;

#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "type")]
    ty: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
}

impl Problem {
    /// A problem with this status and explanation.
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), headers: Vec::new() }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// 503: the request may be retried after `wait`.
    pub(crate) fn unavailable(detail: impl Into<String>, wait: Duration) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, detail);
        problem.with(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)))
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

    /// The explanation, for a response whose head has been sent.
    pub(crate) fn detail_text(self) -> String {
        self.detail
    }

    /// The status.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// The explanation.
    #[cfg(test)]
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = Document {
            ty: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
        };
        let mut response = Response::new(Body::from(serde_json::to_vec(&document).unwrap_or_default()));
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        response.headers_mut().extend(self.headers);
        response
    }
}

/// Converts error responses of the framework into problem documents.
pub(crate) fn uniform(response: Response) -> Response {
    let status = response.status();
    // Frameworks respond in plain text or without a body; JSON is the gateway's own, such as health checks.
    let media_type = response.headers().get(header::CONTENT_TYPE);
    let ours = media_type.is_some_and(|value| value == MEDIA_TYPE || value == "application/json");
    if ours || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let detail = match status {
        StatusCode::NOT_FOUND => "unknown path",
        StatusCode::METHOD_NOT_ALLOWED => "method not allowed on this path; see the header Allow",
        _ => "the request is malformed",
    };
    let allow = response.headers().get(header::ALLOW).cloned();
    let problem = Problem::new(status, detail);
    allow.into_iter().fold(problem, |problem, allow| problem.with(header::ALLOW, allow)).into_response()
}

/// The response to a request whose handler panicked.
pub(crate) fn after_panic(panic: Box<dyn Any + Send>) -> Response {
    let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    tracing::error!(message, "a request handler panicked: this is a bug in Nerve");
    let detail = "internal error; see the gateway log";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn problem_becomes_a_document_with_its_status() {
        let response = Problem::unavailable("later", Duration::from_millis(10)).into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        assert_eq!(response.headers()[header::CONTENT_TYPE], MEDIA_TYPE);
        let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
        let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let expected = serde_json::json!({
            "type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "later"
        });
        assert_eq!(document, expected);
    }
}

//! Requests of senders that are not deliveries: URL verification, challenges, preflight.

use crate::{
    Gateway,
    api::openapi::Docs,
    http::{
        forwarded::Origin,
        problem::{HttpResult, Problem, ProblemType},
    },
    webhooks::receive::{find, parse_name, secret_of},
};
use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use nerve_core::{Name, SourceSpec, function::Secret, manifest::Rate};
use nerve_webhooks::{Handshake, Reply, Scheme, challenge};

/// Responds to a verified handshake.
pub(crate) async fn respond(gateway: &Gateway, source: &Name, reply: Reply) -> HttpResult {
    Ok(match reply {
        Reply::Json(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Reply::Empty => StatusCode::NO_CONTENT.into_response(),
        Reply::ConfirmSubscription(url) => {
            gateway.certificates().confirm(&url).await?;
            tracing::info!(%source, "the subscription at AWS is confirmed");
            StatusCode::NO_CONTENT.into_response()
        }
    })
}

/// Logs the secret that a sender announces, for a source that has none.
pub(crate) fn log_announced_secret(source: &Name, spec: &SourceSpec, secret: &Secret) -> Response {
    let name = spec.secrets.first().map(String::as_str).unwrap_or_default();
    // Logged once: the operator has to enter it in the sender's settings before the sender signs with it.
    tracing::warn!(
        %source,
        verification_token = secret.expose(),
        "the sender announces the secret that it will sign with: enter this token in its settings to confirm the webhook, and \
         store it with `nerve secrets set {name}`"
    );
    StatusCode::NO_CONTENT.into_response()
}

/// `GET /hooks/{source}`: the URL verification of Meta.
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    Path(source): Path<String>,
    RawQuery(query): RawQuery,
    origin: Origin,
) -> HttpResult {
    let source = parse_name(&source)?;
    let (spec, catalogue) = find(&gateway, &source, &origin)?;
    if !matches!(Scheme::of(&spec.provider).handshake, Some(Handshake::Meta)) {
        return Err(only_post());
    }
    let token = spec.verify_token.as_ref().and_then(|token| secret_of(&catalogue, &source, token));
    let text = token.and_then(|token| challenge(&query.unwrap_or_default(), &token));
    let text = text.ok_or_else(|| Problem::new(ProblemType::Forbidden, "the verify token does not match"))?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, text).into_response())
}

/// `OPTIONS /hooks/{source}`: the validation request of a CloudEvents sender (Web Hooks for Event Delivery 1.0, section 4).
pub(crate) async fn options(
    State(gateway): State<Gateway>,
    Path(source): Path<String>,
    origin: Origin,
    headers: HeaderMap,
) -> HttpResult {
    let (spec, _) = find(&gateway, &parse_name(&source)?, &origin)?;
    if !matches!(Scheme::of(&spec.provider).handshake, Some(Handshake::CloudEvents)) {
        return Err(only_post());
    }
    let mut response = Response::new(Body::empty());
    let answered = response.headers_mut();
    answered.insert(header::ALLOW, HeaderValue::from_static("POST, OPTIONS"));
    if let Some(origin) = headers.get("webhook-request-origin") {
        answered.insert("webhook-allowed-origin", origin.clone());
        answered.insert("webhook-allowed-rate", allowed_rate(spec.rate));
    }
    Ok(response)
}

/// The documentation of [`get`].
pub(crate) fn get_docs(docs: Docs) -> Docs {
    docs.path("source", "The name of the source")
        .text(200, "The challenge of the request")
        .problems(&[ProblemType::Forbidden, ProblemType::MethodNotAllowed])
}

/// The documentation of [`options`].
pub(crate) fn options_docs(docs: Docs) -> Docs {
    docs.path("source", "The name of the source")
        .header("WebHook-Request-Origin", "The sender that asks for permission")
        .empty(200, "The sender may send events, at the rate in `WebHook-Allowed-Rate`")
        .problems(&[ProblemType::Forbidden, ProblemType::MethodNotAllowed])
}

/// Requests per minute, the unit of CloudEvents. `*` without a rate: the gateway sheds excess requests anyway.
fn allowed_rate(rate: Option<Rate>) -> HeaderValue {
    let Some(rate) = rate else { return HeaderValue::from_static("*") };
    HeaderValue::from((u64::from(rate.count) * 60 / rate.per.as_secs().max(1)).max(1))
}

fn only_post() -> Problem {
    Problem::method_not_allowed(HeaderValue::from_static("POST"))
}

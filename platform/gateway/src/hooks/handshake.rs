//! What senders ask besides sending events.

use super::{
    super::{
        Gateway,
        forwarded::Origin,
        problem::{Answer, Problem},
    },
    find, named, secret_of,
};
use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use nerve_core::{Name, SourceSpec, function::Secret, manifest::Rate};
use nerve_webhooks::{Handshake, Reply, Scheme, challenge};

/// Answers what a verified delivery asks.
pub(super) async fn answer(gateway: &Gateway, source: &Name, reply: Reply) -> Answer {
    Ok(match reply {
        Reply::Json(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Reply::Nothing => StatusCode::NO_CONTENT.into_response(),
        Reply::Confirm(url) => {
            gateway.certificates().confirm(&url).await?;
            tracing::info!(%source, "the subscription at AWS is confirmed");
            StatusCode::NO_CONTENT.into_response()
        }
    })
}

/// Tells the operator the secret that a sender brings, while the source has none.
pub(super) fn brought(source: &Name, spec: &SourceSpec, secret: &Secret) -> Response {
    let name = spec.secrets.first().map(String::as_str).unwrap_or_default();
    // It has to be shown once: the sender wants it confirmed in its own settings before it signs with it.
    tracing::warn!(
        %source,
        verification_token = secret.expose(),
        "the sender brings the secret it will sign with: enter this token in its settings to confirm the webhook, and store \
         it with `nerve secrets set {name}`"
    );
    StatusCode::NO_CONTENT.into_response()
}

/// `GET /hooks/{source}`: Meta asks whether the URL is ours.
pub(in super::super) async fn get(
    State(gateway): State<Gateway>,
    Path(source): Path<String>,
    RawQuery(query): RawQuery,
    origin: Origin,
) -> Answer {
    let source = named(&source)?;
    let (spec, catalogue) = find(&gateway, &source, &origin)?;
    if !matches!(Scheme::of(&spec.provider).handshake, Some(Handshake::Meta)) {
        return Err(only_post());
    }
    let token = spec.verify_token.as_ref().and_then(|token| secret_of(&catalogue, &source, token));
    let text = token.and_then(|token| challenge(&query.unwrap_or_default(), &token));
    let text = text.ok_or_else(|| Problem::new(StatusCode::FORBIDDEN, "the verify token is not this source's"))?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, text).into_response())
}

/// `OPTIONS /hooks/{source}`: a CloudEvents sender asks whether it may post (CloudEvents' web hooks, section 4).
pub(in super::super) async fn options(
    State(gateway): State<Gateway>,
    Path(source): Path<String>,
    origin: Origin,
    headers: HeaderMap,
) -> Answer {
    let (spec, _) = find(&gateway, &named(&source)?, &origin)?;
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

/// Requests a minute, as CloudEvents counts them. Without a rate of the source's every one is right: what comes faster than
/// we can take in is answered 503 anyway.
fn allowed_rate(rate: Option<Rate>) -> HeaderValue {
    let Some(rate) = rate else { return HeaderValue::from_static("*") };
    HeaderValue::from((u64::from(rate.count) * 60 / rate.per.as_secs().max(1)).max(1))
}

fn only_post() -> Problem {
    let problem = Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path does not take this method; the header Allow says which it takes",
    );
    problem.with(header::ALLOW, HeaderValue::from_static("POST"))
}

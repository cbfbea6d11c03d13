//! `POST /hooks/{source}`: a verified webhook becomes one event or several.
//!
//! # Flow
//! find the source → check the address → read the body → verify → drop duplicates → apply the source's limits → publish → wait for the
//! acknowledgement → store the dedupe keys → respond.

use super::{handshake, ingest::Ingest, limits, log_limit};
use crate::{
    Gateway,
    api::openapi::{BROKER, Docs, any, text},
    http::{
        body::{LARGE_BODY_BYTES, is_small},
        forwarded::{Origin, Peer},
        problem::{HttpResult, Problem, ProblemType},
    },
    publish::accepted_docs,
};
use axum::{
    BoxError,
    body::{Body, HttpBody},
    extract::{Path, State},
};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, request::Parts};
use nerve_core::{Name, SourceSpec, function::Secret};
use nerve_registry::Catalogue;
use nerve_webhooks::{Accepted, Certificate, Delivery, Refusal, certificate_url, verify};
use std::{sync::Arc, time::Duration};
use time::OffsetDateTime;
use utoipa::openapi::schema::ObjectBuilder;

/// `Retry-After` of a source whose configuration has to be fixed first.
const CONFIGURATION_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The source of a small webhook. `None` for other requests, and where the size is unknown or the path needs the router.
pub(crate) fn source_of_small(request: &Request<impl HttpBody>) -> Option<Name> {
    let source = request.uri().path().strip_prefix("/hooks/")?;
    if request.method() == Method::POST && is_small(request.body()) { Name::parse(source).ok() } else { None }
}

/// Receives a small webhook on the connection's thread.
pub(crate) async fn receive_small<B>(gateway: Gateway, source: Name, peer: Peer, request: Request<B>) -> HttpResult
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let (parts, body) = request.into_parts();
    let origin = peer.origin(&gateway, &parts)?;
    IncomingWebhook { gateway: &gateway, source, origin, parts }.receive(body).await
}

/// Receives any other webhook, which the router has matched.
pub(crate) async fn receive(
    State(gateway): State<Gateway>,
    Path(source): Path<String>,
    origin: Origin,
    request: Request<Body>,
) -> HttpResult {
    let source = parse_name(&source)?;
    let (parts, body) = request.into_parts();
    IncomingWebhook { gateway: &gateway, source, origin, parts }.receive(body).await
}

/// A webhook whose body has not been read.
struct IncomingWebhook<'a> {
    gateway: &'a Gateway,
    source: Name,
    origin: Origin,
    parts: Parts,
}

impl IncomingWebhook<'_> {
    /// Responds 202 once JetStream has acknowledged the events.
    ///
    /// Rare paths are boxed, here and below: every request pays for the size of the whole future.
    async fn receive(self, body: impl HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin) -> HttpResult {
        let Self { gateway, source, origin, parts } = self;
        let (mut spec, catalogue) = find(gateway, &source, &origin)?;
        let limit = spec.max_body.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        let body = gateway.bodies().read(&parts.headers, body, limit.min(gateway.config().max_hook_body)).await?;
        if spec.public_url.is_none() && spec.needs_url() {
            Arc::make_mut(&mut spec).public_url = origin.url(parts.uri.path());
        }
        let secrets = spec.secrets.iter().filter_map(|secret| secret_of(&catalogue, &source, secret)).collect();
        let query = parts.uri.query().map(str::to_owned);
        let now = OffsetDateTime::now_utc();
        let mut verification = Verification {
            spec,
            secrets,
            headers: parts.headers,
            query,
            body: body.bytes.clone(),
            certificate: None,
            now,
        };
        let url = certificate_url(&verification.spec, verification.delivery())
            .map_err(|refusal| refuse(&source, &refusal, &origin))?;
        if let Some(url) = url {
            verification.certificate = Box::pin(gateway.certificates().get(&source, &url)).await?;
        }
        let (verification, verified) = verification.verify().await?;
        match verified {
            Ok(Accepted::Handshake(reply)) => Box::pin(handshake::respond(gateway, &source, reply)).await,
            Ok(Accepted::Events(verified, signed_identity)) => {
                let Verification { spec, headers, body, .. } = &verification;
                Ingest { gateway, source: &source, spec, signed_identity }
                    .store_new(verified, (headers, body), now)
                    .await
            }
            Err(Refusal::AnnouncesSecret(secret)) if !verification.spec.secrets.is_empty() => {
                Ok(handshake::log_announced_secret(&source, &verification.spec, &secret))
            }
            Err(refusal) => Err(refuse(&source, &refusal, &origin)),
        }
    }
}

/// Parses the name of a source.
pub(crate) fn parse_name(source: &str) -> HttpResult<Name> {
    Name::parse(source).map_err(|_| unknown(source))
}

/// The deployed source, after checking that the sender's address is allowed.
pub(crate) fn find(gateway: &Gateway, source: &Name, origin: &Origin) -> HttpResult<(Arc<SourceSpec>, Arc<Catalogue>)> {
    let catalogue = gateway.catalogue();
    let found = catalogue.sources.get(source).ok_or_else(|| unknown(source.as_str()))?;
    let spec = Arc::clone(&found.record.spec);
    limits::check_address(source, &spec, origin)?;
    Ok((spec, catalogue))
}

fn unknown(source: &str) -> Problem {
    Problem::not_found(format!("webhook source `{source}` is not deployed: deploy `[source.{source}]`"))
}

/// A secret of a source; `None` and a log line if this gateway cannot read it. Verification continues with the others.
pub(crate) fn secret_of(catalogue: &Catalogue, source: &Name, name: &str) -> Option<Secret> {
    match catalogue.secret(name) {
        Ok(value) => Some(value),
        Err(missing) => {
            if let Some(suppressed) = log_limit::due(source.as_str(), "secret") {
                tracing::warn!(%source, suppressed, "a secret of the source is not available: {missing}");
            }
            None
        }
    }
}

/// The input of verification.
struct Verification {
    spec: Arc<SourceSpec>,
    secrets: Vec<Secret>,
    headers: HeaderMap,
    query: Option<String>,
    body: Bytes,
    certificate: Option<Arc<Certificate>>,
    now: OffsetDateTime,
}

impl Verification {
    async fn verify(self) -> HttpResult<(Self, Result<Accepted, Refusal>)> {
        let size = self.body.len();
        let verify = move || {
            let verified = self.verify_blocking();
            (self, verified)
        };
        if size < LARGE_BODY_BYTES {
            return Ok(verify());
        }
        let verified = tokio::task::spawn_blocking(verify).await;
        verified.map_err(|_| Problem::new(ProblemType::Internal, "verification was aborted"))
    }

    fn verify_blocking(&self) -> Result<Accepted, Refusal> {
        verify(&self.spec, &self.secrets, self.delivery())
    }

    fn delivery(&self) -> Delivery<'_> {
        Delivery {
            headers: &self.headers,
            body: &self.body,
            query: self.query.as_deref(),
            certificate: self.certificate.as_deref(),
            now: self.now,
        }
    }
}

/// The response to a refused webhook. It tells the sender only the class of the failure.
fn refuse(source: &Name, refusal: &Refusal, origin: &Origin) -> Problem {
    match refusal {
        Refusal::Malformed => {
            let detail = "the body is not JSON, although its content type says so; nothing was stored";
            Problem::new(ProblemType::InvalidJson, detail)
        }
        Refusal::TooManyItems => Problem::new(ProblemType::BodyTooLarge, refusal.to_string()),
        Refusal::Unusable(why) => {
            if let Some(suppressed) = log_limit::due(source.as_str(), "unusable") {
                tracing::error!(%source, suppressed, "webhooks of the source get 503: {why}");
            }
            let detail = format!("source `{source}` cannot verify webhooks; see the gateway log");
            Problem::retry_after(ProblemType::SourceMisconfigured, detail, CONFIGURATION_RETRY_AFTER)
        }
        _ => {
            tracing::debug!(%source, client = origin.client.map(display), "webhook refused: {refusal}");
            let detail = "the signature or one of its headers is missing, invalid or expired";
            Problem::new(ProblemType::InvalidSignature, detail)
        }
    }
}

/// The documentation of [`receive`].
pub(crate) fn docs(docs: Docs) -> Docs {
    use ProblemType::{
        CertificateUnavailable, Conflict, Forbidden, InProgress, InvalidEvent, InvalidJson, InvalidSignature,
        RateLimited, SourceMisconfigured,
    };
    let docs = docs
        .path("source", "The name of the source")
        .body_like("application/json", any())
        .body_like("application/x-www-form-urlencoded", ObjectBuilder::new().into())
        .body_like("application/octet-stream", text());
    accepted_docs(docs)
        .json_like(200, "The reply to the handshake of the sender", any())
        .empty(204, "The handshake of the sender is done")
        .problems(&[InvalidEvent, InvalidJson, InvalidSignature, Forbidden, Conflict, RateLimited])
        .problems(&[CertificateUnavailable, InProgress, SourceMisconfigured])
        .problems(BROKER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_webhook_is_matched_without_the_router() {
        let source = |method: &str, path: &str, body: Body| {
            let request = Request::builder().method(method).uri(path).body(body).unwrap();
            source_of_small(&request).map(|name| name.to_string())
        };
        let stream = Body::from_stream(futures::stream::empty::<Result<Bytes, BoxError>>());
        assert_eq!(source("POST", "/hooks/github?a=b", Body::from("{}")).as_deref(), Some("github"));
        assert_eq!(source("POST", "/hooks/github", Body::from(vec![0; LARGE_BODY_BYTES])), None);
        assert_eq!(source("POST", "/hooks/github", stream), None, "its size is unknown");
        assert_eq!(source("GET", "/hooks/github", Body::empty()), None);
        for path in ["/hooks/", "/hooks/a/b", "/hooks/a%62", "/hooks/A", "/v1/events"] {
            assert_eq!(source("POST", path, Body::empty()), None, "{path}");
        }
    }

    #[test]
    fn refusal_tells_the_sender_only_its_class() {
        let source = Name::parse("github").unwrap();
        let refuse = |source: &Name, refusal: &Refusal| super::refuse(source, refusal, &Origin::default());
        let wrong = refuse(&source, &Refusal::InvalidSignature);
        for refusal in [
            Refusal::Missing("x".into()),
            Refusal::Expired(CONFIGURATION_RETRY_AFTER),
            Refusal::Repeated("y".into()),
            Refusal::InvalidTime,
            Refusal::UnknownTopic,
            Refusal::InvalidCertificate,
        ] {
            assert_eq!(refuse(&source, &refusal), wrong);
        }
        assert_eq!(wrong.status(), 401);
        assert_eq!(refuse(&source, &Refusal::Malformed).status(), 400);
        let unusable = Refusal::Unusable(nerve_webhooks::Unusable::NoSecret);
        assert_eq!(refuse(&source, &unusable).status(), 503);
    }
}

//! `POST /hooks/{source}`: a verified webhook becomes an event, or several.
//!
//! # Layout
//! - `guard`: who may post, and how much. `events`: the events it becomes. `taking`: into the log, or the spool.
//! - `handshake`: what senders ask besides. `certificates`: calls out to AWS.
//!
//! # Flow
//! find the source → check the address → read the body → verify → leave out what was taken in before → check the rate →
//! publish, and wait for the ack → remember → answer.

mod certificates;
mod events;
mod guard;
mod handshake;
mod taking;

pub(super) use certificates::Certificates;
pub(super) use guard::Guards;
pub(super) use handshake::{get, options};

use super::{
    Gateway,
    body::{LARGE, is_small},
    forwarded::{Origin, Peer},
    problem::{Answer, Problem},
    repeats,
};
use axum::{
    BoxError,
    body::{Body, HttpBody},
    extract::{Path, State},
};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, request::Parts};
use nerve_core::{Name, SourceSpec, function::Secret, manifest::Provider};
use nerve_registry::Catalogue;
use nerve_webhooks::{Accepted, Certificate, Delivery, Refusal, certificate_url, verify};
use std::{sync::Arc, time::Duration};
use taking::Taking;
use time::OffsetDateTime;

/// When to come back to a source that somebody has to mend first.
const MENDED: Duration = Duration::from_secs(60);

/// Where webhooks are posted to.
pub(super) const PATH: &str = "/hooks/{source}";

/// The source that this request is a small webhook for; none when it is none, or when that takes a router or the whole body
/// to tell.
pub(super) fn source_of(request: &Request<impl HttpBody>) -> Option<Name> {
    let source = request.uri().path().strip_prefix("/hooks/")?;
    if request.method() == Method::POST && is_small(request.body()) { Name::parse(source).ok() } else { None }
}

/// Takes in a small webhook, on the thread of its connection.
pub(super) async fn take<B>(gateway: Gateway, source: Name, peer: Peer, request: Request<B>) -> Answer
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let (parts, body) = request.into_parts();
    let origin = peer.origin(&gateway, &parts)?;
    Posted { gateway: &gateway, source, origin, parts }.take(body).await
}

/// `POST /hooks/{source}`, where the router has found it.
pub(super) async fn receive(
    State(gateway): State<Gateway>,
    Path(source): Path<String>,
    origin: Origin,
    request: Request<Body>,
) -> Answer {
    let source = named(&source)?;
    let (parts, body) = request.into_parts();
    Posted { gateway: &gateway, source, origin, parts }.take(body).await
}

/// A webhook whose body is still to come.
struct Posted<'a> {
    gateway: &'a Gateway,
    source: Name,
    origin: Origin,
    parts: Parts,
}

impl Posted<'_> {
    /// Takes it in: 202 once JetStream has it.
    ///
    /// What is rare is boxed, here and below: every request pays for the size of the whole future.
    async fn take(self, body: impl HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin) -> Answer {
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
        let mut hook =
            Hook { spec, secrets, headers: parts.headers, query, body: body.bytes.clone(), certificate: None, now };
        let url = certificate_url(&hook.spec, hook.delivery()).map_err(|refusal| refuse(&source, &refusal, &origin))?;
        if let Some(url) = url {
            hook.certificate = Box::pin(gateway.certificates().get(&source, &url)).await?;
        }
        let (hook, verified) = hook.verify().await?;
        match verified {
            Ok(Accepted::Asked(reply)) => Box::pin(handshake::answer(gateway, &source, reply)).await,
            Ok(Accepted::Events(verified, recognition)) => {
                let posted = match hook.spec.provider {
                    Provider::Cloudevents => {
                        events::cloud_events(&source, hook.spec.ids(), (&hook.headers, &hook.body))?
                    }
                    _ => None,
                };
                let events = match posted {
                    Some(events) => events,
                    None => {
                        let event_of = |one| events::event_of((&source, &hook.spec), one, now);
                        verified.into_iter().map(event_of).collect::<Answer<_>>()?
                    }
                };
                Taking { gateway, source: &source, spec: &hook.spec, recognition }.take(events).await
            }
            Err(Refusal::Brings(secret)) if !hook.spec.secrets.is_empty() => {
                Ok(handshake::brought(&source, &hook.spec, &secret))
            }
            Err(refusal) => Err(refuse(&source, &refusal, &origin)),
        }
    }
}

/// The name of a source.
fn named(source: &str) -> Answer<Name> {
    Name::parse(source).map_err(|_| unknown(source))
}

/// The source of this name, and what is deployed with it, for whom may post to it.
fn find(gateway: &Gateway, source: &Name, origin: &Origin) -> Answer<(Arc<SourceSpec>, Arc<Catalogue>)> {
    let catalogue = gateway.catalogue();
    let found = catalogue.sources.get(source).ok_or_else(|| unknown(source.as_str()))?;
    let spec = Arc::clone(&found.record.spec);
    guard::check_origin(source, &spec, origin)?;
    Ok((spec, catalogue))
}

fn unknown(source: &str) -> Problem {
    Problem::not_found(format!("there is no webhook source `{source}`; deploy `[source.{source}]`"))
}

/// A secret of a source, if this gateway can read it. While one is rotated, the others go on.
fn secret_of(catalogue: &Catalogue, source: &Name, name: &str) -> Option<Secret> {
    match catalogue.secret(name) {
        Ok(value) => Some(value),
        Err(missing) => {
            if let Some(suppressed) = repeats::due(source.as_str(), "secret") {
                tracing::warn!(%source, suppressed, "a source cannot verify with one of its secrets: {missing}");
            }
            None
        }
    }
}

/// Everything that verification looks at.
struct Hook {
    spec: Arc<SourceSpec>,
    secrets: Vec<Secret>,
    headers: HeaderMap,
    query: Option<String>,
    body: Bytes,
    certificate: Option<Arc<Certificate>>,
    now: OffsetDateTime,
}

impl Hook {
    async fn verify(self) -> Answer<(Self, Result<Accepted, Refusal>)> {
        let size = self.body.len();
        let verify = move || {
            let verified = self.verify_here();
            (self, verified)
        };
        if size < LARGE {
            return Ok(verify());
        }
        let verified = tokio::task::spawn_blocking(verify).await;
        verified.map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "verification was broken off"))
    }

    fn verify_here(&self) -> Result<Accepted, Refusal> {
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

/// What the sender is told: no more than which of three things it is.
fn refuse(source: &Name, refusal: &Refusal, origin: &Origin) -> Problem {
    match refusal {
        Refusal::Malformed => {
            Problem::bad_request("the body is not JSON, although its content type says so; nothing was stored")
        }
        Refusal::TooManyItems => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, refusal.to_string()),
        Refusal::Unusable(why) => {
            if let Some(suppressed) = repeats::due(source.as_str(), "unusable") {
                tracing::error!(%source, suppressed, "webhooks are answered 503: {why}");
            }
            let detail = format!("the source `{source}` cannot verify webhooks now; the gateway's log says why");
            Problem::unavailable(detail, MENDED)
        }
        _ => {
            tracing::debug!(%source, client = origin.client.map(display), "a webhook is refused: {refusal}");
            let detail = "the signature, or a header that goes with it, is missing, wrong or out of date";
            Problem::new(StatusCode::UNAUTHORIZED, detail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_webhook_is_known_without_a_router() {
        let source = |method: &str, path: &str, body: Body| {
            let request = Request::builder().method(method).uri(path).body(body).unwrap();
            source_of(&request).map(|name| name.to_string())
        };
        let stream = Body::from_stream(futures::stream::empty::<Result<Bytes, BoxError>>());
        assert_eq!(source("POST", "/hooks/github?a=b", Body::from("{}")).as_deref(), Some("github"));
        assert_eq!(source("POST", "/hooks/github", Body::from(vec![0; LARGE])), None);
        assert_eq!(source("POST", "/hooks/github", stream), None, "nobody knows how long it is");
        assert_eq!(source("GET", "/hooks/github", Body::empty()), None);
        for path in ["/hooks/", "/hooks/a/b", "/hooks/a%62", "/hooks/A", "/v1/events"] {
            assert_eq!(source("POST", path, Body::empty()), None, "{path}");
        }
    }

    #[test]
    fn a_refusal_tells_the_sender_no_more_than_its_kind() {
        let source = Name::parse("github").unwrap();
        let refuse = |source: &Name, refusal: &Refusal| super::refuse(source, refusal, &Origin::default());
        let wrong = refuse(&source, &Refusal::Wrong);
        for refusal in [
            Refusal::Missing("x".into()),
            Refusal::Old(MENDED),
            Refusal::Repeated("y".into()),
            Refusal::Time,
            Refusal::Topic,
            Refusal::Certificate,
        ] {
            assert_eq!(refuse(&source, &refusal), wrong);
        }
        assert_eq!(wrong.status(), 401);
        assert_eq!(refuse(&source, &Refusal::Malformed).status(), 400);
        let unusable = Refusal::Unusable(nerve_webhooks::Unusable::NoSecret);
        assert_eq!(refuse(&source, &unusable).status(), 503);
    }
}

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
    forwarded::Origin,
    problem::{Answer, Problem},
    verify::{Accepted, Certificate, Delivery, Refusal, certificate_url, verify},
};
use crate::registry::Catalogue;
use axum::{
    body::Body,
    extract::{Path, Request, State},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use nerve_core::{Name, SourceSpec, function::Secret, manifest::Provider};
use std::{sync::Arc, time::Duration};
use taking::Taking;
use time::OffsetDateTime;

/// A body from this size on is verified on a thread of its own: hashing it would hold up other requests.
const LARGE: usize = 256 << 10;
/// When to come back to a source that somebody has to mend first.
const MENDED: Duration = Duration::from_secs(60);

/// Takes in one webhook: 202 once JetStream has it.
///
/// What is rare is boxed, here and below: every request pays for the size of the whole future.
pub(super) async fn receive(
    State(gateway): State<Gateway>,
    Path(source): Path<String>,
    origin: Origin,
    request: Request<Body>,
) -> Answer {
    let (name, mut spec, catalogue) = find(&gateway, &source, &origin)?;
    let (parts, body) = request.into_parts();
    let limit = spec.max_body.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let body = gateway.bodies().read(&parts.headers, body, limit.min(gateway.config().max_hook_body)).await?;
    if spec.public_url.is_none() && spec.needs_url() {
        Arc::make_mut(&mut spec).public_url = origin.url(parts.uri.path());
    }
    let secrets = spec.secrets.iter().filter_map(|secret| secret_of(&catalogue, &name, secret)).collect();
    let query = parts.uri.query().map(str::to_owned);
    let now = OffsetDateTime::now_utc();
    let mut hook =
        Hook { spec, secrets, headers: parts.headers, query, body: body.bytes.clone(), certificate: None, now };
    if let Some(url) =
        certificate_url(&hook.spec, hook.delivery()).map_err(|refusal| refuse(&name, &refusal, &origin))?
    {
        hook.certificate = Box::pin(gateway.certificates().get(&url)).await?;
    }
    let hook = Arc::new(hook);
    match Hook::verify(&hook).await? {
        Ok(Accepted::Asked(reply)) => Box::pin(handshake::answer(&gateway, &name, reply)).await,
        Ok(Accepted::Events(verified, identity)) => {
            let posted = match hook.spec.provider {
                Provider::Cloudevents => events::cloud_events(&name, &hook.headers, &hook.body)?,
                _ => None,
            };
            let events = match posted {
                Some(events) => events,
                None => verified.into_iter().map(|one| events::event_of(&name, one, now)).collect::<Answer<_>>()?,
            };
            Taking { gateway: &gateway, source: &name, spec: &hook.spec, identity }.take(events).await
        }
        Err(Refusal::Brings(secret)) if !hook.spec.secrets.is_empty() => {
            Ok(handshake::brought(&name, &hook.spec, &secret))
        }
        Err(refusal) => Err(refuse(&name, &refusal, &origin)),
    }
}

/// The source of this name, and what is deployed with it, for whom may post to it.
fn find(gateway: &Gateway, source: &str, origin: &Origin) -> Answer<(Name, Arc<SourceSpec>, Arc<Catalogue>)> {
    let unknown = || Problem::not_found(format!("there is no webhook source `{source}`; deploy `[source.{source}]`"));
    let name = Name::parse(source).map_err(|_| unknown())?;
    let catalogue = gateway.catalogue();
    let spec = Arc::clone(&catalogue.sources.get(&name).ok_or_else(unknown)?.record.spec);
    guard::check_origin(&name, &spec, origin)?;
    Ok((name, spec, catalogue))
}

/// A secret of a source, if this gateway can read it. While one is rotated, the others go on.
fn secret_of(catalogue: &Catalogue, source: &Name, name: &str) -> Option<Secret> {
    let secret = catalogue.secrets.get(name);
    let value = secret.and_then(|secret| secret.value.clone());
    if value.is_none() {
        let why = if secret.is_some() { "is sealed to a key that this server does not have" } else { "is not set" };
        tracing::warn!(%source, secret = name, "a secret of this source {why}; `nerve secrets set {name}` sets it");
    }
    value
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
    async fn verify(hook: &Arc<Self>) -> Answer<Result<Accepted, Refusal>> {
        if hook.body.len() < LARGE {
            return Ok(hook.verify_here());
        }
        let elsewhere = Arc::clone(hook);
        let verified = tokio::task::spawn_blocking(move || elsewhere.verify_here()).await;
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
            tracing::error!(%source, "webhooks are answered 503: {why}");
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
        let unusable = Refusal::Unusable(super::super::verify::Unusable::NoSecret);
        assert_eq!(refuse(&source, &unusable).status(), 503);
    }
}

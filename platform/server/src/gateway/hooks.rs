//! `POST /hooks/{source}`: a verified webhook becomes an event.

use super::{
    Gateway,
    problem::{Answer, Problem},
    publish::{Receipt, publish},
    verify::{Delivery, Refusal, Verified, verify},
};
use crate::registry::Catalogue;
use axum::{
    Json,
    body::Body,
    extract::{Path, Request, State},
    response::IntoResponse,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use nerve_core::{Event, EventType, Name, SourceSpec, event::PARTITION_KEY, function::Secret};
use std::time::Duration;
use time::OffsetDateTime;

/// A body from this size on is verified on a thread of its own: hashing it would hold up other requests.
const LARGE: usize = 256 << 10;
/// The longest id that a sender is believed; another is replaced by the hash of what is signed.
const MAX_ID: usize = 255;
/// The longest event type, so that its subject stays within 255 bytes; the rest of what a sender says is cut off.
const MAX_TYPE: usize = 240;
/// When to come back to a source that somebody has to mend first.
const MENDED: Duration = Duration::from_secs(60);

/// Takes in one webhook: 202 once JetStream has it.
pub(super) async fn receive(
    State(gateway): State<Gateway>,
    Path(source): Path<String>,
    request: Request<Body>,
) -> Answer {
    let unknown = || Problem::not_found(format!("there is no webhook source `{source}`; deploy `[source.{source}]`"));
    let name = Name::parse(source.as_str()).map_err(|_| unknown())?;
    let catalogue = gateway.catalogue();
    let spec = catalogue.sources.get(&name).ok_or_else(unknown)?.record.spec.clone();
    let (parts, body) = request.into_parts();
    let body = gateway.bodies().read(&parts.headers, body, gateway.config().max_hook_body).await?;
    let secrets = secrets_of(&catalogue, &name, &spec);
    let now = OffsetDateTime::now_utc();
    let hook = Hook { spec, secrets, headers: parts.headers, body: body.bytes.clone(), now };
    let verified = hook.verify().await?.map_err(|refusal| refuse(&name, &refusal))?;
    let event = event_of(&name, verified, now)?;
    let receipt: Receipt = publish(gateway.bus(), &event).await?;
    Ok((StatusCode::ACCEPTED, Json(receipt)).into_response())
}

/// The secrets of a source that this gateway can read. While one is rotated, the others go on.
fn secrets_of(catalogue: &Catalogue, source: &Name, spec: &SourceSpec) -> Vec<Secret> {
    let value = |name: &String| {
        let secret = catalogue.secrets.get(name);
        let value = secret.and_then(|secret| secret.value.clone());
        if value.is_none() {
            let why = if secret.is_some() { "is sealed to a key that this server does not have" } else { "is not set" };
            tracing::warn!(%source, secret = name, "a secret of this source {why}; `nerve secrets set {name}` sets it");
        }
        value
    };
    spec.secrets.iter().filter_map(value).collect()
}

/// Everything that verification looks at.
struct Hook {
    spec: SourceSpec,
    secrets: Vec<Secret>,
    headers: HeaderMap,
    body: Bytes,
    now: OffsetDateTime,
}

impl Hook {
    async fn verify(self) -> Answer<Result<Verified, Refusal>> {
        if self.body.len() < LARGE {
            return Ok(self.verify_here());
        }
        let verified = tokio::task::spawn_blocking(move || self.verify_here()).await;
        verified.map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "verification was broken off"))
    }

    fn verify_here(&self) -> Result<Verified, Refusal> {
        verify(&self.spec, &self.secrets, Delivery { headers: &self.headers, body: &self.body, now: self.now })
    }
}

/// What the sender is told: no more than which of three things it is.
fn refuse(source: &Name, refusal: &Refusal) -> Problem {
    match refusal {
        Refusal::Malformed => {
            Problem::bad_request("the body is not JSON, although its content type says so; nothing was stored")
        }
        Refusal::Unusable(why) => {
            tracing::error!(%source, "webhooks are answered 503: {why}");
            let detail = format!("the source `{source}` cannot verify webhooks now; the gateway's log says why");
            Problem::unavailable(detail, MENDED)
        }
        _ => {
            tracing::debug!(%source, "a webhook is refused: {refusal}");
            let detail = "the signature, or a header that goes with it, is missing, wrong or out of date";
            Problem::new(StatusCode::UNAUTHORIZED, detail)
        }
    }
}

/// The event that a verified delivery becomes.
fn event_of(source: &Name, verified: Verified, now: OffsetDateTime) -> Answer<Event> {
    let sound = |id: &String| id.len() <= MAX_ID && !id.chars().any(char::is_control);
    let id = verified.id.filter(sound).unwrap_or(verified.signed_sha256);
    let ty = event_type(source, verified.ty.as_deref())?;
    let mut event = Event::new(id, format!("/hooks/{source}"), ty);
    event.time = Some(now);
    event.content_type = verified.content_type;
    event.data = verified.data;
    let subject = verified.subject.filter(sound);
    if let Some(subject) = &subject {
        event = event.with_extension(PARTITION_KEY, subject.as_str());
    }
    event.subject = subject;
    Ok(event)
}

/// `<source>.<type>`, with `_` for what cannot stand in a subject; `<source>.event` when there is no type.
fn event_type(source: &Name, ty: Option<&str>) -> Answer<EventType> {
    let fits = |c: char| if c.is_ascii_graphic() && !matches!(c, '*' | '>') { c } else { '_' };
    let fitted: String = ty.unwrap_or("event").chars().take(MAX_TYPE).map(fits).collect();
    let tokens: Vec<_> = fitted.split('.').map(|token| if token.is_empty() { "_" } else { token }).collect();
    let mut text = format!("{source}.{}", tokens.join("."));
    text.truncate(MAX_TYPE);
    let text = text.trim_end_matches('.');
    EventType::parse(text).map_err(|error| Problem::bad_request(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Name {
        Name::parse("github").unwrap()
    }

    fn verified() -> Verified {
        Verified {
            id: Some("d-1".into()),
            ty: Some("issues.opened".into()),
            subject: Some("octo/hello".into()),
            signed_sha256: "00".repeat(32),
            content_type: Some("application/json".into()),
            data: Bytes::from_static(b"{}"),
        }
    }

    #[test]
    fn a_delivery_becomes_an_event() {
        let event = event_of(&source(), verified(), OffsetDateTime::UNIX_EPOCH).unwrap();
        assert_eq!((event.id.as_str(), event.source.as_str()), ("d-1", "/hooks/github"));
        assert_eq!(event.ty.subject().as_str(), "events.github.issues.opened");
        assert_eq!(event.subject.as_deref(), Some("octo/hello"));
        assert_eq!(event.extension(PARTITION_KEY), Some("octo/hello"));
        assert_eq!(event.time, Some(OffsetDateTime::UNIX_EPOCH));
    }

    #[test]
    fn a_delivery_without_a_sound_id_is_known_by_what_is_signed() {
        for id in [None, Some("a\nb".to_owned()), Some("x".repeat(256))] {
            let event = event_of(&source(), Verified { id, ..verified() }, OffsetDateTime::UNIX_EPOCH).unwrap();
            assert_eq!(event.id, "00".repeat(32));
        }
    }

    #[test]
    fn every_type_fits_into_a_subject() {
        let long = "x.".repeat(400);
        let cases = [
            (None, "github.event"),
            (Some("push"), "github.push"),
            (Some("a b*c>d"), "github.a_b_c_d"),
            (Some("ä.b"), "github._.b"),
            (Some("..a."), "github._._.a._"),
            (Some("\r\n"), "github.__"),
        ];
        for (ty, expected) in cases {
            assert_eq!(event_type(&source(), ty).unwrap().as_str(), expected);
        }
        assert!(event_type(&source(), Some(&long)).is_ok());
        let widest = Name::parse("n".repeat(63)).unwrap();
        assert!(event_type(&widest, Some(&".".repeat(400))).is_ok());
    }

    #[test]
    fn a_refusal_tells_the_sender_no_more_than_its_kind() {
        let wrong = refuse(&source(), &Refusal::Wrong);
        for refusal in
            [Refusal::Missing("x".into()), Refusal::Old(MENDED), Refusal::Repeated("y".into()), Refusal::Time]
        {
            assert_eq!(refuse(&source(), &refusal), wrong);
        }
        assert_eq!(wrong.status(), 401);
        assert_eq!(refuse(&source(), &Refusal::Malformed).status(), 400);
        let unusable = Refusal::Unusable(super::super::verify::Unusable::NoSecret);
        assert_eq!(refuse(&source(), &unusable).status(), 503);
    }
}

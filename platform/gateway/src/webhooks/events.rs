//! The events that verified deliveries become.

use crate::{
    api::cloudevents::{self, ParsedRequest},
    http::problem::{HttpResult, Problem, ProblemType},
};
use bytes::Bytes;
use http::HeaderMap;
use nerve_core::{
    Event, EventType, Identity, Name, Origin, SourceSpec,
    event::PARTITION_KEY,
    manifest::{Dedupe, Ids},
};
use nerve_webhooks::{IdScope, VerifiedEvent, is_valid_attribute};
use time::OffsetDateTime;
use uuid::Uuid;

/// Maximum length of an event type in bytes, so that its subject stays within 255; longer ones are cut off.
const MAX_TYPE_BYTES: usize = 240;

/// An event that a source received.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) event: Event,
    pub(crate) id_scope: IdScope,
}

impl Received {
    /// The identity, by which duplicates of the source are recognized.
    pub(crate) fn identity(&self, origin: &Origin, dedupe: Dedupe) -> Identity {
        match (dedupe, &self.id_scope) {
            (Dedupe::None, _) => origin.identify_delivery(Uuid::now_v7().as_bytes()),
            (_, IdScope::DeliveryAndBody(sha256)) => origin.identify_content(&self.event, sha256),
            (_, IdScope::Delivery | IdScope::ContentHash) => origin.identify(&self.event),
        }
    }
}

/// The event of a verified delivery, or of one item of it.
pub(crate) fn event_of(
    (source, spec): (&Name, &SourceSpec),
    verified: VerifiedEvent,
    now: OffsetDateTime,
) -> HttpResult<Received> {
    let ty = event_type(source, verified.ty.as_deref())?;
    let id_scope = verified.id_scope;
    // Without deduplication, equal bodies are different events.
    let id = match (spec.dedupe(), id_scope) {
        (Dedupe::None, IdScope::ContentHash) => Uuid::now_v7().to_string(),
        _ => verified.id,
    };
    let mut event = Event::new(id, ["/hooks/", source.as_str()].concat(), ty);
    event.time = Some(now);
    event.content_type = verified.content_type;
    event.data = verified.data;
    let subject = verified.subject.filter(|subject| is_valid_attribute(subject));
    if let Some(subject) = &subject {
        event = event.with_extension(PARTITION_KEY, subject.as_str());
    }
    event.subject = subject;
    Ok(Received { event, id_scope })
}

/// The CloudEvents of a request, with types under the source's name; `None` if the request has none.
pub(crate) fn cloud_events(
    source: &Name,
    ids: Ids,
    (headers, body): (&HeaderMap, &Bytes),
) -> HttpResult<Option<Vec<Received>>> {
    let events = match cloudevents::parse(headers, body)? {
        ParsedRequest::One(event) => vec![*event],
        ParsedRequest::Batch(events) => events,
        ParsedRequest::Plain => return Ok(None),
    };
    let received = |mut event: Event| {
        event.ty = event_type(source, Some(event.ty.as_str()))?;
        let id_scope = IdScope::of(ids, &event.data);
        Ok(Received { event, id_scope })
    };
    events.into_iter().map(received).collect::<HttpResult<_>>().map(Some)
}

/// `<source>.<type>`, with `_` for characters that a subject cannot have and dots for slashes; `<source>.event` without a type.
fn event_type(source: &Name, ty: Option<&str>) -> HttpResult<EventType> {
    let ty = ty.unwrap_or("event");
    let text = [source.as_str(), ".", ty].concat();
    // Most types are valid as they are; others are converted.
    if text.len() <= MAX_TYPE_BYTES
        && !ty.contains('/')
        && let Ok(ty) = EventType::parse(text)
    {
        return Ok(ty);
    }
    let fits = |c: char| match c {
        '/' => '.',
        '*' | '>' => '_',
        c if c.is_ascii_graphic() => c,
        _ => '_',
    };
    let mut text = format!("{source}.");
    for c in ty.chars().take(MAX_TYPE_BYTES).map(fits) {
        if c == '.' && text.ends_with('.') {
            text.push('_');
        }
        text.push(c);
    }
    if text.ends_with('.') {
        text.push('_');
    }
    text.truncate(MAX_TYPE_BYTES);
    let text = text.trim_end_matches('.');
    EventType::parse(text).map_err(|error| Problem::new(ProblemType::InvalidEvent, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::manifest::Provider;

    fn source() -> Name {
        Name::parse("github").unwrap()
    }

    fn verified() -> VerifiedEvent {
        VerifiedEvent {
            id: "d-1".into(),
            id_scope: IdScope::Delivery,
            ty: Some("issues.opened".into()),
            subject: Some("octo/hello".into()),
            content_type: Some("application/json".into()),
            data: Bytes::from_static(b"{}"),
        }
    }

    fn received(dedupe: Dedupe, id_scope: IdScope) -> Received {
        let spec = SourceSpec { dedupe: Some(dedupe), ..SourceSpec::new(Provider::Github) };
        event_of((&source(), &spec), VerifiedEvent { id_scope, ..verified() }, OffsetDateTime::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn identity_depends_on_what_the_id_names() {
        let origin = Origin::source(&source());
        let identity = |dedupe, id_scope| received(dedupe, id_scope).identity(&origin, dedupe);
        let [one, other] = [b"one", b"two"].map(|body| IdScope::of(Ids::Reused, body));
        assert_eq!(identity(Dedupe::Id, IdScope::Delivery), identity(Dedupe::Signed, IdScope::Delivery));
        assert_eq!(identity(Dedupe::Id, one), identity(Dedupe::Id, one));
        assert_ne!(identity(Dedupe::Id, one), identity(Dedupe::Id, other));
        for id_scope in [IdScope::Delivery, IdScope::ContentHash, one] {
            assert_ne!(identity(Dedupe::None, id_scope), identity(Dedupe::None, id_scope), "each is a different event");
        }
        assert_eq!(received(Dedupe::None, IdScope::Delivery).event.id, "d-1", "the sender's id is kept");
        let [first, second] = [(); 2].map(|()| received(Dedupe::None, IdScope::ContentHash).event.id);
        assert!(first != second && first != "d-1");
    }

    #[test]
    fn delivery_becomes_an_event() {
        let event = received(Dedupe::Id, IdScope::Delivery).event;
        assert_eq!((event.id.as_str(), event.source.as_str()), ("d-1", "/hooks/github"));
        assert_eq!(event.ty.subject().as_str(), "events.github.issues.opened");
        assert_eq!(event.subject.as_deref(), Some("octo/hello"));
        assert_eq!(event.extension(PARTITION_KEY), Some("octo/hello"));
        assert_eq!(event.time, Some(OffsetDateTime::UNIX_EPOCH));
    }

    #[test]
    fn every_type_yields_a_valid_subject() {
        let long = "x.".repeat(400);
        let cases = [
            (None, "github.event"),
            (Some("push"), "github.push"),
            (Some("a b*c>d"), "github.a_b_c_d"),
            (Some("ä.b"), "github._.b"),
            (Some("..a."), "github._._.a._"),
            (Some("\r\n"), "github.__"),
            (Some("orders/create"), "github.orders.create"),
            (Some("jira:issue_created"), "github.jira:issue_created"),
        ];
        for (ty, expected) in cases {
            assert_eq!(event_type(&source(), ty).unwrap().as_str(), expected);
        }
        assert!(event_type(&source(), Some(&long)).is_ok());
        let widest = Name::parse("n".repeat(63)).unwrap();
        assert!(event_type(&widest, Some(&".".repeat(400))).is_ok());
    }
}

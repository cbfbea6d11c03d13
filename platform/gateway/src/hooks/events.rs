//! The events that verified deliveries become.

use super::super::{
    modes::{self, Posted},
    problem::{Answer, Problem},
};
use bytes::Bytes;
use http::HeaderMap;
use nerve_core::{
    Event, EventType, Identity, Name, Origin, SourceSpec,
    event::PARTITION_KEY,
    manifest::{Dedupe, Ids},
};
use nerve_webhooks::{IdNames, Verified, is_sound};
use time::OffsetDateTime;
use uuid::Uuid;

/// The longest event type, so that its subject stays within 255 bytes; the rest of what a sender says is cut off.
const MAX_TYPE: usize = 240;

/// An event that came in at a source.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) event: Event,
    pub(super) id_names: IdNames,
}

impl Received {
    /// What makes it the same as another event of its source.
    pub(super) fn identity(&self, origin: &Origin, dedupe: Dedupe) -> Identity {
        match (dedupe, &self.id_names) {
            (Dedupe::None, _) => origin.identify_delivery(Uuid::now_v7().as_bytes()),
            (_, IdNames::WithBody(sha256)) => origin.identify_content(&self.event, sha256),
            (_, IdNames::Delivery | IdNames::Bytes) => origin.identify(&self.event),
        }
    }
}

/// The event that a verified delivery, or one item of it, becomes.
pub(super) fn event_of(
    (source, spec): (&Name, &SourceSpec),
    verified: Verified,
    now: OffsetDateTime,
) -> Answer<Received> {
    let ty = event_type(source, verified.ty.as_deref())?;
    let id_names = verified.id_names;
    // A hash would give events that are to be two the same id.
    let id = match (spec.dedupe(), id_names) {
        (Dedupe::None, IdNames::Bytes) => Uuid::now_v7().to_string(),
        _ => verified.id,
    };
    let mut event = Event::new(id, ["/hooks/", source.as_str()].concat(), ty);
    event.time = Some(now);
    event.content_type = verified.content_type;
    event.data = verified.data;
    let subject = verified.subject.filter(|subject| is_sound(subject));
    if let Some(subject) = &subject {
        event = event.with_extension(PARTITION_KEY, subject.as_str());
    }
    event.subject = subject;
    Ok(Received { event, id_names })
}

/// The CloudEvents that a sender of those posted, under the source's name; none when it posted none.
pub(super) fn cloud_events(
    source: &Name,
    ids: Ids,
    (headers, body): (&HeaderMap, &Bytes),
) -> Answer<Option<Vec<Received>>> {
    let events = match modes::read(headers, body)? {
        Posted::One(event) => vec![*event],
        Posted::Batch(events) => events,
        Posted::Plain => return Ok(None),
    };
    let received = |mut event: Event| {
        event.ty = event_type(source, Some(event.ty.as_str()))?;
        let id_names = IdNames::of(ids, &event.data);
        Ok(Received { event, id_names })
    };
    events.into_iter().map(received).collect::<Answer<_>>().map(Some)
}

/// `<source>.<type>`, with `_` for what cannot stand in a subject and dots for slashes; `<source>.event` when there is no
/// type.
fn event_type(source: &Name, ty: Option<&str>) -> Answer<EventType> {
    let ty = ty.unwrap_or("event");
    let text = [source.as_str(), ".", ty].concat();
    // As most are; the rest is made to fit.
    if text.len() <= MAX_TYPE
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
    for c in ty.chars().take(MAX_TYPE).map(fits) {
        if c == '.' && text.ends_with('.') {
            text.push('_');
        }
        text.push(c);
    }
    if text.ends_with('.') {
        text.push('_');
    }
    text.truncate(MAX_TYPE);
    let text = text.trim_end_matches('.');
    EventType::parse(text).map_err(|error| Problem::bad_request(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::manifest::Provider;

    fn source() -> Name {
        Name::parse("github").unwrap()
    }

    fn verified() -> Verified {
        Verified {
            id: "d-1".into(),
            id_names: IdNames::Delivery,
            ty: Some("issues.opened".into()),
            subject: Some("octo/hello".into()),
            content_type: Some("application/json".into()),
            data: Bytes::from_static(b"{}"),
        }
    }

    fn received(dedupe: Dedupe, id_names: IdNames) -> Received {
        let spec = SourceSpec { dedupe: Some(dedupe), ..SourceSpec::new(Provider::Github) };
        event_of((&source(), &spec), Verified { id_names, ..verified() }, OffsetDateTime::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn identity_is_made_of_what_the_id_names() {
        let origin = Origin::source(&source());
        let identity = |dedupe, id_names| received(dedupe, id_names).identity(&origin, dedupe);
        let [one, other] = [b"one", b"two"].map(|body| IdNames::of(Ids::Reused, body));
        assert_eq!(identity(Dedupe::Id, IdNames::Delivery), identity(Dedupe::Signed, IdNames::Delivery));
        assert_eq!(identity(Dedupe::Id, one), identity(Dedupe::Id, one));
        assert_ne!(identity(Dedupe::Id, one), identity(Dedupe::Id, other));
        for id_names in [IdNames::Delivery, IdNames::Bytes, one] {
            assert_ne!(
                identity(Dedupe::None, id_names),
                identity(Dedupe::None, id_names),
                "each is an event of its own"
            );
        }
        assert_eq!(received(Dedupe::None, IdNames::Delivery).event.id, "d-1", "the sender's id stays");
        let [first, second] = [(); 2].map(|()| received(Dedupe::None, IdNames::Bytes).event.id);
        assert!(first != second && first != "d-1");
    }

    #[test]
    fn a_delivery_becomes_an_event() {
        let event = received(Dedupe::Id, IdNames::Delivery).event;
        assert_eq!((event.id.as_str(), event.source.as_str()), ("d-1", "/hooks/github"));
        assert_eq!(event.ty.subject().as_str(), "events.github.issues.opened");
        assert_eq!(event.subject.as_deref(), Some("octo/hello"));
        assert_eq!(event.extension(PARTITION_KEY), Some("octo/hello"));
        assert_eq!(event.time, Some(OffsetDateTime::UNIX_EPOCH));
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

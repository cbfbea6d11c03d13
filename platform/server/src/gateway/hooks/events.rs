//! The events that verified deliveries become.

use super::super::{
    modes::{self, Posted},
    problem::{Answer, Problem},
    verify::{Verified, is_sound},
};
use bytes::Bytes;
use http::HeaderMap;
use nerve_core::{Event, EventType, Name, event::PARTITION_KEY};
use time::OffsetDateTime;

/// The longest event type, so that its subject stays within 255 bytes; the rest of what a sender says is cut off.
const MAX_TYPE: usize = 240;

/// The event that a verified delivery, or one item of it, becomes.
pub(super) fn event_of(source: &Name, verified: Verified, now: OffsetDateTime) -> Answer<Event> {
    let ty = event_type(source, verified.ty.as_deref())?;
    let mut event = Event::new(verified.id, ["/hooks/", source.as_str()].concat(), ty);
    event.time = Some(now);
    event.content_type = verified.content_type;
    event.data = verified.data;
    let subject = verified.subject.filter(|subject| is_sound(subject));
    if let Some(subject) = &subject {
        event = event.with_extension(PARTITION_KEY, subject.as_str());
    }
    event.subject = subject;
    Ok(event)
}

/// The CloudEvents that a sender of those posted, under the source's name; none when it posted none.
pub(super) fn cloud_events(source: &Name, headers: &HeaderMap, body: &Bytes) -> Answer<Option<Vec<Event>>> {
    let mut events = match modes::read(headers, body)? {
        Posted::One(event) => vec![*event],
        Posted::Batch(events) => events,
        Posted::Plain => return Ok(None),
    };
    for event in &mut events {
        event.ty = event_type(source, Some(event.ty.as_str()))?;
    }
    Ok(Some(events))
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

    fn source() -> Name {
        Name::parse("github").unwrap()
    }

    fn verified() -> Verified {
        Verified {
            id: "d-1".into(),
            ty: Some("issues.opened".into()),
            subject: Some("octo/hello".into()),
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

//! CloudEvents over HTTP, in any mode.

use super::request::Request;
use http::StatusCode;
use nerve_core::{
    Event,
    event::{HOPS, NERVE_DATA_REF_SCHEME, RESERVED_SOURCE_PREFIXES},
};
use nerve_gateway::fuzzing::read_events;

/// Reads the events of a request; panics unless they are what an event from outside may be, and keep their content in
/// both forms that they are stored and sent in.
pub fn run(data: &[u8]) {
    let Some(request) = Request::read(data) else { return };
    let events = match read_events(&request.headers, &request.body) {
        Ok(events) => events.unwrap_or_default(),
        Err(status) => {
            let known = [StatusCode::BAD_REQUEST, StatusCode::PAYLOAD_TOO_LARGE, StatusCode::UNSUPPORTED_MEDIA_TYPE];
            assert!(known.contains(&status), "{status}");
            return;
        }
    };
    for event in events {
        check_origin(&event);
        check_headers(&event);
        check_json(&event);
    }
}

/// No event from outside says that Nerve made it.
fn check_origin(event: &Event) {
    assert!(!RESERVED_SOURCE_PREFIXES.iter().any(|reserved| event.source.starts_with(reserved)), "{event:?}");
    assert!(
        !event.extension("dataref").is_some_and(|at| at.to_lowercase().starts_with(NERVE_DATA_REF_SCHEME)),
        "{event:?}"
    );
    assert_eq!(event.extension(HOPS), None);
}

fn check_headers(event: &Event) {
    let headers: Vec<_> = event.to_headers().collect();
    let printable = |byte: u8| (b' '..=b'~').contains(&byte);
    assert!(headers.iter().all(|(_, value)| value.bytes().all(printable)), "{headers:?}");
    let pairs = headers.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
    let back = Event::from_headers(pairs, event.data.clone());
    assert_eq!(back.as_ref(), Ok(event));
}

fn check_json(event: &Event) {
    let text = serde_json::to_string(event).expect("an event can be written as JSON");
    assert!(!text.contains('\n'), "an event is one line: {text}");
    let back = Event::from_json(text.as_bytes()).expect("what was written can be read");
    // The space between the parts of a JSON body may differ.
    if serde_json::from_slice::<serde::de::IgnoredAny>(&event.data).is_err() {
        assert_eq!(back, *event);
    }
    assert_eq!((&back.id, &back.source, &back.ty), (&event.id, &event.source, &event.ty));
}

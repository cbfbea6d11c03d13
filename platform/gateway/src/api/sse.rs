//! Server-sent events: frames, and response headers that disable buffering in proxies.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::Stream;
use http::{HeaderValue, header};
use std::convert::Infallible;

/// A comment, which clients ignore: keeps the connection alive through proxies.
pub(crate) const HEARTBEAT: Bytes = Bytes::from_static(b":\n\n");

/// An event of a stream.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Frame<'a> {
    /// The value that the client sends as `Last-Event-ID` to resume after this event.
    pub(crate) id: Option<u64>,
    /// Its name, without line breaks; `message` if `None`.
    pub(crate) name: Option<&'a str>,
    /// Its data; any text.
    pub(crate) data: &'a str,
}

impl Frame<'_> {
    /// The bytes on the wire.
    pub(crate) fn to_bytes(self) -> Bytes {
        let mut text = String::with_capacity(self.data.len() + 48);
        if let Some(id) = self.id {
            text.push_str(&format!("id: {id}\n"));
        }
        if let Some(name) = self.name {
            text.push_str(&format!("event: {name}\n"));
        }
        for line in lines(self.data) {
            text.push_str("data: ");
            text.push_str(line);
            text.push('\n');
        }
        text.push('\n');
        Bytes::from(text)
    }
}

/// The lines of a text. `\n`, `\r` and `\r\n` end a line of a stream, so each line needs its own `data:`.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let current = rest?;
        let Some((line, after)) = current.find(['\n', '\r']).map(|at| current.split_at(at)) else {
            rest = None;
            return Some(current);
        };
        rest = after.strip_prefix("\r\n").or_else(|| after.get(1..));
        Some(line)
    })
}

/// A response that streams these frames.
pub(crate) fn response(frames: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let frames = futures::StreamExt::map(frames, Ok::<_, Infallible>);
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform")),
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(frames)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_own_data_field() {
        let frame = |data| Frame { data, ..Frame::default() }.to_bytes();
        assert_eq!(frame("a\nb\rc\r\nd"), "data: a\ndata: b\ndata: c\ndata: d\n\n");
        assert_eq!(frame(""), "data: \n\n");
        assert_eq!(frame("a\n\n"), "data: a\ndata: \ndata: \n\n");
        assert_eq!(frame(" ü"), "data:  ü\n\n");
    }

    #[test]
    fn id_and_name_precede_the_data() {
        let frame = Frame { id: Some(7), name: Some("gap"), data: "{}" };
        assert_eq!(frame.to_bytes(), "id: 7\nevent: gap\ndata: {}\n\n");
    }
}

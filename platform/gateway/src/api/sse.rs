//! Server-sent events: frames, open streams with their heartbeat, and response headers that disable buffering in proxies.

use crate::Gateway;
use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{HeaderValue, header};
use nerve_core::shares::Slot;
use std::{convert::Infallible, time::Duration};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

/// The first frame of a stream that can be resumed: clients reconnect after 1 s.
const RETRY_FRAME: Bytes = Bytes::from_static(b"retry: 1000\n\n");
/// Heartbeat interval of idle streams.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
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

/// The frames of a stream.
pub(crate) trait Frames: Send + 'static {
    /// The next frame; `None` at the end.
    fn next_frame(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// An open stream of a client.
pub(crate) struct OpenStream {
    heartbeat: Interval,
    shutdown: CancellationToken,
    _slot: StreamSlot,
}

/// What happened first.
pub(crate) enum Waited<T> {
    /// The item arrived.
    Item(T),
    /// Nothing within the heartbeat interval.
    Idle,
}

impl OpenStream {
    pub(crate) fn new(gateway: &Gateway, slot: StreamSlot) -> Self {
        let mut heartbeat = tokio::time::interval_at(Instant::now() + HEARTBEAT_INTERVAL, HEARTBEAT_INTERVAL);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { heartbeat, shutdown: gateway.shutdown().clone(), _slot: slot }
    }

    /// Waits for an item, which may be dropped without loss; `None` at shutdown.
    pub(crate) async fn wait<T>(&mut self, item: impl Future<Output = T>) -> Option<Waited<T>> {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => None,
            item = item => Some(Waited::Item(item)),
            _ = self.heartbeat.tick() => Some(Waited::Idle),
        }
    }
}

/// A slot of the limit of open event streams, counted until it is dropped.
pub(crate) struct StreamSlot(
    #[expect(dead_code, reason = "held until it is dropped")] OwnedSemaphorePermit,
    #[expect(dead_code, reason = "held until it is dropped")] Option<Slot>,
);

impl StreamSlot {
    pub(crate) fn new(permit: OwnedSemaphorePermit, share: Option<Slot>) -> Self {
        metrics::gauge!("nerve_gateway_streams").increment(1.0);
        Self(permit, share)
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        metrics::gauge!("nerve_gateway_streams").decrement(1.0);
    }
}

/// Expired events of a stream: the first and the last sequence.
pub(crate) fn gap(from: u64, to: u64) -> Bytes {
    let data = format!(r#"{{"from":{from},"to":{to}}}"#);
    Frame { name: Some("gap"), data: &data, id: None }.to_bytes()
}

/// A response that streams frames from which a client can resume.
pub(crate) fn resumable(frames: impl Frames) -> Response {
    streaming(stream::once(async { RETRY_FRAME }).chain(stream_of(frames)))
}

/// A response that streams frames.
pub(crate) fn response(frames: impl Frames) -> Response {
    streaming(stream_of(frames))
}

fn stream_of(frames: impl Frames) -> impl Stream<Item = Bytes> + Send + 'static {
    stream::unfold(frames, |mut frames| async move {
        let frame = frames.next_frame().await?;
        Some((frame, frames))
    })
}

fn streaming(frames: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let frames = frames.map(Ok::<_, Infallible>);
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

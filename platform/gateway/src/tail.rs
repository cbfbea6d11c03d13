//! `GET /v1/events`: the log as server-sent events, from anywhere in it, resumable.

use super::{
    Gateway,
    access::Caller,
    problem::{Answer, Problem},
    publish::{broker_problem, check_connected},
    sse::{self, Frame, HEARTBEAT},
};
use axum::extract::{Extension, Query, State, rejection::QueryRejection};
use bytes::Bytes;
use futures::Stream;
use http::HeaderMap;
use nerve_broker::bus::{Start, Tail, Tailed};
use nerve_core::{Pattern, shares::Slot};
use serde::Deserialize;
use std::time::Duration;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

/// How often a silent stream says that it lives.
pub(super) const HEARTBEAT_EVERY: Duration = Duration::from_secs(15);
/// What clients are asked to wait before they connect again, in milliseconds.
pub(super) const RECONNECT: Bytes = Bytes::from_static(b"retry: 1000\n\n");

/// What a reader may ask for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    subject: Option<String>,
    from: Option<String>,
    /// A browser cannot set the header on its first request.
    #[serde(alias = "lastEventId")]
    last_event_id: Option<String>,
}

/// Streams events until the client leaves or the gateway stops.
pub(super) async fn get(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Answer {
    let Query(wanted) = query.map_err(|rejection| {
        let known = "`subject`, `from` and `last_event_id` are known";
        Problem::bad_request(format!("{}; {known}", rejection.body_text()))
    })?;
    let pattern = wanted.pattern()?;
    let start = wanted.start(&headers)?;
    let slot = gateway.stream_slot(&caller)?;
    check_connected(gateway.bus())?;
    let tail = gateway.bus().tail(&pattern, start).await.map_err(|error| broker_problem(&error))?;
    let mut heartbeat = tokio::time::interval_at(Instant::now() + HEARTBEAT_EVERY, HEARTBEAT_EVERY);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let reading = Reading { tail, heartbeat, stop: gateway.shutdown().clone(), greeted: false, _slot: slot };
    Ok(sse::response(reading.frames()))
}

impl Wanted {
    fn pattern(&self) -> Answer<Pattern> {
        let text = self.subject.as_deref().unwrap_or("events.>");
        let wrong = |why: String| Problem::bad_request(format!("the parameter `subject` is wrong: {why}"));
        let pattern = Pattern::parse(text).map_err(|error| wrong(error.to_string()))?;
        match text.split('.').next() {
            Some("events" | ">") => Ok(pattern),
            _ => Err(wrong(format!(
                "the log holds `events.>` only; for events of type `{text}` ask for `events.{text}`"
            ))),
        }
    }

    /// Where to start: after the last event that the client saw, else where it asks, else now.
    fn start(&self, headers: &HeaderMap) -> Answer<Start> {
        let header = headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?"));
        if let Some(last) = header.or(self.last_event_id.as_deref()).filter(|last| !last.is_empty()) {
            let after = last.parse::<u64>().ok().and_then(|last| last.checked_add(1));
            let wrong =
                || Problem::bad_request("`Last-Event-ID` is wrong: it must be the `id` of an event of this stream");
            return after.map(Start::Sequence).ok_or_else(wrong);
        }
        match self.from.as_deref() {
            None | Some("new") => Ok(Start::New),
            Some("first") => Ok(Start::First),
            Some(text) => {
                // In a query `+` is a space, and the one space there is stood for the sign of the zone.
                let time = || OffsetDateTime::parse(&text.replace(' ', "+"), &Rfc3339).ok().map(Start::Time);
                let wrong =
                    "the parameter `from` is wrong: it may be `new`, `first`, a sequence number or an RFC 3339 time";
                let sequence = text.parse().ok().map(Start::Sequence);
                sequence.or_else(time).ok_or_else(|| Problem::bad_request(wrong))
            }
        }
    }
}

/// One client's stream.
struct Reading {
    tail: Tail,
    heartbeat: Interval,
    stop: CancellationToken,
    greeted: bool,
    _slot: StreamSlot,
}

impl Reading {
    fn frames(self) -> impl Stream<Item = Bytes> + Send + 'static {
        futures::stream::unfold(self, |mut reading| async move {
            let frame = reading.frame().await?;
            Some((frame, reading))
        })
    }

    async fn frame(&mut self) -> Option<Bytes> {
        if !self.greeted {
            self.greeted = true;
            return Some(RECONNECT);
        }
        if let Some((from, to)) = self.tail.take_gap() {
            let data = format!(r#"{{"from":{from},"to":{to}}}"#);
            return Some(Frame { name: Some("gap"), data: &data, id: None }.to_bytes());
        }
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            tailed = self.tail.next() => Some(event_frame(&tailed)),
            _ = self.heartbeat.tick() => Some(HEARTBEAT),
        }
    }
}

fn event_frame(tailed: &Tailed) -> Bytes {
    let data = serde_json::to_string(&tailed.event).unwrap_or_default();
    Frame { id: Some(tailed.sequence), name: None, data: &data }.to_bytes()
}

/// One of the streams that may be open at once; counted while it lives.
pub(crate) struct StreamSlot(
    #[expect(dead_code, reason = "held for what dropping it gives back")] OwnedSemaphorePermit,
    #[expect(dead_code, reason = "held for what dropping it gives back")] Option<Slot>,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn start(wanted: Wanted, header: Option<&str>) -> Result<Start, u16> {
        let headers = header.map(|value| (http::HeaderName::from_static("last-event-id"), value.parse().unwrap()));
        wanted.start(&headers.into_iter().collect()).map_err(|problem| problem.status().as_u16())
    }

    fn from(text: &str) -> Wanted {
        Wanted { from: Some(text.into()), ..Wanted::default() }
    }

    #[test]
    fn a_reader_starts_where_it_says() {
        assert_eq!(start(Wanted::default(), None), Ok(Start::New));
        assert_eq!(start(from("new"), None), Ok(Start::New));
        assert_eq!(start(from("first"), None), Ok(Start::First));
        assert_eq!(start(from("12"), None), Ok(Start::Sequence(12)));
        let moment = time::macros::datetime!(2026-01-02 03:04:05 +01:00);
        assert_eq!(start(from("2026-01-02T03:04:05+01:00"), None), Ok(Start::Time(moment)));
        assert_eq!(start(from("2026-01-02T03:04:05 01:00"), None), Ok(Start::Time(moment)));
        for wrong in ["", "-1", "yesterday", "2026-01-02"] {
            assert_eq!(start(from(wrong), None), Err(400), "{wrong}");
        }
    }

    #[test]
    fn what_the_client_saw_last_goes_before_where_it_began() {
        assert_eq!(start(from("first"), Some("41")), Ok(Start::Sequence(42)));
        let by_query = Wanted { last_event_id: Some("7".into()), ..from("first") };
        assert_eq!(start(by_query.clone(), None), Ok(Start::Sequence(8)));
        assert_eq!(start(by_query, Some("41")), Ok(Start::Sequence(42)));
        assert_eq!(start(from("first"), Some("")), Ok(Start::First));
        for wrong in ["x", "-1", "18446744073709551615"] {
            assert_eq!(start(Wanted::default(), Some(wrong)), Err(400), "{wrong}");
        }
    }

    #[test]
    fn only_the_log_can_be_read() {
        let pattern = |subject: &str| Wanted { subject: Some(subject.into()), ..Wanted::default() }.pattern();
        assert_eq!(Wanted::default().pattern().unwrap().as_str(), "events.>");
        assert!(pattern("events.github.*").is_ok());
        for wrong in ["github.push", "$JS.>", "events.>.x", "", "dead.>", "*.x"] {
            assert_eq!(pattern(wrong).unwrap_err().status(), 400, "{wrong}");
        }
        assert!(pattern("github.push").unwrap_err().detail().contains("events.github.push"));
    }
}

//! `GET /v1/events`: the event log as server-sent events, from any position, resumable.

use crate::{
    Gateway,
    api::{
        auth::Caller,
        sse::{self, Frame, HEARTBEAT},
    },
    http::problem::{HttpResult, Problem},
    publish::{broker_problem, check_connected},
};
use axum::extract::{Extension, Query, State, rejection::QueryRejection};
use bytes::Bytes;
use futures::Stream;
use http::HeaderMap;
use nerve_broker::bus::{Start, Tail, TailedEvent};
use nerve_core::{Pattern, shares::Slot};
use serde::Deserialize;
use std::time::Duration;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

/// Heartbeat interval of idle streams.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
/// The first frame: clients reconnect after 1 s.
pub(crate) const RETRY_FRAME: Bytes = Bytes::from_static(b"retry: 1000\n\n");

/// The query of a tail.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TailQuery {
    subject: Option<String>,
    from: Option<String>,
    /// A browser cannot set the header on its first request.
    #[serde(alias = "lastEventId")]
    last_event_id: Option<String>,
}

/// Streams events until the client disconnects or the gateway shuts down.
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    query: Result<Query<TailQuery>, QueryRejection>,
) -> HttpResult {
    let Query(query) = query.map_err(|rejection| {
        let known = "the known ones are `subject`, `from` and `last_event_id`";
        Problem::bad_request(format!("{}; {known}", rejection.body_text()))
    })?;
    let pattern = query.pattern()?;
    let start = query.start(&headers)?;
    let slot = gateway.stream_slot(&caller)?;
    check_connected(gateway.bus())?;
    let tail = gateway.bus().tail(&pattern, start).await.map_err(|error| broker_problem(&error))?;
    let mut heartbeat = tokio::time::interval_at(Instant::now() + HEARTBEAT_INTERVAL, HEARTBEAT_INTERVAL);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stream = EventStream { tail, heartbeat, stop: gateway.shutdown().clone(), has_greeted: false, _slot: slot };
    Ok(sse::response(stream.frames()))
}

impl TailQuery {
    fn pattern(&self) -> HttpResult<Pattern> {
        let text = self.subject.as_deref().unwrap_or("events.>");
        let wrong = |why: String| Problem::bad_request(format!("invalid parameter `subject`: {why}"));
        let pattern = Pattern::parse(text).map_err(|error| wrong(error.to_string()))?;
        match text.split('.').next() {
            Some("events" | ">") => Ok(pattern),
            _ => Err(wrong(format!(
                "the event log has subjects `events.>` only; for events of type `{text}` use `events.{text}`"
            ))),
        }
    }

    /// The start position: after the last received event, else `from`, else now.
    fn start(&self, headers: &HeaderMap) -> HttpResult<Start> {
        let header = headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?"));
        if let Some(last) = header.or(self.last_event_id.as_deref()).filter(|last| !last.is_empty()) {
            let after = last.parse::<u64>().ok().and_then(|last| last.checked_add(1));
            let wrong =
                || Problem::bad_request("invalid `Last-Event-ID`: it must be the `id` of an event of this stream");
            return after.map(Start::Sequence).ok_or_else(wrong);
        }
        match self.from.as_deref() {
            None | Some("new") => Ok(Start::New),
            Some("first") => Ok(Start::First),
            Some(text) => {
                // In a query `+` means a space; the only space was the sign of the time zone.
                let time = || OffsetDateTime::parse(&text.replace(' ', "+"), &Rfc3339).ok().map(Start::Time);
                let wrong =
                    "invalid parameter `from`: it must be `new`, `first`, a sequence number or an RFC 3339 time";
                let sequence = text.parse().ok().map(Start::Sequence);
                sequence.or_else(time).ok_or_else(|| Problem::bad_request(wrong))
            }
        }
    }
}

/// The stream of a client.
struct EventStream {
    tail: Tail,
    heartbeat: Interval,
    stop: CancellationToken,
    has_greeted: bool,
    _slot: StreamSlot,
}

impl EventStream {
    fn frames(self) -> impl Stream<Item = Bytes> + Send + 'static {
        futures::stream::unfold(self, |mut stream| async move {
            let frame = stream.frame().await?;
            Some((frame, stream))
        })
    }

    async fn frame(&mut self) -> Option<Bytes> {
        if !self.has_greeted {
            self.has_greeted = true;
            return Some(RETRY_FRAME);
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

fn event_frame(tailed: &TailedEvent) -> Bytes {
    let data = serde_json::to_string(&tailed.event).unwrap_or_default();
    Frame { id: Some(tailed.sequence), name: None, data: &data }.to_bytes()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn start(query: TailQuery, header: Option<&str>) -> Result<Start, u16> {
        let headers = header.map(|value| (http::HeaderName::from_static("last-event-id"), value.parse().unwrap()));
        query.start(&headers.into_iter().collect()).map_err(|problem| problem.status().as_u16())
    }

    fn from(text: &str) -> TailQuery {
        TailQuery { from: Some(text.into()), ..TailQuery::default() }
    }

    #[test]
    fn stream_starts_at_the_given_position() {
        assert_eq!(start(TailQuery::default(), None), Ok(Start::New));
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
    fn last_event_id_precedes_from() {
        assert_eq!(start(from("first"), Some("41")), Ok(Start::Sequence(42)));
        let by_query = TailQuery { last_event_id: Some("7".into()), ..from("first") };
        assert_eq!(start(by_query.clone(), None), Ok(Start::Sequence(8)));
        assert_eq!(start(by_query, Some("41")), Ok(Start::Sequence(42)));
        assert_eq!(start(from("first"), Some("")), Ok(Start::First));
        for wrong in ["x", "-1", "18446744073709551615"] {
            assert_eq!(start(TailQuery::default(), Some(wrong)), Err(400), "{wrong}");
        }
    }

    #[test]
    fn only_subjects_of_the_event_log_are_accepted() {
        let pattern = |subject: &str| TailQuery { subject: Some(subject.into()), ..TailQuery::default() }.pattern();
        assert_eq!(TailQuery::default().pattern().unwrap().as_str(), "events.>");
        assert!(pattern("events.github.*").is_ok());
        for wrong in ["github.push", "$JS.>", "events.>.x", "", "dead.>", "*.x"] {
            assert_eq!(pattern(wrong).unwrap_err().status(), 400, "{wrong}");
        }
        assert!(pattern("github.push").unwrap_err().detail().contains("events.github.push"));
    }
}

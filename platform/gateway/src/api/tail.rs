//! `GET /v1/events`: the event log as server-sent events, from any position, resumable.

use crate::{
    Gateway,
    api::{
        auth::Caller,
        openapi::{BROKER, Docs},
        sse::{self, Frame, Frames, HEARTBEAT, OpenStream, Waited},
    },
    http::problem::{HttpResult, Problem},
    publish::{broker_problem, check_connected},
};
use axum::extract::{Extension, Query, State, rejection::QueryRejection};
use bytes::Bytes;
use http::HeaderMap;
use nerve_broker::bus::{Start, Tail, TailedEvent};
use nerve_core::Pattern;
use serde::Deserialize;
use std::time::Duration;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::Instant;
use utoipa::IntoParams;

/// Maximum of `timeout_ms`: longer than any stream lasts.
const MAX_TIMEOUT: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// The query of a tail.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct TailQuery {
    /// A pattern of subjects, such as `events.github.>`; by default all.
    subject: Option<String>,
    /// `new`, `first`, a sequence number or an RFC 3339 time; by default `new`.
    from: Option<String>,
    /// The time after which the stream ends, in milliseconds; by default it does not.
    timeout_ms: Option<u64>,
    /// The same as the header: a browser cannot set that on its first request.
    #[serde(alias = "lastEventId")]
    last_event_id: Option<String>,
}

/// Streams events until the client disconnects, its timeout has passed or the gateway shuts down.
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    query: Result<Query<TailQuery>, QueryRejection>,
) -> HttpResult {
    let known = "`subject`, `from`, `last_event_id` and `timeout_ms`";
    let Query(query) = query.map_err(|rejection| Problem::invalid_query(&rejection, known))?;
    let pattern = query.pattern()?;
    let start = query.start(&headers)?;
    let slot = gateway.stream_slot(&caller)?;
    check_connected(gateway.bus())?;
    let tail = gateway.bus().tail(&pattern, start).await.map_err(|error| broker_problem(&error))?;
    let end = query.timeout_ms.map(|timeout| Instant::now() + Duration::from_millis(timeout).min(MAX_TIMEOUT));
    Ok(sse::resumable(EventStream { tail, end, open: OpenStream::new(&gateway, slot) }))
}

impl TailQuery {
    fn pattern(&self) -> HttpResult<Pattern> {
        let text = self.subject.as_deref().unwrap_or("events.>");
        let wrong = |why: String| Problem::invalid_request(format!("invalid parameter `subject`: {why}"));
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
                || Problem::invalid_request("invalid `Last-Event-ID`: it must be the `id` of an event of this stream");
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
                sequence.or_else(time).ok_or_else(|| Problem::invalid_request(wrong))
            }
        }
    }
}

/// The stream of a client.
struct EventStream {
    tail: Tail,
    /// When it ends, if the client says so.
    end: Option<Instant>,
    open: OpenStream,
}

impl Frames for EventStream {
    async fn next_frame(&mut self) -> Option<Bytes> {
        if let Some((from, to)) = self.tail.take_gap() {
            return Some(sse::gap(from, to));
        }
        let item = self.open.wait(self.tail.next());
        let waited = match self.end {
            None => item.await,
            Some(end) => tokio::time::timeout_at(end, item).await.ok().flatten(),
        };
        Some(match waited? {
            Waited::Item(tailed) => event_frame(&tailed),
            Waited::Idle => HEARTBEAT,
        })
    }
}

fn event_frame(tailed: &TailedEvent) -> Bytes {
    let data = serde_json::to_string(&tailed.event).unwrap_or_default();
    Frame { id: Some(tailed.sequence), name: None, data: &data }.to_bytes()
}

/// The documentation of [`get`].
pub(crate) fn docs(docs: Docs) -> Docs {
    docs.query::<TailQuery>()
        .resumable("The id of the last event that the client has")
        .stream(200, "The events as they are stored")
        .problems(BROKER)
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

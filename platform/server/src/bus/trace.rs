//! Everything that one event led to, as a tree: what the log, the dead letters and the answer's parts say of it.

use super::{ANSWERS, Bus, BusError, DEAD, EVENTS, Start, delivery::event_of};
use async_nats::header;
use nerve_core::{
    Event, Identity,
    answer::{self, Part},
    event::{CAUSATION_ID, CORRELATION_ID, decode_value},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use time::OffsetDateTime;
use uuid::Uuid;

/// The most events of one trace.
const MOST: usize = 10_000;
/// How much earlier than its id says an event may have been stored: clocks differ.
const SKEW: Duration = Duration::from_secs(60);

/// One event of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Traced {
    /// Its id.
    pub id: String,
    /// Its type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its source; `/functions/NAME` for what a function published.
    pub source: String,
    /// The event that caused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// When it was stored.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// Milliseconds since the first event.
    pub offset_ms: i64,
    /// Its sequence in EVENTS.
    pub sequence: u64,
    /// Parts of an answer that were streamed for it.
    #[serde(skip_serializing_if = "is_none")]
    pub parts: usize,
    /// Functions that gave it up, by the number of their dead letter.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub dead: BTreeMap<u64, String>,
    /// What it led to, the oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub led_to: Vec<Traced>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_none(count: &usize) -> bool {
    *count == 0
}

/// A message as far as its headers tell.
struct Seen {
    event: Event,
    sequence: u64,
    time: OffsetDateTime,
    subject: String,
}

impl Bus {
    /// The workflow that this id names: its own, as `correlationid`, or that of an event. `since` says from where the
    /// log is looked through; where none is said, from the moment that the id itself tells (UUID version 7), else from
    /// the beginning.
    pub async fn trace(&self, id: &str, since: Option<Start>) -> Result<Vec<Traced>, BusError> {
        let start = since.or_else(|| told_by(id)).unwrap_or(Start::First);
        let belongs = |event: &Event, id: &str| event.id == id || event.extension(CORRELATION_ID) == Some(id);
        let mut found = self.headers(EVENTS, vec!["events.>".to_owned()], start, |event| belongs(event, id)).await?;
        // An event of the middle names its workflow, whose beginning is earlier.
        let workflow = found.iter().find(|seen| seen.event.id == id).map(|seen| answer::id_of(&seen.event).to_owned());
        let workflow = workflow.unwrap_or_else(|| id.to_owned());
        if workflow != id {
            let start = told_by(&workflow).unwrap_or(Start::First);
            found = self.headers(EVENTS, vec!["events.>".to_owned()], start, |event| belongs(event, &workflow)).await?;
        }
        let first = found.first().map(|seen| Start::Time(seen.time)).unwrap_or(start);
        let dead = self.headers(DEAD, vec!["dead.*".to_owned()], first, |event| belongs(event, &workflow)).await?;
        let subject = super::answers::subject_of(&workflow).map_err(|error| BusError::refused("tracing", error))?;
        let parts = self.headers(ANSWERS, vec![subject.to_string()], Start::First, is_streamed).await?;
        Ok(tree(found, &dead, &parts))
    }

    /// Which of these events the log has, if they were stored at `since` or later.
    pub(crate) async fn stored_since(
        &self,
        events: &[(Identity, &Event)],
        since: OffsetDateTime,
    ) -> Result<Vec<bool>, BusError> {
        // An older Nerve published an event under its source and id.
        let ids = |(id, event): &(Identity, &Event)| [id.to_string(), format!("{}#{}", event.source, event.id)];
        let wanted: BTreeSet<String> = events.iter().flat_map(ids).collect();
        let subjects: BTreeSet<String> = events.iter().map(|(_, event)| event.ty.subject().to_string()).collect();
        let mut found = BTreeSet::new();
        let look = |message: async_nats::Message, _, _| {
            let id = message.headers.as_ref().and_then(|headers| headers.get(header::NATS_MESSAGE_ID));
            found.extend(id.map(|id| decode_value(id.as_str())).filter(|id| wanted.contains(id)));
            true
        };
        self.each_head(EVENTS, subjects.into_iter().collect(), Start::Time(since - SKEW), look).await?;
        Ok(events.iter().map(|event| ids(event).iter().any(|id| found.contains(id))).collect())
    }

    /// The messages from `start` on that `keep` keeps, without their bodies.
    async fn headers(
        &self,
        stream: &str,
        filters: Vec<String>,
        start: Start,
        keep: impl Fn(&Event) -> bool,
    ) -> Result<Vec<Seen>, BusError> {
        let mut found = Vec::new();
        let look = |message: async_nats::Message, sequence, time| {
            let event = event_of(&message, stream, sequence);
            if keep(&event) {
                found.push(Seen { event, sequence, time, subject: message.subject.to_string() });
            }
            found.len() < MOST
        };
        self.each_head(stream, filters, start, look).await?;
        Ok(found)
    }
}

fn is_streamed(event: &Event) -> bool {
    matches!(Part::of(&event.ty), Some(Part::Token | Part::Citation))
}

/// The moment that an id tells, and a little before it.
fn told_by(id: &str) -> Option<Start> {
    let (seconds, _) = Uuid::parse_str(id).ok()?.get_timestamp()?.to_unix();
    let moment = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()?;
    (moment <= OffsetDateTime::now_utc() + SKEW).then_some(Start::Time(moment - SKEW))
}

/// Puts each event below the one that caused it.
fn tree(found: Vec<Seen>, dead: &[Seen], parts: &[Seen]) -> Vec<Traced> {
    let Some(begin) = found.first().map(|seen| seen.time) else { return Vec::new() };
    let known: BTreeSet<String> = found.iter().map(|seen| seen.event.id.clone()).collect();
    let mut below: BTreeMap<Option<String>, Vec<Seen>> = BTreeMap::new();
    for seen in found {
        let cause = seen.event.extension(CAUSATION_ID).filter(|cause| known.contains(*cause));
        let cause = cause.filter(|cause| *cause != seen.event.id).map(str::to_owned);
        below.entry(cause).or_default().push(seen);
    }
    let of = |id: &str| parts.iter().filter(|part| part.event.extension(CAUSATION_ID) == Some(id)).count();
    let dead_of = |id: &str| {
        let letters = dead.iter().filter(|letter| letter.event.id == id);
        letters.map(|one| (one.sequence, one.subject.trim_start_matches("dead.").to_owned())).collect()
    };
    let roots = below.remove(&None).unwrap_or_default();
    let traced = |seen: Seen| Traced {
        parts: of(&seen.event.id),
        dead: dead_of(&seen.event.id),
        offset_ms: i64::try_from((seen.time - begin).whole_milliseconds()).unwrap_or_default(),
        cause: seen.event.extension(CAUSATION_ID).map(str::to_owned),
        ty: seen.event.ty.to_string(),
        source: seen.event.source,
        id: seen.event.id,
        time: seen.time,
        sequence: seen.sequence,
        led_to: Vec::new(),
    };
    grow(roots, &mut below, &traced)
}

/// Each event is taken once, so that whatever causes are told, this ends.
fn grow(
    seen: Vec<Seen>,
    below: &mut BTreeMap<Option<String>, Vec<Seen>>,
    traced: &impl Fn(Seen) -> Traced,
) -> Vec<Traced> {
    let mut grown = Vec::with_capacity(seen.len());
    for one in seen {
        let mut node = traced(one);
        let next = below.remove(&Some(node.id.clone())).unwrap_or_default();
        node.led_to = grow(next, below, traced);
        grown.push(node);
    }
    grown
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::EventType;

    fn seen(id: &str, cause: Option<&str>, sequence: u64) -> Seen {
        let mut event = Event::new(id, "/s", EventType::parse("a.b").unwrap());
        if let Some(cause) = cause {
            event = event.with_extension(CAUSATION_ID, cause);
        }
        let time = OffsetDateTime::UNIX_EPOCH + Duration::from_millis(10 * sequence);
        Seen { event, sequence, time, subject: "dead.f".into() }
    }

    #[test]
    fn each_event_stands_below_its_cause_once() {
        let found = vec![
            seen("1", None, 1),
            seen("2", Some("1"), 2),
            seen("3", Some("2"), 3),
            seen("4", Some("1"), 4),
            seen("5", Some("gone"), 5),
            seen("6", Some("6"), 6),
        ];
        let made = tree(found, &[seen("3", None, 9)], &[seen("x", Some("2"), 1), seen("y", Some("2"), 2)]);
        let ids = |nodes: &[Traced]| nodes.iter().map(|node| node.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&made), ["1", "5", "6"]);
        assert_eq!(ids(&made[0].led_to), ["2", "4"]);
        let second = &made[0].led_to[0];
        assert_eq!((second.parts, second.offset_ms, ids(&second.led_to)), (2, 10, vec!["3".to_owned()]));
        assert_eq!(second.led_to[0].dead, BTreeMap::from([(9, "f".to_owned())]));
        assert!(tree(Vec::new(), &[], &[]).is_empty());
    }

    #[test]
    fn a_version_7_uuid_tells_when_to_begin() {
        let now = Uuid::now_v7().to_string();
        assert!(matches!(told_by(&now), Some(Start::Time(moment)) if moment < OffsetDateTime::now_utc()));
        assert_eq!((told_by("x"), told_by("6a1c1f4e-0000-4000-8000-000000000000")), (None, None));
    }
}

//! The effects of one event as a tree, from the log, the dead letters and the parts of the answer.
//!
//! Senders can set causes, so the tree is built without recursion, and its depth, events and bytes are limited.

use super::error::ResultExt as _;
use super::{ANSWERS, Bus, BusError, DEAD, EVENTS, Start, delivery::event_of};
use async_nats::header;
use nerve_core::{
    Event, Identity,
    answer::{self, Part},
    event::{CAUSATION_ID, CORRELATION_ID, decode_value},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};
use time::OffsetDateTime;
use uuid::Uuid;

/// Maximum events of a trace, and maximum dead letters and parts of an answer counted for it.
const MAX_EVENTS: usize = 10_000;
/// Maximum size of the headers kept of each of these.
const MAX_HEADER_BYTES: usize = 16 << 20;
/// Maximum levels of a tree. JSON parsers reject about 128 nested values, and a level has two: an object and a list.
const MAX_DEPTH: usize = 48;
/// Maximum time by which an event may be older than its id: clocks differ.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(60);

/// The effects of one event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// The events without a cause in the trace, oldest first.
    pub events: Vec<TracedEvent>,
    /// Whether the trace exceeds its limits; then the newest events are missing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// One event of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TracedEvent {
    /// Its id.
    pub id: String,
    /// Its type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its source; `/functions/NAME` for output events of a function.
    pub source: String,
    /// The id of the event that caused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The time of storage.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// Milliseconds since the first event.
    pub offset_ms: i64,
    /// Its sequence in EVENTS.
    pub sequence: u64,
    /// Number of streamed answer parts.
    #[serde(skip_serializing_if = "is_zero")]
    pub parts: usize,
    /// Functions that dead-lettered it, by the id of the dead letter.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub dead: BTreeMap<u64, String>,
    /// Its effects, oldest first. On the deepest level all further effects, in the order given by `cause`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub led_to: Vec<TracedEvent>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// The headers of a message.
struct TraceMessage {
    event: Event,
    sequence: u64,
    time: OffsetDateTime,
    subject: String,
}

/// The messages of a search.
#[derive(Default)]
struct FoundMessages {
    messages: Vec<TraceMessage>,
    bytes: usize,
}

impl FoundMessages {
    /// Returns whether another message is within the limits.
    fn has_room(&self) -> bool {
        self.messages.len() < MAX_EVENTS && self.bytes < MAX_HEADER_BYTES
    }
}

impl Bus {
    /// Traces the workflow with this id, or that of the event with this id. `since` is the start of the
    /// search in the log; by default the time in the id (UUID version 7), or else
    /// the beginning.
    pub async fn trace(&self, id: &str, since: Option<Start>) -> Result<Trace, BusError> {
        let start = since.or_else(|| start_from_id(id)).unwrap_or(Start::First);
        let belongs = |event: &Event, id: &str| event.id == id || event.extension(CORRELATION_ID) == Some(id);
        let mut found = self.headers(EVENTS, vec!["events.>".to_owned()], start, |event| belongs(event, id)).await?;
        // An event in the middle names its workflow, which begins earlier.
        let workflow =
            found.messages.iter().find(|seen| seen.event.id == id).map(|seen| answer::id_of(&seen.event).to_owned());
        let workflow = workflow.unwrap_or_else(|| id.to_owned());
        if workflow != id {
            let start = start_from_id(&workflow).unwrap_or(Start::First);
            found = self.headers(EVENTS, vec!["events.>".to_owned()], start, |event| belongs(event, &workflow)).await?;
        }
        let first = found.messages.first().map(|seen| Start::Time(seen.time)).unwrap_or(start);
        let dead = self.headers(DEAD, vec!["dead.*".to_owned()], first, |event| belongs(event, &workflow)).await?;
        let subject = super::answers::subject_of(&workflow).refused("tracing")?;
        let parts = self.headers(ANSWERS, vec![subject.to_string()], Start::First, is_streamed).await?;
        let truncated = !found.has_room();
        Ok(Trace { events: tree(found.messages, &dead.messages, &parts.messages), truncated })
    }

    /// Returns the events that are in the log, stored at `since` or later.
    pub async fn stored_since(
        &self,
        events: &[(Identity, &Event)],
        since: OffsetDateTime,
    ) -> Result<Vec<bool>, BusError> {
        // An earlier version of Nerve published an event under its source and id.
        let ids = |(id, event): &(Identity, &Event)| [id.to_string(), format!("{}#{}", event.source, event.id)];
        let wanted: BTreeSet<String> = events.iter().flat_map(ids).collect();
        let subjects: BTreeSet<String> = events.iter().map(|(_, event)| event.ty.subject().to_string()).collect();
        let mut found = BTreeSet::new();
        let look = |message: async_nats::Message, _, _| {
            let id = message.headers.as_ref().and_then(|headers| headers.get(header::NATS_MESSAGE_ID));
            found.extend(id.map(|id| decode_value(id.as_str())).filter(|id| wanted.contains(id)));
            true
        };
        self.for_each_header(EVENTS, subjects.into_iter().collect(), Start::Time(since - MAX_CLOCK_SKEW), look).await?;
        Ok(events.iter().map(|event| ids(event).iter().any(|id| found.contains(id))).collect())
    }

    /// Reads the headers of the messages from `start` on that `keep` accepts.
    async fn headers(
        &self,
        stream: &str,
        filters: Vec<String>,
        start: Start,
        keep: impl Fn(&Event) -> bool,
    ) -> Result<FoundMessages, BusError> {
        let mut found = FoundMessages::default();
        let look = |message: async_nats::Message, sequence, time| {
            let event = event_of(&message, stream, sequence);
            if keep(&event) {
                found.bytes += message.length;
                found.messages.push(TraceMessage { event, sequence, time, subject: message.subject.to_string() });
            }
            found.has_room()
        };
        self.for_each_header(stream, filters, start, look).await?;
        Ok(found)
    }
}

fn is_streamed(event: &Event) -> bool {
    matches!(Part::of(&event.ty), Some(Part::Token | Part::Citation))
}

/// The time in an id, minus the clock skew.
fn start_from_id(id: &str) -> Option<Start> {
    let (seconds, _) = Uuid::parse_str(id).ok()?.get_timestamp()?.to_unix();
    let moment = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()?;
    (moment <= OffsetDateTime::now_utc() + MAX_CLOCK_SKEW).then_some(Start::Time(moment - MAX_CLOCK_SKEW))
}

/// Places each event once below its cause, even for circular causes, and never below
/// [`MAX_DEPTH`]: the deepest level also contains all further effects.
fn tree(found: Vec<TraceMessage>, dead: &[TraceMessage], parts: &[TraceMessage]) -> Vec<TracedEvent> {
    let Some(begin) = found.first().map(|seen| seen.time) else { return Vec::new() };
    let mut counted: HashMap<&str, usize> = HashMap::new();
    for cause in parts.iter().filter_map(|part| part.event.extension(CAUSATION_ID)) {
        *counted.entry(cause).or_default() += 1;
    }
    let mut letters: HashMap<&str, BTreeMap<u64, String>> = HashMap::new();
    for letter in dead {
        let function = letter.subject.trim_start_matches("dead.").to_owned();
        letters.entry(&letter.event.id).or_default().insert(letter.sequence, function);
    }
    let levels = Levels::of(&found);
    let traced = |seen: TraceMessage| TracedEvent {
        parts: counted.get(seen.event.id.as_str()).copied().unwrap_or_default(),
        dead: letters.remove(seen.event.id.as_str()).unwrap_or_default(),
        offset_ms: i64::try_from((seen.time - begin).whole_milliseconds()).unwrap_or_default(),
        cause: seen.event.extension(CAUSATION_ID).map(str::to_owned),
        ty: seen.event.ty.to_string(),
        source: seen.event.source,
        id: seen.event.id,
        time: seen.time,
        sequence: seen.sequence,
        led_to: Vec::new(),
    };
    levels.assemble(found.into_iter().map(traced).collect())
}

/// The parent of each event by index, in an order in which children follow their parents.
struct Levels {
    order: Vec<usize>,
    above: Vec<Option<usize>>,
}

impl Levels {
    fn of(found: &[TraceMessage]) -> Self {
        // Of several events with one id the first one has the effects.
        let mut known: HashMap<&str, usize> = HashMap::new();
        for (index, seen) in found.iter().enumerate() {
            known.entry(&seen.event.id).or_insert(index);
        }
        let mut below: Vec<Vec<usize>> = vec![Vec::new(); found.len()];
        let mut roots = Vec::new();
        for (index, seen) in found.iter().enumerate() {
            let cause = seen.event.extension(CAUSATION_ID).filter(|cause| *cause != seen.event.id);
            match cause.and_then(|cause| below.get_mut(*known.get(cause)?)) {
                Some(caused) => caused.push(index),
                None => roots.push(index),
            }
        }
        let mut levels = Self { order: Vec::with_capacity(found.len()), above: vec![None; found.len()] };
        // Depth first, with the deepest levels flattened. Circular causes are never reached.
        let mut next: Vec<(usize, usize, Option<usize>)> =
            roots.into_iter().rev().map(|root| (root, 1, None)).collect();
        while let Some((index, depth, above)) = next.pop() {
            levels.order.push(index);
            if let Some(place) = levels.above.get_mut(index) {
                *place = above;
            }
            let (deeper, parent) = if depth < MAX_DEPTH { (depth + 1, Some(index)) } else { (depth, above) };
            let caused = below.get_mut(index).map(std::mem::take).unwrap_or_default();
            next.extend(caused.into_iter().rev().map(|one| (one, deeper, parent)));
        }
        levels
    }

    /// Builds the tree of these events from its leaves.
    fn assemble(self, events: Vec<TracedEvent>) -> Vec<TracedEvent> {
        let mut events: Vec<Option<TracedEvent>> = events.into_iter().map(Some).collect();
        let mut roots = Vec::new();
        for index in self.order.into_iter().rev() {
            let Some(mut event) = events.get_mut(index).and_then(Option::take) else { continue };
            event.led_to.reverse();
            let above = self.above.get(index).copied().flatten();
            match above.and_then(|above| events.get_mut(above)).and_then(Option::as_mut) {
                Some(above) => above.led_to.push(event),
                None => roots.push(event),
            }
        }
        roots.reverse();
        roots
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::EventType;

    fn seen(id: &str, cause: Option<&str>, sequence: u64) -> TraceMessage {
        let mut event = Event::new(id, "/s", EventType::parse("a.b").unwrap());
        if let Some(cause) = cause {
            event = event.with_extension(CAUSATION_ID, cause);
        }
        let time = OffsetDateTime::UNIX_EPOCH + Duration::from_millis(10 * sequence);
        TraceMessage { event, sequence, time, subject: "dead.f".into() }
    }

    #[test]
    fn event_is_placed_once_below_its_cause() {
        let found = vec![
            seen("1", None, 1),
            seen("2", Some("1"), 2),
            seen("3", Some("2"), 3),
            seen("4", Some("1"), 4),
            seen("5", Some("gone"), 5),
            seen("6", Some("6"), 6),
        ];
        let made = tree(found, &[seen("3", None, 9)], &[seen("x", Some("2"), 1), seen("y", Some("2"), 2)]);
        let ids = |nodes: &[TracedEvent]| nodes.iter().map(|node| node.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&made), ["1", "5", "6"]);
        assert_eq!(ids(&made[0].led_to), ["2", "4"]);
        let second = &made[0].led_to[0];
        assert_eq!((second.parts, second.offset_ms, ids(&second.led_to)), (2, 10, vec!["3".to_owned()]));
        assert_eq!(second.led_to[0].dead, BTreeMap::from([(9, "f".to_owned())]));
        assert!(tree(Vec::new(), &[], &[]).is_empty());
    }

    #[test]
    fn trace_of_a_long_chain_has_a_limited_depth_and_every_event() {
        let chain = |count: u64| {
            let caused = (1..count).map(|n| seen(&n.to_string(), Some(&(n - 1).to_string()), n));
            std::iter::once(seen("0", None, 0)).chain(caused).collect::<Vec<_>>()
        };
        let mut made = tree(chain(10_000), &[], &[]);
        let json = serde_json::to_string(&made).unwrap();
        assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "a reader of JSON can read it");
        let (mut depth, mut ids) = (0, Vec::new());
        while !made.is_empty() {
            depth += 1;
            ids.extend(made.iter().map(|event| event.id.parse::<usize>().unwrap()));
            made = made.into_iter().flat_map(|event| event.led_to).collect();
        }
        assert_eq!(depth, MAX_DEPTH);
        assert!(ids.iter().copied().eq(0..10_000), "{} events, in their order", ids.len());
    }

    #[test]
    fn circular_causes_end_a_trace() {
        let found = vec![seen("1", None, 1), seen("2", Some("3"), 2), seen("3", Some("2"), 3), seen("1", Some("1"), 4)];
        let made = tree(found, &[], &[]);
        assert_eq!(made.iter().map(|event| event.sequence).collect::<Vec<_>>(), [1, 4]);
    }

    #[test]
    fn version_7_uuid_determines_the_start() {
        let now = Uuid::now_v7().to_string();
        assert!(matches!(start_from_id(&now), Some(Start::Time(moment)) if moment < OffsetDateTime::now_utc()));
        assert_eq!((start_from_id("x"), start_from_id("6a1c1f4e-0000-4000-8000-000000000000")), (None, None));
    }
}

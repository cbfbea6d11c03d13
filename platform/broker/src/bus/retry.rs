//! Retry requests: for a dead letter, or for the last step of an answer.
//!
//! Workers share one consumer of these requests, so that each is processed once.

use super::error::ResultExt as _;
use super::{
    Bus, BusError, ConsumerSpec, EVENTS, MAX_ACK_PENDING, PublishError, StartPosition, TracedEvent,
    headers::is_broker_header,
};
use async_nats::HeaderMap;
use async_nats::jetstream::stream::DirectGetErrorKind;
use nerve_core::{Event, Identity, Subject, event::CORRELATION_ID};
use nerve_events::{
    EventData,
    control::{ControlRetried, ControlRetryRefused, ControlRetryRequested},
};
use std::{collections::HashSet, time::Duration};
use time::OffsetDateTime;

/// The consumer of retry requests. It cannot collide with a function's, which begins with `nerve-`.
pub const RETRY_CONSUMER: &str = "nerve_retries";

/// The outcome of a retry request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetryOutcome {
    /// The answer that is generated again.
    pub answer: Option<String>,
    /// Redriven dead letters.
    pub dead_letters: Vec<u64>,
    /// The republished event.
    pub event: Option<String>,
    /// The reason of a refusal.
    pub reason: Option<String>,
}

impl Bus {
    /// Creates the consumer of retry requests if it is missing; it receives new requests only.
    pub async fn ensure_retry_requests(&self, ack_wait: Duration) -> Result<(), BusError> {
        let binding = ConsumerSpec {
            stream: EVENTS,
            consumer: RETRY_CONSUMER.to_owned(),
            description: format!("Nerve's workers, for {}", ControlRetryRequested::TYPE),
            subjects: vec![ControlRetryRequested::event_type().subject().as_str().to_owned()],
            ack_wait,
            in_flight: MAX_ACK_PENDING,
            beginning: StartPosition::New,
        };
        self.bind(binding).await
    }

    /// Publishes an event of the log again, unchanged, for all its consumers; once per `id`.
    pub async fn republish(&self, sequence: u64, id: Identity) -> Result<(), BusError> {
        let what = || format!("publishing event {sequence} again");
        let stream = self.jetstream.get_stream_no_info(EVENTS).await.unavailable(what)?;
        let found = stream.direct_get(sequence).await.map_err(|error| match error.kind() {
            DirectGetErrorKind::NotFound => BusError::NotFound(format!("event {sequence} of {EVENTS}")),
            _ => BusError::unavailable(what(), error),
        })?;
        let subject = Subject::parse(found.subject.as_str()).refused(what)?;
        let mut headers = HeaderMap::new();
        for (name, values) in found.headers.iter().filter(|(name, _)| !is_broker_header(name.as_ref())) {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
        match self.publish_message(&subject, headers, found.payload, id).await {
            Ok(_) => Ok(()),
            Err(PublishError::Invalid(why)) => Err(BusError::refused(what(), why)),
            Err(PublishError::Unavailable(source)) => Err(BusError::unavailable(what(), source)),
        }
    }

    /// Publishes the outcome of a retry request.
    pub async fn publish_retry_outcome(&self, request: &Event, retried: &RetryOutcome) -> Result<(), PublishError> {
        let (id, answer) = (request.id.clone(), retried.answer.clone());
        let (ty, data) = match &retried.reason {
            Some(reason) => {
                let refused = ControlRetryRefused { request: id, answer, reason: reason.clone() };
                (ControlRetryRefused::event_type(), serde_json::to_vec(&refused))
            }
            None => {
                let (dead_letters, event) = (retried.dead_letters.clone(), retried.event.clone());
                let started = ControlRetried { request: id, answer, dead_letters, event };
                (ControlRetried::event_type(), serde_json::to_vec(&started))
            }
        };
        let data = data.map_err(|error| PublishError::Invalid(error.to_string()))?;
        let event = Event::new(format!("{}#{ty}", request.id), "/nerve/retries", ty);
        let mut event = event.with_data("application/json", data);
        event = event.with_extension(nerve_core::event::CAUSATION_ID, request.id.as_str());
        // A function may request the next attempt when it receives this event.
        event = event.with_hops(request.hops().saturating_add(1));
        let workflow = retried.answer.as_deref().or_else(|| request.extension(CORRELATION_ID));
        event = event.with_extension(CORRELATION_ID, workflow.unwrap_or(&request.id));
        event.time = Some(OffsetDateTime::now_utc());
        self.publish_own(&event).await.map(drop)
    }
}

/// The dead letters of a workflow, and its events without effects, the newest last.
pub fn unfinished_leaves(traced: &[TracedEvent]) -> (Vec<u64>, Vec<&TracedEvent>) {
    let (mut all, mut next) = (Vec::new(), traced.iter().collect::<Vec<_>>());
    while let Some(one) = next.pop() {
        all.push(one);
        next.extend(&one.led_to);
    }
    // By cause, since an event on the deepest level of a trace is next to its effects.
    let causes: HashSet<&str> = all.iter().filter_map(|one| one.cause.as_deref()).collect();
    let mut dead: Vec<u64> = all.iter().flat_map(|one| one.dead.keys().copied()).collect();
    let mut leaves: Vec<&TracedEvent> = all;
    leaves.retain(|one| one.led_to.is_empty() && !causes.contains(one.id.as_str()));
    dead.sort_unstable();
    leaves.sort_unstable_by_key(|leaf| leaf.sequence);
    (dead, leaves)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn traced(sequence: u64, dead: Option<u64>, led_to: Vec<TracedEvent>) -> TracedEvent {
        TracedEvent {
            id: sequence.to_string(),
            ty: "a".into(),
            source: "/s".into(),
            cause: None,
            time: OffsetDateTime::UNIX_EPOCH,
            offset_ms: 0,
            sequence,
            parts: 0,
            dead: dead.map(|id| (id, "f".to_owned())).into_iter().collect::<BTreeMap<_, _>>(),
            led_to,
        }
    }

    #[test]
    fn workflow_ends_at_events_without_effects() {
        let tree =
            vec![traced(1, None, vec![traced(2, Some(7), vec![]), traced(3, None, vec![traced(5, None, vec![])])])];
        let mut beside = traced(6, None, vec![]);
        beside.cause = Some("5".to_owned());
        let (dead, leaves) = unfinished_leaves(&tree);
        assert_eq!(leaves.len(), 2);
        let flat = [tree.clone(), vec![beside]].concat();
        assert_eq!(unfinished_leaves(&flat).1.iter().map(|leaf| leaf.sequence).collect::<Vec<_>>(), vec![2, 6]);
        assert_eq!((dead, leaves.iter().map(|leaf| leaf.sequence).collect::<Vec<_>>()), (vec![7], vec![2, 5]));
        assert_eq!(unfinished_leaves(&[]), (vec![], vec![]));
    }
}

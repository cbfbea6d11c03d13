//! What is asked to be tried again: a dead letter, or the last step of an answer.
//!
//! Workers share one consumer of these requests, so that each is done once.

use super::{
    Beginning, Binding, Bus, BusError, EVENTS, MAX_ACK_PENDING, PublishError, Traced, provenance::is_of_the_broker,
};
use async_nats::HeaderMap;
use async_nats::jetstream::stream::DirectGetErrorKind;
use nerve_core::{Event, EventType, Identity, Subject, event::CORRELATION_ID};
use serde::{Deserialize, Serialize};
use std::{collections::HashSet, time::Duration};
use time::OffsetDateTime;

/// The consumer of the requests; no function's can be named so, as theirs begin with `nerve-`.
pub const REQUESTS: &str = "nerve_retries";
const REQUESTED: &str = "events.control.retry_requested";
/// Types: it is tried again; it cannot be.
const RETRIED: &str = "control.retried";
const REFUSED: &str = "control.retry_refused";

/// What is to be tried again.
#[derive(Debug, Deserialize)]
pub struct RetryRequest {
    /// A dead letter, by its number.
    #[serde(default)]
    pub dead_letter: Option<u64>,
    /// An answer, by its id.
    #[serde(default)]
    pub answer: Option<String>,
}

/// What came of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Retried {
    /// The request's id.
    pub request: String,
    /// The answer that is generated again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Dead letters that were sent back to their functions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dead_letters: Vec<u64>,
    /// An event that was published again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// Why nothing is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Bus {
    /// Makes the consumer of requests where there is none; it begins with what is asked from then on.
    pub async fn ensure_retry_requests(&self, ack_wait: Duration) -> Result<(), BusError> {
        let binding = Binding {
            stream: EVENTS,
            consumer: REQUESTS.to_owned(),
            description: "Nerve's workers, for control.retry_requested".to_owned(),
            subjects: vec![REQUESTED.to_owned()],
            ack_wait,
            in_flight: MAX_ACK_PENDING,
            beginning: Beginning::New,
        };
        self.bind(binding).await
    }

    /// Publishes an event of the log again, as it is, for all that take it; under one `id` once.
    pub async fn republish(&self, sequence: u64, id: Identity) -> Result<(), BusError> {
        let what = || format!("publishing event {sequence} again");
        let stream = self.jetstream.get_stream_no_info(EVENTS).await;
        let stream = stream.map_err(|error| BusError::unavailable(what(), error))?;
        let found = stream.direct_get(sequence).await.map_err(|error| match error.kind() {
            DirectGetErrorKind::NotFound => BusError::NotFound(format!("event {sequence} of {EVENTS}")),
            _ => BusError::unavailable(what(), error),
        })?;
        let subject = Subject::parse(found.subject.as_str()).map_err(|error| BusError::refused(what(), error))?;
        let mut headers = HeaderMap::new();
        for (name, values) in found.headers.iter().filter(|(name, _)| !is_of_the_broker(name.as_ref())) {
            values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
        }
        match self.publish_message(&subject, headers, found.payload, id).await {
            Ok(_) => Ok(()),
            Err(PublishError::Invalid(why)) => Err(BusError::refused(what(), why)),
            Err(PublishError::Unavailable(source)) => Err(BusError::unavailable(what(), source)),
        }
    }

    /// Tells what came of a request.
    pub async fn tell_retried(&self, request: &Event, retried: &Retried) -> Result<(), PublishError> {
        let ty = if retried.reason.is_some() { REFUSED } else { RETRIED };
        let invalid = |error: &dyn std::fmt::Display| PublishError::Invalid(error.to_string());
        let data = serde_json::to_vec(retried).map_err(|error| invalid(&error))?;
        let ty = EventType::parse(ty).map_err(|error| invalid(&error))?;
        let event = Event::new(format!("{}#{ty}", request.id), "/nerve/retries", ty);
        let mut event = event.with_data("application/json", data);
        event = event.with_extension(nerve_core::event::CAUSATION_ID, request.id.as_str());
        // A function may ask for the next attempt as it hears of this one.
        event = event.with_hops(request.hops().saturating_add(1));
        let workflow = retried.answer.as_deref().or_else(|| request.extension(CORRELATION_ID));
        event = event.with_extension(CORRELATION_ID, workflow.unwrap_or(&request.id));
        event.time = Some(OffsetDateTime::now_utc());
        self.publish_own(&event).await.map(drop)
    }
}

/// The dead letters of a workflow, and the events that led to nothing, the newest last.
pub fn loose_ends(traced: &[Traced]) -> (Vec<u64>, Vec<&Traced>) {
    let (mut all, mut next) = (Vec::new(), traced.iter().collect::<Vec<_>>());
    while let Some(one) = next.pop() {
        all.push(one);
        next.extend(&one.led_to);
    }
    // By the causes, since an event on the deepest level of a trace stands beside what it led to.
    let causes: HashSet<&str> = all.iter().filter_map(|one| one.cause.as_deref()).collect();
    let mut dead: Vec<u64> = all.iter().flat_map(|one| one.dead.keys().copied()).collect();
    let mut leaves: Vec<&Traced> = all;
    leaves.retain(|one| one.led_to.is_empty() && !causes.contains(one.id.as_str()));
    dead.sort_unstable();
    leaves.sort_unstable_by_key(|leaf| leaf.sequence);
    (dead, leaves)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn traced(sequence: u64, dead: Option<u64>, led_to: Vec<Traced>) -> Traced {
        Traced {
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
    fn a_workflow_ends_where_nothing_came_of_an_event() {
        let tree =
            vec![traced(1, None, vec![traced(2, Some(7), vec![]), traced(3, None, vec![traced(5, None, vec![])])])];
        let mut beside = traced(6, None, vec![]);
        beside.cause = Some("5".to_owned());
        let (dead, leaves) = loose_ends(&tree);
        assert_eq!(leaves.len(), 2);
        let flat = [tree.clone(), vec![beside]].concat();
        assert_eq!(loose_ends(&flat).1.iter().map(|leaf| leaf.sequence).collect::<Vec<_>>(), vec![2, 6]);
        assert_eq!((dead, leaves.iter().map(|leaf| leaf.sequence).collect::<Vec<_>>()), (vec![7], vec![2, 5]));
        assert_eq!(loose_ends(&[]), (vec![], vec![]));
    }
}

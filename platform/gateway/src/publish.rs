//! Publishing for a caller that waits: a receipt once JetStream has the event, a problem otherwise.

use super::{
    problem::{Answer, Problem},
    repeats,
};
use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};
use nerve_broker::bus::{Bus, BusError, PublishError, Published};
use nerve_core::{Event, Identity};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// When to come back while the broker is away: it is usually a restart.
const BROKER_BACK: Duration = Duration::from_secs(5);
/// When to come back while EVENTS is full.
const FULL_RETRY: Duration = Duration::from_secs(5);

/// What the caller gets for an event that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    id: String,
    #[serde(rename = "type")]
    ty: String,
    /// Left out for an event that was stored at some time before, or together with others: JetStream does not tell then.
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    duplicate: bool,
    /// Whether it waits on disk for the broker to come back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    spooled: bool,
}

impl Receipt {
    /// For an event that is known to be stored.
    pub(crate) fn known(event: &Event) -> Self {
        Self { id: event.id.clone(), ty: event.ty.as_str().to_owned(), sequence: None, duplicate: true, spooled: false }
    }

    /// For an event that is stored now, and where, if that is known.
    pub(crate) fn stored(event: &Event, place: Option<Published>) -> Self {
        let sequence = place.map(|place| place.sequence);
        Self { sequence, duplicate: place.is_some_and(|place| place.duplicate), ..Self::known(event) }
    }

    /// The same for the same request, sent again.
    pub(crate) fn again(self) -> Self {
        Self { duplicate: true, ..self }
    }

    /// Whether the event was stored before.
    pub(crate) fn is_duplicate(&self) -> bool {
        self.duplicate
    }

    /// For an event that waits on disk.
    pub(crate) fn spooled(event: &Event) -> Self {
        Self { duplicate: false, spooled: true, ..Self::known(event) }
    }
}

/// 202, with one receipt or several.
pub(crate) fn accepted(receipts: &impl Serialize) -> Response {
    let mut response = Response::new(Body::from(serde_json::to_vec(receipts).unwrap_or_default()));
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Publishes `event`, once per identity, and waits until it is stored.
pub(crate) async fn publish(bus: &Bus, event: &Event, id: Identity) -> Answer<Receipt> {
    bus.admit(event).await.map_err(publish_problem)?;
    let published = bus.publish(event, id).await.map_err(publish_problem)?;
    Ok(Receipt::stored(event, Some(published)))
}

/// What an event that was not stored is to its sender.
pub(crate) fn publish_problem(error: PublishError) -> Problem {
    if let Some(full) = error.full() {
        return full_problem(&full.to_string());
    }
    if let Some(full) = error.full_bucket() {
        return full_problem(&full.to_string());
    }
    match error {
        PublishError::Invalid(why) => Problem::bad_request(format!("the event cannot be stored: {why}")),
        PublishError::Unavailable(error) => {
            if let Some(suppressed) = repeats::due("", "publish") {
                tracing::warn!(%error, suppressed, "an event is answered 503: JetStream did not acknowledge it");
            }
            let detail =
                "the event may not be stored: JetStream did not acknowledge it; send it again, with the same id";
            Problem::unavailable(detail, BROKER_BACK)
        }
    }
}

/// The same to a sender who may not know what is deployed here.
pub(crate) fn hook_problem(error: PublishError) -> Problem {
    match error.full() {
        Some(full) => full_problem(&full.for_strangers().to_string()),
        None => publish_problem(error),
    }
}

fn full_problem(full: &str) -> Problem {
    let detail = format!("{full}; the event is not stored: send it again later, with the same id");
    Problem::unavailable(detail, FULL_RETRY)
}

/// Refuses at once what would only wait for a connection.
pub(crate) fn check_connected(bus: &Bus) -> Answer<()> {
    if bus.connected() {
        Ok(())
    } else {
        Err(Problem::unavailable("there is no connection to NATS; try again", BROKER_BACK))
    }
}

/// What a failure of the broker is to a caller.
pub(crate) fn broker_problem(error: &BusError) -> Problem {
    match error {
        BusError::Unavailable { .. } | BusError::Connect(_) => {
            if let Some(suppressed) = repeats::due("", "broker") {
                tracing::warn!(error = error as &dyn std::error::Error, suppressed, "a request is answered 503");
            }
            Problem::unavailable("NATS JetStream is not available; try again", BROKER_BACK)
        }
        BusError::Full { full, .. } => Problem::unavailable(full.to_string(), FULL_RETRY),
        BusError::NotFound(what) => Problem::not_found(format!("{what} does not exist")),
        BusError::Refused { .. } => {
            if let Some(suppressed) = repeats::due("", "refused by the broker") {
                tracing::warn!(%error, suppressed, "the broker refused a request");
            }
            Problem::new(StatusCode::BAD_GATEWAY, "NATS refused this; the gateway's log says why")
        }
    }
}

//! Publishes events of requests: a receipt once JetStream has acknowledged, a problem document otherwise.

use crate::{
    api::openapi::{Docs, list_of, one_of},
    http::problem::{HttpResult, Problem, ProblemType},
    webhooks::log_limit,
};
use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};
use nerve_broker::bus::{Bus, BusError, PublishError, Published};
use nerve_core::{Event, Identity};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::ToSchema;

/// `Retry-After` while NATS is unavailable, most often for a restart.
const BROKER_RETRY_AFTER: Duration = Duration::from_secs(5);
/// `Retry-After` while EVENTS is full.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(5);

/// The response for a stored event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Receipt {
    /// The id of the event.
    id: String,
    /// The type of the event.
    #[serde(rename = "type")]
    ty: String,
    /// Its sequence in the event log; `None` for a duplicate and for an event of a batch: JetStream does not report it.
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    /// Whether it was stored before.
    duplicate: bool,
    /// Whether it is on disk until NATS is available.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    spooled: bool,
}

impl Receipt {
    /// The receipt of a duplicate.
    pub(crate) fn known(event: &Event) -> Self {
        Self { id: event.id.clone(), ty: event.ty.as_str().to_owned(), sequence: None, duplicate: true, spooled: false }
    }

    /// The receipt of a stored event, with JetStream's acknowledgement if there is one for it alone.
    pub(crate) fn stored(event: &Event, ack: Option<Published>) -> Self {
        let sequence = ack.map(|ack| ack.sequence);
        Self { sequence, duplicate: ack.is_some_and(|ack| ack.duplicate), ..Self::known(event) }
    }

    /// The receipt of a repeated request.
    pub(crate) fn repeated(self) -> Self {
        Self { duplicate: true, ..self }
    }

    /// Whether the event was stored before.
    pub(crate) fn is_duplicate(&self) -> bool {
        self.duplicate
    }

    /// The receipt of an event on disk.
    pub(crate) fn spooled(event: &Event) -> Self {
        Self { duplicate: false, spooled: true, ..Self::known(event) }
    }
}

/// A 202 response with one receipt or several.
pub(crate) fn accepted(receipts: &impl Serialize) -> Response {
    let mut response = Response::new(Body::from(serde_json::to_vec(receipts).unwrap_or_default()));
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The documentation of [`accepted`].
pub(crate) fn accepted_docs(mut docs: Docs) -> Docs {
    let receipt = docs.schema_of::<Receipt>();
    let receipts = one_of([receipt.clone(), list_of(receipt)]);
    docs.json_like(202, "Every event is stored: a receipt, or a list of them for several", receipts)
}

/// Publishes `event`, once per identity, and waits for the acknowledgement.
///
/// # Errors
/// 400 for an event that violates its schema, 503 if it may not be stored.
pub(crate) async fn publish(bus: &Bus, event: &Event, id: Identity) -> HttpResult<Receipt> {
    bus.admit(event).await.map_err(publish_problem)?;
    let published = bus.publish(event, id).await.map_err(publish_problem)?;
    Ok(Receipt::stored(event, Some(published)))
}

/// The problem of an event that was not stored.
pub(crate) fn publish_problem(error: PublishError) -> Problem {
    if let Some(full) = error.full() {
        return full_problem(&full.to_string());
    }
    if let Some(full) = error.full_bucket() {
        return full_problem(&full.to_string());
    }
    match error {
        PublishError::Invalid(why) => {
            Problem::new(ProblemType::InvalidEvent, format!("the event cannot be stored: {why}"))
        }
        PublishError::Unavailable(error) => {
            if let Some(suppressed) = log_limit::due("", "publish") {
                tracing::warn!(%error, suppressed, "publish failed: JetStream did not acknowledge an event");
            }
            unavailable("JetStream did not acknowledge the event, which may not be stored; retry with the same id")
        }
    }
}

/// The same for a webhook sender, who may not learn what is deployed.
pub(crate) fn hook_problem(error: PublishError) -> Problem {
    match error.full() {
        Some(full) => full_problem(&full.redacted().to_string()),
        None => publish_problem(error),
    }
}

fn full_problem(full: &str) -> Problem {
    let detail = format!("{full}; the event is not stored: retry later with the same id");
    Problem::retry_after(ProblemType::StorageUnavailable, detail, FULL_RETRY_AFTER)
}

/// Fails fast without a connection to NATS.
///
/// # Errors
/// 503 without a connection.
pub(crate) fn check_connected(bus: &Bus) -> HttpResult<()> {
    if bus.connected() { Ok(()) } else { Err(unavailable("no connection to NATS; retry")) }
}

/// The problem of a broker failure.
pub(crate) fn broker_problem(error: &BusError) -> Problem {
    match error {
        BusError::Unavailable { .. } | BusError::Connect(_) => {
            if let Some(suppressed) = log_limit::due("", "broker") {
                tracing::warn!(error = error as &dyn std::error::Error, suppressed, "a request gets 503");
            }
            unavailable("NATS JetStream is unavailable; retry")
        }
        BusError::Full { full, .. } => {
            Problem::retry_after(ProblemType::StorageUnavailable, full.to_string(), FULL_RETRY_AFTER)
        }
        BusError::NotFound(what) => Problem::not_found(format!("{what} does not exist")),
        BusError::Refused { .. } => {
            if let Some(suppressed) = log_limit::due("", "refused by the broker") {
                tracing::warn!(%error, suppressed, "the broker refused a request");
            }
            Problem::new(ProblemType::UpstreamRefused, "NATS refused the request; see the gateway log")
        }
    }
}

fn unavailable(detail: &str) -> Problem {
    Problem::retry_after(ProblemType::BrokerUnavailable, detail, BROKER_RETRY_AFTER)
}

//! `POST /v1/events`: publishes CloudEvents in any HTTP mode. `GET /v1/event-types`.

use crate::{
    Gateway,
    api::{
        auth::Caller,
        cloudevents::{self, ParsedRequest},
    },
    http::problem::{HttpResult, Problem},
    publish::{Receipt, accepted, publish},
};
use axum::{
    Json,
    body::Body,
    extract::{Extension, Request, State},
    response::IntoResponse,
};
use nerve_broker::bus::{DuplicateReason, DuplicateScope};
use nerve_core::{FunctionSpec, Name, Origin, subject::EVENTS_PREFIX};
use nerve_events::{KnownType, known_types};
use nerve_registry::Catalogue;
use serde::Serialize;

/// Lists the event types of Nerve, with the deployed functions that emit or consume them.
pub(crate) async fn types(State(gateway): State<Gateway>) -> HttpResult {
    let catalogue = gateway.catalogue();
    let listed: Vec<_> = known_types().iter().map(|known| EventTypeInfo::of(known, &catalogue)).collect();
    Ok(Json(serde_json::json!({ "event_types": listed })).into_response())
}

#[derive(Serialize)]
struct EventTypeInfo<'c> {
    #[serde(flatten)]
    known: &'c KnownType,
    /// Deployed functions that may emit it, and those that consume it.
    emitted_by: Vec<&'c Name>,
    taken_by: Vec<&'c Name>,
}

impl<'c> EventTypeInfo<'c> {
    fn of(known: &'c KnownType, catalogue: &'c Catalogue) -> Self {
        let subject = format!("{EVENTS_PREFIX}{}", known.ty);
        let named = |is: &dyn Fn(&FunctionSpec) -> bool| {
            catalogue.functions.values().filter(|entry| is(&entry.record.spec)).map(|entry| &entry.name).collect()
        };
        let emitted_by = named(&|spec| spec.emits.iter().any(|pattern| pattern.covers(&known.ty)));
        let taken_by = named(&|spec| spec.on.iter().any(|pattern| pattern.covers(&subject)));
        Self { known, emitted_by, taken_by }
    }
}

const NOT_AN_EVENT: &str = "this is not a CloudEvent: send the attributes as `ce-specversion`, `ce-id`, `ce-source` and \
    `ce-type` headers beside the body, or the whole event as `application/cloudevents+json`";

/// Publishes events. Responds 202 once JetStream has acknowledged all.
///
/// A batch is stored in order. If an event fails, the batch fails: when it is retried, the stored events are duplicates.
pub(crate) async fn post(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> HttpResult {
    let origin = caller.origin();
    let (parts, body) = request.into_parts();
    let body = gateway.bodies().read(&parts.headers, body, gateway.config().max_api_body).await?;
    match cloudevents::parse(&parts.headers, &body.bytes)? {
        ParsedRequest::Plain => Err(Problem::bad_request(NOT_AN_EVENT)),
        ParsedRequest::One(event) => {
            let receipt = publish(gateway.bus(), &event, origin.identify(&event)).await?;
            count_duplicates(&gateway, &origin, std::slice::from_ref(&receipt));
            Ok(accepted(&receipt))
        }
        ParsedRequest::Batch(events) => {
            let mut receipts = Vec::with_capacity(events.len());
            for event in &events {
                receipts.push(publish(gateway.bus(), event, origin.identify(event)).await?);
            }
            count_duplicates(&gateway, &origin, &receipts);
            Ok(accepted(&receipts))
        }
    }
}

fn count_duplicates(gateway: &Gateway, caller: &Origin, receipts: &[Receipt]) {
    let duplicates = receipts.iter().filter(|receipt| receipt.is_duplicate()).count();
    if duplicates > 0 {
        gateway.bus().drops().count(DuplicateScope::Caller, &caller.to_string(), DuplicateReason::Window, duplicates);
    }
}

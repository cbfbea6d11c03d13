//! `POST /v1/events`: CloudEvents in, in any HTTP mode.

use super::{
    Gateway,
    access::Caller,
    body::is_small,
    modes,
    modes::Posted,
    problem::{Answer, Problem},
    publish::{Receipt, accepted, publish},
};
use axum::{
    Json,
    body::{Body, HttpBody},
    extract::{Extension, Request, State},
    response::IntoResponse,
};
use http::Method;
use nerve_broker::bus::{DropReason, DropScope};
use nerve_core::{FunctionSpec, Name, Origin, subject::EVENTS_PREFIX};
use nerve_events::{KnownType, known_types};
use nerve_registry::Catalogue;
use serde::Serialize;

/// Where events are posted to.
pub(super) const PATH: &str = "/v1/events";

/// Whether this request only publishes what is soon read.
pub(super) fn is_small_post(request: &Request<impl HttpBody>) -> bool {
    request.method() == Method::POST && request.uri().path() == PATH && is_small(request.body())
}

/// The types of events that Nerve itself makes and takes, and which deployed functions do.
pub(super) async fn types(State(gateway): State<Gateway>) -> Answer {
    let catalogue = gateway.catalogue();
    let listed: Vec<_> = known_types().iter().map(|known| Listed::of(known, &catalogue)).collect();
    Ok(Json(serde_json::json!({ "event_types": listed })).into_response())
}

#[derive(Serialize)]
struct Listed<'c> {
    #[serde(flatten)]
    known: &'c KnownType,
    /// Deployed functions that may emit it, and those that take it.
    emitted_by: Vec<&'c Name>,
    taken_by: Vec<&'c Name>,
}

impl<'c> Listed<'c> {
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

/// Takes in events: 202 once JetStream has them all.
///
/// A batch is stored in its order. When one of it fails the whole is answered as failed: sent again, what was stored
/// already is known by its id.
pub(super) async fn post(
    State(gateway): State<Gateway>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Answer {
    let origin = caller.origin();
    let (parts, body) = request.into_parts();
    let body = gateway.bodies().read(&parts.headers, body, gateway.config().max_api_body).await?;
    match modes::read(&parts.headers, &body.bytes)? {
        Posted::Plain => Err(Problem::bad_request(NOT_AN_EVENT)),
        Posted::One(event) => {
            let receipt = publish(gateway.bus(), &event, origin.identify(&event)).await?;
            count_duplicates(&gateway, &origin, std::slice::from_ref(&receipt));
            Ok(accepted(&receipt))
        }
        Posted::Batch(events) => {
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
        gateway.bus().drops().count(DropScope::Caller, &caller.to_string(), DropReason::Window, duplicates);
    }
}

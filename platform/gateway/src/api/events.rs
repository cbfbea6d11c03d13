//! `POST /v1/events`: publishes CloudEvents in any HTTP mode. `GET /v1/event-types`.

use crate::{
    Gateway,
    api::{
        auth::Caller,
        cloudevents::{self, ParsedRequest, cloud_event},
        openapi::{BROKER, Docs, any, list_of, text},
    },
    http::problem::{HttpResult, Problem, ProblemType},
    publish::{Receipt, accepted, accepted_docs, publish},
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
use utoipa::ToSchema;

/// Lists the event types of Nerve, with the deployed functions that emit or consume them.
pub(crate) async fn types(State(gateway): State<Gateway>) -> HttpResult {
    let catalogue = gateway.catalogue();
    let event_types = known_types().iter().map(|known| EventTypeInfo::of(known, &catalogue)).collect();
    Ok(Json(EventTypeList { event_types }).into_response())
}

/// The documentation of [`types`].
pub(crate) fn types_docs(docs: Docs) -> Docs {
    docs.json::<EventTypeList<'_>>(200, "The event types of Nerve")
}

/// The event types of Nerve.
#[derive(Serialize, ToSchema)]
struct EventTypeList<'c> {
    event_types: Vec<EventTypeInfo<'c>>,
}

#[derive(Serialize, ToSchema)]
struct EventTypeInfo<'c> {
    /// `type`, `kind`, `about`, `producers`, `consumers` and `schema`, the JSON Schema of its data.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    known: &'c KnownType,
    /// Deployed functions that may emit it, and those that consume it.
    #[schema(value_type = Vec<String>)]
    emitted_by: Vec<&'c Name>,
    #[schema(value_type = Vec<String>)]
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
    let (parts, body) = gateway.read_api(request).await?;
    match cloudevents::parse(&parts.headers, &body.bytes)? {
        ParsedRequest::Plain => Err(Problem::new(ProblemType::InvalidEvent, NOT_AN_EVENT)),
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

/// The documentation of [`post`].
pub(crate) fn post_docs(docs: Docs) -> Docs {
    let binary = "An attribute of an event in binary mode, whose data is the body";
    let docs = ["ce-specversion", "ce-id", "ce-source", "ce-type", "ce-subject", "ce-time"]
        .into_iter()
        .fold(docs, |docs, name| docs.header(name, binary));
    let docs = docs
        .body_like("application/cloudevents+json", cloud_event())
        .body_like("application/cloudevents-batch+json", list_of(cloud_event()))
        .body_like("application/json", any())
        .body_like("text/plain", text());
    accepted_docs(docs).problems(&[ProblemType::InvalidEvent]).problems(BROKER)
}

fn count_duplicates(gateway: &Gateway, caller: &Origin, receipts: &[Receipt]) {
    let duplicates = receipts.iter().filter(|receipt| receipt.is_duplicate()).count();
    if duplicates > 0 {
        gateway.bus().drops().count(DuplicateScope::Caller, &caller.to_string(), DuplicateReason::Window, duplicates);
    }
}

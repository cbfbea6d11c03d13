//! `POST /v1/events`: CloudEvents in, in any HTTP mode.

use super::{
    Gateway, modes,
    modes::Posted,
    problem::{Answer, Problem},
    publish::publish,
};
use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    response::IntoResponse,
};
use http::StatusCode;

const NOT_AN_EVENT: &str = "this is not a CloudEvent: send the attributes as `ce-specversion`, `ce-id`, `ce-source` and \
    `ce-type` headers beside the body, or the whole event as `application/cloudevents+json`";

/// Takes in events: 202 once JetStream has them all.
///
/// A batch is stored in its order. When one of it fails the whole is answered as failed: sent again, what was stored
/// already is known by its id.
pub(super) async fn post(State(gateway): State<Gateway>, request: Request<Body>) -> Answer {
    let (parts, body) = request.into_parts();
    let body = gateway.bodies().read(&parts.headers, body, gateway.config().max_api_body).await?;
    match modes::read(&parts.headers, &body.bytes)? {
        Posted::Plain => Err(Problem::bad_request(NOT_AN_EVENT)),
        Posted::One(event) => {
            let receipt = publish(gateway.bus(), &event).await?;
            Ok((StatusCode::ACCEPTED, Json(receipt)).into_response())
        }
        Posted::Batch(events) => {
            let mut receipts = Vec::with_capacity(events.len());
            for event in &events {
                receipts.push(publish(gateway.bus(), event).await?);
            }
            Ok((StatusCode::ACCEPTED, Json(receipts)).into_response())
        }
    }
}

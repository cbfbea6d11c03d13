//! `GET /v1/traces/{id}`: all events that an event caused, as a tree.

use crate::{
    Gateway,
    http::problem::{HttpResult, Problem},
    publish::{broker_problem, check_connected},
};
use axum::{
    Json,
    extract::{Path, State},
    response::IntoResponse,
};
use nerve_broker::bus::Trace;
use serde::Serialize;

#[derive(Serialize)]
struct Document {
    id: String,
    #[serde(flatten)]
    trace: Trace,
}

/// The tree of a workflow, by its id or the id of one of its events.
pub(crate) async fn get(State(gateway): State<Gateway>, Path(id): Path<String>) -> HttpResult {
    check_connected(gateway.bus())?;
    let trace = gateway.bus().trace(&id, None).await.map_err(|error| broker_problem(&error))?;
    if trace.events.is_empty() {
        let detail = format!("no event in the log has the id or correlationid `{id}`");
        return Err(Problem::not_found(detail));
    }
    Ok(Json(Document { id, trace }).into_response())
}

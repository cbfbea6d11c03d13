//! `GET /v1/traces/{id}`: everything that one event led to, as a tree.

use super::{
    Gateway,
    problem::{Answer, Problem},
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

/// The tree of the workflow that this id, of it or of one of its events, names.
pub(super) async fn get(State(gateway): State<Gateway>, Path(id): Path<String>) -> Answer {
    check_connected(gateway.bus())?;
    let trace = gateway.bus().trace(&id, None).await.map_err(|error| broker_problem(&error))?;
    if trace.events.is_empty() {
        let detail = format!("no event of the log has the id or the correlationid `{id}`");
        return Err(Problem::not_found(detail));
    }
    Ok(Json(Document { id, trace }).into_response())
}

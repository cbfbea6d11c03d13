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

/// The tree of the workflow that this id, of it or of one of its events, names.
pub(super) async fn get(State(gateway): State<Gateway>, Path(id): Path<String>) -> Answer {
    check_connected(gateway.bus())?;
    let events = gateway.bus().trace(&id, None).await.map_err(|error| broker_problem(&error))?;
    if events.is_empty() {
        let detail = format!("no event of the log has the id or the correlationid `{id}`");
        return Err(Problem::not_found(detail));
    }
    Ok(Json(serde_json::json!({"id": id, "events": events})).into_response())
}

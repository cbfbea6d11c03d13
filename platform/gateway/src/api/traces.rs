//! `GET /v1/traces/{id}`: all events that an event caused, as a tree.

use crate::{
    Gateway,
    api::openapi::{BROKER, Docs},
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
use utoipa::ToSchema;

/// The events of a workflow as a tree.
#[derive(Serialize, ToSchema)]
struct WorkflowTrace {
    /// The id of the request.
    id: String,
    /// `events`, each with those that it caused, and `truncated` if there are more.
    #[serde(flatten)]
    #[schema(value_type = Object)]
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
    Ok(Json(WorkflowTrace { id, trace }).into_response())
}

/// The documentation of [`get`].
pub(crate) fn docs(docs: Docs) -> Docs {
    docs.path("id", "The id of an event, or the id that correlates the events of a workflow")
        .json::<WorkflowTrace>(200, "The events as a tree")
        .problems(BROKER)
}

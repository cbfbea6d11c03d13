//! `/problems`: the documentation of the types of errors, at the paths that their documents name.

use crate::{
    api::openapi::Docs,
    http::problem::{HttpResult, Problem, ProblemType},
};
use axum::{Json, extract::Path, response::IntoResponse};
use serde::Serialize;
use utoipa::ToSchema;

/// All types of problems.
#[derive(Serialize, ToSchema)]
struct ProblemTypes {
    problems: Vec<ProblemTypeInfo>,
}

/// A type of problem.
#[derive(Serialize, ToSchema)]
struct ProblemTypeInfo {
    /// The `type` of its documents.
    #[serde(rename = "type")]
    ty: &'static str,
    title: &'static str,
    status: u16,
    /// Whether the response has `Retry-After`.
    retry_after: bool,
    /// The cause and the next step.
    documentation: &'static str,
}

impl ProblemTypeInfo {
    fn of(ty: ProblemType) -> Self {
        Self {
            ty: ty.uri(),
            title: ty.title(),
            status: ty.status().as_u16(),
            retry_after: ty.has_retry_after(),
            documentation: ty.documentation(),
        }
    }
}

/// Lists all types.
pub(crate) async fn list() -> HttpResult {
    let problems = ProblemType::ALL.iter().copied().map(ProblemTypeInfo::of).collect();
    Ok(Json(ProblemTypes { problems }).into_response())
}

/// The documentation of [`list`].
pub(crate) fn list_docs(docs: Docs) -> Docs {
    docs.json::<ProblemTypes>(200, "All types of problems, by status")
}

/// One type.
pub(crate) async fn get(Path(name): Path<String>) -> HttpResult {
    let found = ProblemType::ALL.iter().find(|ty| ty.name() == name);
    let unknown = || Problem::not_found(format!("there is no problem type `{name}`; see GET /problems"));
    found.map(|ty| Json(ProblemTypeInfo::of(*ty)).into_response()).ok_or_else(unknown)
}

/// The documentation of [`get`].
pub(crate) fn get_docs(docs: Docs) -> Docs {
    docs.path("name", "The last part of the `type` of a problem document")
        .json::<ProblemTypeInfo>(200, "The type of problem")
}

//! Models over HTTP: `/v1/embeddings`, `/v1/rerank` and `/v1/classify`.
//!
//! # Layout
//! - `embeddings`, `rerank`, `classify`: a route each, with its request and response.
//! - `models`: finds a model by name and fetches its files.
//! - `text`: strings in JSON.
//!
//! # Flow
//! read the body → fetch the model → [`nerve_core::Inference`] → respond. Inference runs in the request's future: when the client
//! disconnects, the future is dropped, which cancels queued work.

pub(crate) mod classify;
pub(crate) mod embeddings;
mod models;
pub(crate) mod rerank;
mod text;

pub use models::{Fetch, ModelParts, Models};

use crate::{
    Gateway, OVERLOAD_RETRY_AFTER,
    api::openapi::{BROKER, Docs},
    http::{
        body::ReadBody,
        problem::{HttpResult, Problem, ProblemType},
    },
    webhooks::log_limit,
};
use axum::extract::Request;
use nerve_core::{
    Inference,
    inference::{InferenceError, Model},
};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// Token counts.
#[derive(Debug, Serialize, ToSchema)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl Usage {
    fn of(tokens: impl Iterator<Item = usize>) -> Self {
        let total_tokens = tokens.sum();
        Self { prompt_tokens: total_tokens, total_tokens }
    }
}

/// The model of a request: by name, or the only one for a task.
#[derive(Debug, Clone, Copy)]
enum ModelChoice<'a> {
    Named(&'a str),
    OnlyFor(&'a str),
}

async fn read_body(gateway: &Gateway, request: Request) -> HttpResult<ReadBody> {
    let limit = gateway.shared().parts.models.config().max_body;
    gateway.read(request, limit).await.map(|(_, body)| body)
}

/// Finds and runs the model within `onnx.timeout`.
async fn run<T, F>(
    gateway: &Gateway,
    wanted: ModelChoice<'_>,
    work: impl FnOnce(Arc<dyn Inference>, Arc<Model>) -> F,
) -> HttpResult<(String, T)>
where
    F: Future<Output = Result<T, InferenceError>>,
{
    let models = &gateway.shared().parts.models;
    let inference = models.inference()?;
    let limit = models.config().timeout;
    let answer = tokio::time::timeout(limit, async {
        let catalogue = gateway.catalogue();
        let model = match wanted {
            ModelChoice::Named(name) => models.find(&catalogue, name).await?,
            ModelChoice::OnlyFor(task) => models.only_for(&catalogue, task).await?,
        };
        let done = work(Arc::clone(inference), Arc::clone(&model)).await;
        if let Err(InferenceError::Unavailable(_) | InferenceError::Failed(_)) = &done {
            models.forget(&model);
        }
        done.map(|done| (model.name.clone(), done)).map_err(problem)
    });
    answer.await.unwrap_or_else(|_| {
        let detail = format!("timeout of the model after {limit:?} (onnx.timeout); a new model may still be loading");
        Err(Problem::new(ProblemType::Timeout, detail))
    })
}

/// The problem of a failed inference.
fn problem(error: InferenceError) -> Problem {
    match error {
        InferenceError::Invalid(why) => Problem::invalid_request(why),
        InferenceError::Busy(why) => Problem::retry_after(ProblemType::RateLimited, why, OVERLOAD_RETRY_AFTER),
        InferenceError::Timeout(why) => Problem::new(ProblemType::Timeout, why),
        InferenceError::Unavailable(why) => Problem::new(ProblemType::ModelUnavailable, why),
        InferenceError::Failed(why) => {
            if let Some(suppressed) = log_limit::due("", "model") {
                tracing::warn!(why, suppressed, "inference failed");
            }
            Problem::new(ProblemType::Internal, why)
        }
    }
}

/// Checks the length of a list.
///
/// # Errors
/// 400 if it is empty or over `onnx.max_inputs`.
fn check_count(gateway: &Gateway, what: &str, count: usize) -> HttpResult<()> {
    let most = gateway.shared().parts.models.config().max_inputs;
    match count {
        0 => Err(Problem::invalid_request(format!("`{what}` is empty: send at least one"))),
        count if count > most => Err(Problem::invalid_request(format!(
            "`{what}` has {count} items, over the limit of {most} per request (onnx.max_inputs): send several requests"
        ))),
        _ => Ok(()),
    }
}

/// The problems of a model, and of fetching its files.
fn model_docs(docs: Docs) -> Docs {
    let types = [ProblemType::NotFound, ProblemType::RateLimited, ProblemType::ModelUnavailable, ProblemType::Timeout];
    docs.problems(&types).problems(BROKER)
}

fn missing(field: &str) -> Problem {
    Problem::invalid_request(format!("`{field}` is missing"))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests;

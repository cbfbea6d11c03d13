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
    Gateway,
    http::{
        body::ReadBody,
        problem::{HttpResult, Problem},
    },
    webhooks::log_limit,
};
use axum::{body::Body, extract::Request};
use http::{HeaderValue, StatusCode, header};
use nerve_core::{
    Inference,
    inference::{InferenceError, Model},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Token counts.
#[derive(Debug, Serialize)]
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

async fn read_body(gateway: &Gateway, request: Request<Body>) -> HttpResult<ReadBody> {
    let (parts, body) = request.into_parts();
    gateway.bodies().read(&parts.headers, body, gateway.shared().parts.models.config().max_body).await
}

fn parse<'b, T: Deserialize<'b>>(body: &'b [u8]) -> HttpResult<T> {
    serde_json::from_slice(body).map_err(|error| Problem::bad_request(format!("invalid request: {error}")))
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
        Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, detail))
    })
}

/// The problem of a failed inference.
fn problem(error: InferenceError) -> Problem {
    match error {
        InferenceError::Invalid(why) => Problem::bad_request(why),
        InferenceError::Busy(why) => {
            Problem::new(StatusCode::TOO_MANY_REQUESTS, why).with(header::RETRY_AFTER, HeaderValue::from_static("1"))
        }
        InferenceError::Timeout(why) => Problem::new(StatusCode::GATEWAY_TIMEOUT, why),
        InferenceError::Unavailable(why) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, why),
        InferenceError::Failed(why) => {
            if let Some(suppressed) = log_limit::due("", "model") {
                tracing::warn!(why, suppressed, "inference failed");
            }
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, why)
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
        0 => Err(Problem::bad_request(format!("`{what}` is empty: send at least one"))),
        count if count > most => Err(Problem::bad_request(format!(
            "`{what}` has {count} items, over the limit of {most} per request (onnx.max_inputs): send several requests"
        ))),
        _ => Ok(()),
    }
}

fn missing(field: &str) -> Problem {
    Problem::bad_request(format!("`{field}` is missing"))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests;

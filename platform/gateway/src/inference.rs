//! Models over HTTP: `/v1/embeddings`, `/v1/rerank` and `/v1/classify`.
//!
//! # Layout
//! - `embeddings`, `rerank`, `classify`: one route each: what is asked, and how the answer is written.
//! - `models`: from a model's name to its files on this machine.
//! - `text`: strings as JSON may hold them.
//!
//! # Flow
//! read the body → the model's files → [`nerve_core::Inference`] → the answer. The inference runs in the request's
//! own future: when the caller leaves, it is dropped and gives up what has not begun.

pub(super) mod classify;
pub(super) mod embeddings;
mod models;
pub(super) mod rerank;
mod text;

pub use models::{Fetch, ModelParts, Models};

use super::{
    Gateway,
    body::ReadBody,
    problem::{Answer, Problem},
    repeats,
};
use axum::{body::Body, extract::Request};
use http::{HeaderValue, StatusCode, header};
use nerve_core::{
    Inference,
    inference::{InferenceError, Model},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Tokens that models read.
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

/// The model that a request wants, by name or as the only one that can do it.
#[derive(Debug, Clone, Copy)]
enum Wanted<'a> {
    Named(&'a str),
    OnlyFor(&'a str),
}

async fn read_body(gateway: &Gateway, request: Request<Body>) -> Answer<ReadBody> {
    let (parts, body) = request.into_parts();
    gateway.bodies().read(&parts.headers, body, gateway.part.shared.parts.models.config().max_body).await
}

fn parse<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Answer<T> {
    serde_json::from_slice(body).map_err(|error| Problem::bad_request(format!("the request cannot be read: {error}")))
}

/// Finds the model and runs it, within the time that the settings allow.
async fn run<T, F>(
    gateway: &Gateway,
    wanted: Wanted<'_>,
    work: impl FnOnce(Arc<dyn Inference>, Arc<Model>) -> F,
) -> Answer<(String, T)>
where
    F: Future<Output = Result<T, InferenceError>>,
{
    let models = &gateway.part.shared.parts.models;
    let inference = models.inference()?;
    let limit = models.config().timeout;
    let answer = tokio::time::timeout(limit, async {
        let catalogue = gateway.catalogue();
        let model = match wanted {
            Wanted::Named(name) => models.find(&catalogue, name).await?,
            Wanted::OnlyFor(task) => models.only_for(&catalogue, task).await?,
        };
        let done = work(Arc::clone(inference), Arc::clone(&model)).await;
        if let Err(InferenceError::Unavailable(_) | InferenceError::Failed(_)) = &done {
            models.forget(&model);
        }
        done.map(|done| (model.name.clone(), done)).map_err(problem)
    });
    answer.await.unwrap_or_else(|_| {
        let detail = format!(
            "the model gave no answer within {limit:?}, which onnx.timeout bounds; one that is new to this server may \
             still be on its way"
        );
        Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, detail))
    })
}

/// Whose fault a missing answer is, as a status.
fn problem(error: InferenceError) -> Problem {
    match error {
        InferenceError::Invalid(why) => Problem::bad_request(why),
        InferenceError::Busy(why) => {
            Problem::new(StatusCode::TOO_MANY_REQUESTS, why).with(header::RETRY_AFTER, HeaderValue::from_static("1"))
        }
        InferenceError::Timeout(why) => Problem::new(StatusCode::GATEWAY_TIMEOUT, why),
        InferenceError::Unavailable(why) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, why),
        InferenceError::Failed(why) => {
            if let Some(suppressed) = repeats::due("", "model") {
                tracing::warn!(why, suppressed, "a model gave no answer");
            }
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, why)
        }
    }
}

/// Refuses a list that is empty or longer than the settings allow.
fn check_count(gateway: &Gateway, what: &str, count: usize) -> Answer<()> {
    let most = gateway.part.shared.parts.models.config().max_inputs;
    match count {
        0 => Err(Problem::bad_request(format!("`{what}` is empty: send at least one"))),
        count if count > most => {
            Err(Problem::bad_request(format!("`{what}` holds {count}, and one request may hold {most}: send several")))
        }
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

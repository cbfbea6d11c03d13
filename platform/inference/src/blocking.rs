//! CPU-bound work outside of async threads.

use crate::{loaded::InferenceResult, tokens::MIN_BLOCKING_TEXT_BYTES};
use nerve_core::inference::InferenceError;

/// Runs CPU-bound `work` on each item: inline if the items are short, else on the blocking thread pool.
pub(crate) async fn run_cpu_bound<T: Send + 'static, R: Send + 'static>(
    items: Vec<T>,
    length: impl Fn(&T) -> usize,
    tokenize: impl Fn(&T) -> Result<R, String> + Send + 'static,
) -> InferenceResult<Vec<R>> {
    let total: usize = items.iter().map(length).sum();
    let all = move || items.iter().map(tokenize).collect::<Result<Vec<R>, String>>();
    let tokens = if total <= MIN_BLOCKING_TEXT_BYTES {
        all()
    } else {
        let ended = tokio::task::spawn_blocking(all).await;
        ended.map_err(|error| InferenceError::Failed(format!("the tokenizer failed: {error}")))?
    };
    tokens.map_err(InferenceError::Invalid)
}

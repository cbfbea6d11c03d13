//! Work that takes too long for an async thread.

use crate::{loaded::Answer, tokens::LONG};
use nerve_core::inference::InferenceError;

/// Tokenises; where there is much of it, not on an async thread.
pub(crate) async fn off_thread<T: Send + 'static, R: Send + 'static>(
    items: Vec<T>,
    length: impl Fn(&T) -> usize,
    tokenise: impl Fn(&T) -> Result<R, String> + Send + 'static,
) -> Answer<Vec<R>> {
    let total: usize = items.iter().map(length).sum();
    let all = move || items.iter().map(tokenise).collect::<Result<Vec<R>, String>>();
    let tokens = if total <= LONG {
        all()
    } else {
        let ended = tokio::task::spawn_blocking(all).await;
        ended.map_err(|error| InferenceError::Failed(format!("the tokenizer failed: {error}")))?
    };
    tokens.map_err(InferenceError::Invalid)
}

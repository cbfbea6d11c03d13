//! Text generation.

use crate::loaded::{InferenceResult, LoadedKind, LoadedModel};
use futures::{StreamExt, stream::BoxStream};
use nerve_core::inference::{GenerateRequest, Piece};
use std::sync::Arc;

impl LoadedModel {
    /// Streams the answer to a conversation.
    ///
    /// # Errors
    /// If the model does not generate text, or its queue is full.
    pub async fn generate(
        self: Arc<Self>,
        request: GenerateRequest,
    ) -> InferenceResult<BoxStream<'static, InferenceResult<Piece>>> {
        let LoadedKind::Causal(model) = &self.kind else { return Err(self.unsupported("generate text")) };
        let pieces = model.generate(request).await?;
        // The stream keeps the model in memory.
        Ok(pieces.inspect(move |_| _ = &self).boxed())
    }
}

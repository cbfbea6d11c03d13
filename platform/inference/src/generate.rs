//! Conversations to what is said next.

use crate::loaded::{Answer, Kind, Loaded};
use futures::{StreamExt, stream::BoxStream};
use nerve_core::inference::{GenerateRequest, Piece};
use std::sync::Arc;

impl Loaded {
    /// What the model writes after a conversation, as it writes it.
    ///
    /// # Errors
    /// Where the model cannot write, or has as much to do as it may.
    pub async fn generate(self: Arc<Self>, request: GenerateRequest) -> Answer<BoxStream<'static, Answer<Piece>>> {
        let Kind::Causal(model) = &self.kind else { return Err(self.unfit("write")) };
        let pieces = model.write(request).await?;
        // The model stays in memory as long as somebody reads.
        Ok(pieces.inspect(move |_| _ = &self).boxed())
    }
}

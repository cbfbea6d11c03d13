//! Embeddings, for functions that compare texts.

use crate::function::{inference_failed, invalid};
use nerve_core::{
    FunctionError, Inference,
    inference::{EmbedRequest, Model, Purpose, Vector},
};
use std::sync::Arc;

/// An embedding model.
#[derive(Clone)]
pub(crate) struct Embedder {
    pub(crate) inference: Arc<dyn Inference>,
    pub(crate) model: Model,
}

impl Embedder {
    /// Returns one unit vector per text.
    ///
    /// # Errors
    /// If the model has no dense vectors, or inference fails.
    pub(crate) async fn embed(&self, texts: Vec<String>, purpose: Purpose) -> Result<Vec<Vec<f32>>, FunctionError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let request = EmbedRequest { texts, purpose: Some(purpose), ..EmbedRequest::default() };
        let embedded = self.inference.embed(&self.model, request).await.map_err(|error| inference_failed(&error))?;
        let dense = |vector: Vector| match vector {
            Vector::F32(numbers) => Ok(numbers),
            _ => Err(invalid("the model has no dense vectors: use an embedding model")),
        };
        embedded.into_iter().map(|one| dense(one.vector)).collect()
    }

    /// Returns the vector of a question.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub(crate) async fn question(&self, text: &str) -> Result<Vec<f32>, FunctionError> {
        Ok(self.embed(vec![text.to_owned()], Purpose::Query).await?.pop().unwrap_or_default())
    }
}

/// Cosine similarity of two unit vectors.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

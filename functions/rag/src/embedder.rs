//! Texts to vectors, for the functions that compare them.

use crate::function::{inference_failed, invalid};
use nerve_core::{
    FunctionError, Inference,
    inference::{EmbedRequest, Model, Purpose, Vector},
};
use std::sync::Arc;

/// A model that embeds.
#[derive(Clone)]
pub(crate) struct Embedder {
    pub(crate) inference: Arc<dyn Inference>,
    pub(crate) model: Model,
}

impl Embedder {
    /// One vector of length one a text.
    pub(crate) async fn embed(&self, texts: Vec<String>, purpose: Purpose) -> Result<Vec<Vec<f32>>, FunctionError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let request = EmbedRequest { texts, purpose: Some(purpose), ..EmbedRequest::default() };
        let embedded = self.inference.embed(&self.model, request).await.map_err(|error| inference_failed(&error))?;
        let dense = |vector: Vector| match vector {
            Vector::F32(numbers) => Ok(numbers),
            _ => Err(invalid("the model gives no dense vectors: name one for embedding")),
        };
        embedded.into_iter().map(|one| dense(one.vector)).collect()
    }

    /// The vector of a question.
    pub(crate) async fn question(&self, text: &str) -> Result<Vec<f32>, FunctionError> {
        Ok(self.embed(vec![text.to_owned()], Purpose::Query).await?.pop().unwrap_or_default())
    }
}

/// The cosine of two vectors of length one.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

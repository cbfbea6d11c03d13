//! Reranking: relevance of documents to a query.

use crate::{
    blocking::run_cpu_bound,
    loaded::{Admission, InferenceResult, LoadedModel, activate, run_text},
    task::Task,
};
use nerve_core::inference::{Relevance, RerankRequest};

impl LoadedModel {
    /// Returns one relevance per document.
    ///
    /// # Errors
    /// If the model does not rerank, its queue is full, or it fails.
    pub async fn rerank(&self, request: RerankRequest, admission: Admission) -> InferenceResult<Vec<Relevance>> {
        let model = self.text(&[Task::Rerank], "rerank: reranking requires a cross-encoder with one label")?;
        let RerankRequest { query, documents, raw } = request;
        let tokenizer = model.tokenizer.clone();
        let length = query.len();
        let tokens =
            run_cpu_bound(documents, move |text| text.len() + length, move |text| tokenizer.pair(&query, text)).await?;
        let token_counts: Vec<(usize, bool)> = tokens.iter().map(|tokens| (tokens.len(), tokens.truncated)).collect();
        let rows = run_text(model, tokens, None, admission).await?;
        let finish = |(mut row, (tokens, truncated)): (Vec<f32>, (usize, bool))| {
            activate(&model.spec.head, raw, &mut row);
            Relevance { score: row.first().copied().unwrap_or_default(), tokens, truncated }
        };
        Ok(rows.into_iter().zip(token_counts).map(finish).collect())
    }
}

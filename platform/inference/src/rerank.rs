//! A query and documents to relevance.

use crate::{
    blocking::off_thread,
    loaded::{Admission, Answer, Loaded, activate, run_text},
    task::Task,
};
use nerve_core::inference::{Relevance, RerankRequest};

impl Loaded {
    /// One relevance a document.
    ///
    /// # Errors
    /// Where the model cannot rerank, has as much to do as it may, or fails.
    pub async fn rerank(&self, request: RerankRequest, admission: Admission) -> Answer<Vec<Relevance>> {
        let model = self.text(&[Task::Rerank], "rerank: that takes a cross-encoder with one label")?;
        let RerankRequest { query, documents, raw } = request;
        let tokenizer = model.tokenizer.clone();
        let length = query.len();
        let tokens =
            off_thread(documents, move |text| text.len() + length, move |text| tokenizer.pair(&query, text)).await?;
        let counted: Vec<(usize, bool)> = tokens.iter().map(|tokens| (tokens.len(), tokens.truncated)).collect();
        let rows = run_text(model, tokens, None, admission).await?;
        let finish = |(mut row, (tokens, truncated)): (Vec<f32>, (usize, bool))| {
            activate(&model.layout.head, raw, &mut row);
            Relevance { score: row.first().copied().unwrap_or_default(), tokens, truncated }
        };
        Ok(rows.into_iter().zip(counted).map(finish).collect())
    }
}

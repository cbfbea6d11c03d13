//! Answers that quote: the sentences of the best documents that are nearest to the question.

use super::{Given, Made, Outlet};
use crate::{
    embedder::Embedder,
    extract::{self, Limits},
};
use futures::future::try_join;
use nerve_core::{FunctionError, inference::Purpose};

/// Chunks whose sentences are looked at; how many sentences are read, and how many of those are embedded.
const LOOKED_AT: (usize, usize, usize) = (5, 64, 16);

/// Makes answers of sentences.
pub(crate) struct Extractor {
    pub(crate) embedder: Embedder,
}

impl Extractor {
    pub(super) async fn answer(
        &self,
        given: &Given,
        limits: Limits,
        outlet: &Outlet<'_>,
    ) -> Result<Made, FunctionError> {
        let (chunks, read, embedded) = LOOKED_AT;
        let documents = given.documents.get(..chunks.min(given.documents.len())).unwrap_or_default();
        let sentences = extract::sentences(documents, read);
        let sentences = extract::promising(sentences, &given.question, embedded);
        let texts = sentences.iter().map(|sentence| sentence.text.clone()).collect();
        let (asked, said) =
            try_join(self.embedder.question(&given.question), self.embedder.embed(texts, Purpose::Document)).await?;
        let answer = extract::answer(documents, &sentences, &said, (&given.question, &asked), limits);
        if answer.citations.is_empty() {
            outlet.text(&answer.answer).await?;
        }
        for (place, (text, citation)) in answer.sentences.iter().zip(&answer.citations).enumerate() {
            let gap = if place == 0 { "" } else { " " };
            outlet.text(&format!("{gap}{text}")).await?;
            outlet.citation(citation).await?;
        }
        Ok(Made {
            answer: answer.answer,
            answered: answer.answered,
            confidence: Some(answer.confidence),
            citations: answer.citations,
            finish: None,
            usage: None,
        })
    }
}

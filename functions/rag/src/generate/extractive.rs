//! Extractive backend: quotes the sentences of the best documents nearest to the question.

use super::{AnswerPublisher, GenerateInput, GeneratedAnswer};
use crate::{
    embedder::Embedder,
    extractive::{self, AnswerLimits},
};
use futures::future::try_join;
use nerve_core::{FunctionError, inference::Purpose};

/// Maximum number of chunks that are split into sentences.
const MAX_CHUNKS: usize = 5;
/// Maximum number of sentences that are read.
const MAX_SENTENCES: usize = 64;
/// Maximum number of sentences that are embedded.
const MAX_EMBEDDED_SENTENCES: usize = 16;

/// Generates extractive answers.
pub(crate) struct ExtractiveBackend {
    pub(crate) embedder: Embedder,
}

impl ExtractiveBackend {
    pub(super) async fn answer(
        &self,
        input: &GenerateInput,
        limits: AnswerLimits,
        publisher: &AnswerPublisher<'_>,
    ) -> Result<GeneratedAnswer, FunctionError> {
        let documents = input.documents.get(..MAX_CHUNKS.min(input.documents.len())).unwrap_or_default();
        let sentences = extractive::sentences(documents, MAX_SENTENCES);
        let sentences = extractive::preselect(sentences, &input.question, MAX_EMBEDDED_SENTENCES);
        let texts = sentences.iter().map(|sentence| sentence.text.clone()).collect();
        let (question, vectors) =
            try_join(self.embedder.question(&input.question), self.embedder.embed(texts, Purpose::Document)).await?;
        let answer = extractive::answer(documents, &sentences, &vectors, (&input.question, &question), limits);
        if answer.citations.is_empty() {
            publisher.text(&answer.answer).await?;
        }
        for (place, (text, citation)) in answer.sentences.iter().zip(&answer.citations).enumerate() {
            let gap = if place == 0 { "" } else { " " };
            publisher.text(&format!("{gap}{text}")).await?;
            publisher.citation(citation).await?;
        }
        Ok(GeneratedAnswer {
            answer: answer.answer,
            answered: answer.answered,
            confidence: Some(answer.confidence),
            citations: answer.citations,
            finish: None,
            usage: None,
        })
    }
}

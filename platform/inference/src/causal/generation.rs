//! State of one generation.

use super::{
    Prompt,
    decoder::{DecodingState, StepEngine},
    detokenizer::{DecodedText, Detokenizer},
    sampling::Sampler,
};
use nerve_core::inference::{Finish, InferenceError, Piece};
use std::{collections::HashSet, sync::Arc};
use tokio::sync::mpsc::Sender;

/// Limits of a generation.
pub(super) struct GenerationLimits {
    /// Maximum number of generated tokens.
    pub(super) max_tokens: usize,
    /// End-of-text tokens, which are not part of the answer.
    pub(super) end_tokens: Arc<HashSet<u32>>,
}

/// A queued or running generation.
pub(super) struct Generation {
    state: DecodingState,
    /// Tokens that the model has not processed yet: the rest of the conversation, or the latest token.
    pending: Vec<u32>,
    prompt_tokens: usize,
    /// Number of tokens of the answer, including its existing part.
    answer_tokens: usize,
    limits: GenerationLimits,
    sampler: Sampler,
    detokenizer: Option<Detokenizer>,
    pieces: Sender<Result<Piece, InferenceError>>,
}

impl Generation {
    /// A new generation; `None` if the existing part of the answer already reaches the limit, in which case the end is
    /// sent.
    pub(super) fn new(
        prompt: Prompt,
        limits: GenerationLimits,
        sampler: Sampler,
        detokenizer: Detokenizer,
        pieces: Sender<Result<Piece, InferenceError>>,
    ) -> Option<Self> {
        let (prompt_tokens, answer_tokens) = (prompt.conversation_tokens(), prompt.resumed_tokens);
        let state = DecodingState::default();
        let mut generation = Self {
            state,
            pending: prompt.ids,
            prompt_tokens,
            answer_tokens,
            limits,
            sampler,
            detokenizer: Some(detokenizer),
            pieces,
        };
        if generation.answer_tokens < generation.limits.max_tokens {
            return Some(generation);
        }
        generation.end(Finish::Length);
        None
    }

    /// Whether the stream was dropped.
    pub(super) fn is_cancelled(&self) -> bool {
        self.pieces.is_closed()
    }

    /// Processes a part of the conversation or generates one token. Returns whether the generation is finished.
    pub(super) fn step(&mut self, engine: &mut StepEngine) -> bool {
        match self.advance(engine) {
            Ok(is_finished) => is_finished,
            Err(why) => {
                self.fail(why);
                true
            }
        }
    }

    fn advance(&mut self, engine: &mut StepEngine) -> Result<bool, String> {
        let count = engine.max_step_tokens.min(self.pending.len());
        let tokens: Vec<u32> = self.pending.drain(..count).collect();
        let logits = (engine.step)(&mut self.state, &tokens)?;
        if !self.pending.is_empty() {
            return Ok(false);
        }
        let token = self.sampler.sample_token(logits, self.prompt_tokens + self.answer_tokens)?;
        if self.limits.end_tokens.contains(&token) {
            return Ok(self.end(Finish::Stop));
        }
        self.answer_tokens += 1;
        self.pending.push(token);
        match self.detokenizer.as_mut().map(|detokenizer| detokenizer.push(token)).transpose()? {
            Some(DecodedText::Final(text)) => {
                self.send_text(text);
                // Text held back after a stop text is not part of the answer.
                self.detokenizer = None;
                return Ok(self.end(Finish::Stop));
            }
            Some(DecodedText::Partial(text)) => self.send_text(text),
            None => {}
        }
        if self.answer_tokens >= self.limits.max_tokens { Ok(self.end(Finish::Length)) } else { Ok(false) }
    }

    /// Sends held-back text and the end.
    fn end(&mut self, finish: Finish) -> bool {
        match self.detokenizer.take().map(Detokenizer::finish).transpose() {
            Ok(text) => self.send_text(text.unwrap_or_default()),
            Err(why) => {
                self.fail(why);
                return true;
            }
        }
        let (prompt_tokens, completion_tokens) = (self.prompt_tokens, self.answer_tokens);
        self.send(Ok(Piece::End { finish, prompt_tokens, completion_tokens }));
        true
    }

    fn send_text(&self, text: String) {
        if !text.is_empty() {
            self.send(Ok(Piece::Text(text)));
        }
    }

    /// Ends the generation with an error.
    pub(super) fn fail(&self, why: String) {
        self.send(Err(InferenceError::Failed(why)));
    }

    fn send(&self, piece: Result<Piece, InferenceError>) {
        // The channel has capacity for every piece, so this fails only if the stream was dropped.
        drop(self.pieces.try_send(piece));
    }
}

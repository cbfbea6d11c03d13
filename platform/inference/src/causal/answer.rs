//! One answer in the making.

use super::{
    Prompt,
    decoder::{Engine, State},
    sampling::Sampler,
    text::{Spelled, Spelling},
};
use nerve_core::inference::{Finish, InferenceError, Piece};
use std::{collections::HashSet, sync::Arc};
use tokio::sync::mpsc::Sender;

/// Where an answer ends.
pub(super) struct Limits {
    /// The most tokens that are written.
    pub(super) budget: usize,
    /// Tokens that end it, and are no part of it.
    pub(super) ends: Arc<HashSet<u32>>,
}

/// An answer that waits, or is being written.
pub(super) struct Answer {
    state: State,
    /// What the model has not read yet: of the conversation, then the latest token.
    unread: Vec<u32>,
    prompt_tokens: usize,
    /// Tokens of the answer, with those that it began with.
    written: usize,
    limits: Limits,
    sampler: Sampler,
    spelling: Option<Spelling>,
    pieces: Sender<Result<Piece, InferenceError>>,
}

impl Answer {
    /// None where what is there of it already is all that it may have: then it is ended.
    pub(super) fn begin(
        prompt: Prompt,
        limits: Limits,
        sampler: Sampler,
        spelling: Spelling,
        pieces: Sender<Result<Piece, InferenceError>>,
    ) -> Option<Self> {
        let (prompt_tokens, written) = (prompt.asked(), prompt.begun);
        let state = State::default();
        let mut answer = Self {
            state,
            unread: prompt.ids,
            prompt_tokens,
            written,
            limits,
            sampler,
            spelling: Some(spelling),
            pieces,
        };
        if answer.written < answer.limits.budget {
            return Some(answer);
        }
        answer.end(Finish::Length);
        None
    }

    /// Whether nobody reads it any longer.
    pub(super) fn is_left(&self) -> bool {
        self.pieces.is_closed()
    }

    /// Has the model read some of the conversation, or write one token; whether the answer is over.
    pub(super) fn step(&mut self, engine: &mut Engine) -> bool {
        match self.advance(engine) {
            Ok(over) => over,
            Err(why) => {
                self.fail(why);
                true
            }
        }
    }

    fn advance(&mut self, engine: &mut Engine) -> Result<bool, String> {
        let count = engine.chunk.min(self.unread.len());
        let tokens: Vec<u32> = self.unread.drain(..count).collect();
        let logits = (engine.step)(&mut self.state, &tokens)?;
        if !self.unread.is_empty() {
            return Ok(false);
        }
        let token = self.sampler.choose(logits, self.prompt_tokens + self.written)?;
        if self.limits.ends.contains(&token) {
            return Ok(self.end(Finish::Stop));
        }
        self.written += 1;
        self.unread.push(token);
        match self.spelling.as_mut().map(|spelling| spelling.push(token)).transpose()? {
            Some(Spelled::Ends(text)) => {
                self.tell(text);
                // What was held back is no part of the answer.
                self.spelling = None;
                return Ok(self.end(Finish::Stop));
            }
            Some(Spelled::Goes(text)) => self.tell(text),
            None => {}
        }
        if self.written >= self.limits.budget { Ok(self.end(Finish::Length)) } else { Ok(false) }
    }

    /// Tells what was held back, and the end.
    fn end(&mut self, finish: Finish) -> bool {
        match self.spelling.take().map(Spelling::finish).transpose() {
            Ok(text) => self.tell(text.unwrap_or_default()),
            Err(why) => {
                self.fail(why);
                return true;
            }
        }
        let (prompt_tokens, completion_tokens) = (self.prompt_tokens, self.written);
        self.send(Ok(Piece::End { finish, prompt_tokens, completion_tokens }));
        true
    }

    fn tell(&self, text: String) {
        if !text.is_empty() {
            self.send(Ok(Piece::Text(text)));
        }
    }

    /// Ends it without an answer.
    pub(super) fn fail(&self, why: String) {
        self.send(Err(InferenceError::Failed(why)));
    }

    fn send(&self, piece: Result<Piece, InferenceError>) {
        // There is room for a piece a token; a reader that has left wants none.
        drop(self.pieces.try_send(piece));
    }
}

//! Causal language models: a conversation in, what the model writes out, as it writes it.
//!
//! # Layout
//! - `layout`, `template`: what the model's folder says: how its graph is fed, and how a conversation reads for it. `renderer`:
//!   helper processes that render conversations.
//! - `decoder`: one step of the graph, and the cache that it leaves for the next.
//! - `sampling`: the next token. `text`: tokens to text, whole characters, up to a text that ends it.
//! - `answer`: one answer in the making. `line`: those that wait, and the thread that writes a few by turns.

mod answer;
mod decoder;
pub(crate) mod layout;
mod line;
mod renderer;
mod sampling;
mod template;
#[cfg(test)]
mod tests;
mod text;

use crate::{blocking::off_thread, engine::MakeEngine, files::FolderError, session::Recipe};
use answer::{Answer, Limits};
use decoder::{Decoder, Engine};
use futures::{Stream, StreamExt};
use layout::CausalLayout;
use line::Line;
use nerve_core::inference::{GenerateRequest, InferenceError, Message, Piece};
use nerve_sandbox::Pool;
pub use renderer::CHAT_TEMPLATES;
use renderer::Renderer;
use sampling::Sampler;
use std::{collections::HashSet, path::Path, sync::Arc};
use template::{ChatTemplate, Template};
use text::Spelling;
use tokenizers::Tokenizer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::TaskTracker;

/// Answers that wait for one model or are written by it.
const ANSWERS: usize = 32;
/// The longest conversation, in bytes; what is longer is not tokenised.
const LARGEST: usize = 1 << 20;
/// Tokens before an answer that is gone on with, which decide how its next one is spelled.
const CONTEXT: usize = 8;

/// A loaded causal language model.
pub(crate) struct CausalModel {
    tokenizer: Arc<Tokenizer>,
    renderer: Renderer,
    /// The most tokens of conversation and answer together.
    window: usize,
    /// Tokens that end an answer.
    ends: Arc<HashSet<u32>>,
    penalty: f32,
    line: Arc<Line>,
    slots: Arc<Semaphore>,
    answers: usize,
}

/// Compiles a chat template, and renders a conversation in which the texts `special` are tokens.
pub(crate) fn render_chat_template(source: &str, messages: &[Message], special: &[String]) -> Result<String, String> {
    let (asked, begun) = Template::compile(&ChatTemplate::of(source))?.prompt(messages, special)?;
    Ok(asked + &begun)
}

/// What a causal language model is made of.
pub(crate) struct CausalParts<'p> {
    pub(crate) name: &'p str,
    pub(crate) root: &'p Path,
    pub(crate) layout: CausalLayout,
    /// Answers that wait or are written.
    pub(crate) queue: usize,
    /// The most tokens of a conversation that are kept in memory.
    pub(crate) context: usize,
    /// Helper processes that render conversations; none where this process is one.
    pub(crate) helpers: Option<&'p Pool>,
}

/// A conversation as the model reads it.
struct Prompt {
    /// All of it, with what is there of the answer already.
    ids: Vec<u32>,
    /// How many of them are the answer's.
    begun: usize,
}

impl Prompt {
    /// Tokens before the answer.
    fn asked(&self) -> usize {
        self.ids.len() - self.begun
    }
}

impl CausalModel {
    /// Loads the tokenizer and the graph, and runs a few tokens through it.
    pub(crate) fn load(parts: CausalParts<'_>, recipe: Recipe, tasks: &TaskTracker) -> Result<Self, FolderError> {
        let graph = Arc::new(parts.layout.graph.clone());
        let make: Arc<MakeEngine<Engine>> =
            Arc::new(move || Decoder::open(&recipe, graph.clone()).map(Decoder::into_engine));
        Self::with_engine(parts, tasks, make)
    }

    /// A model whose every step an engine of `make` takes.
    fn with_engine(
        parts: CausalParts<'_>,
        tasks: &TaskTracker,
        make: Arc<MakeEngine<Engine>>,
    ) -> Result<Self, FolderError> {
        let CausalParts { name, root, layout, queue, context, helpers } = parts;
        let file = root.join("tokenizer.json");
        let wrong = |error: &dyn std::fmt::Display| FolderError(format!("{} cannot be used: {error}", file.display()));
        let mut tokenizer = Tokenizer::from_file(&file).map_err(|error| wrong(&error))?;
        tokenizer.with_truncation(None).map_err(|error| wrong(&error))?;
        tokenizer.with_padding(None);
        let end = layout.template.eos_token().and_then(|token| tokenizer.token_to_id(token));
        let ends: HashSet<u32> = layout.ends.iter().copied().chain(end).collect();
        if ends.is_empty() {
            return Err(wrong(&"it has not the token that ends a text (eos_token in tokenizer_config.json)"));
        }
        let added = tokenizer.get_added_tokens_decoder();
        let special = added.into_values().filter(|token| token.special && !token.content.is_empty());
        let special = special.map(|token| token.content).collect();
        let renderer = Renderer::new(name, layout.template, special, helpers).map_err(FolderError)?;
        let answers = queue.clamp(1, ANSWERS);
        Ok(Self {
            tokenizer: Arc::new(tokenizer),
            renderer,
            window: layout.window.min(context),
            ends: Arc::new(ends),
            penalty: layout.penalty,
            line: Line::start(name, tasks, make).map_err(FolderError)?,
            slots: Arc::new(Semaphore::new(answers)),
            answers,
        })
    }

    /// What the model writes, as it writes it. Dropping the stream ends the writing.
    pub(crate) async fn write(
        &self,
        request: GenerateRequest,
    ) -> Result<impl Stream<Item = Result<Piece, InferenceError>> + Send + use<>, InferenceError> {
        let slot = self.slots.clone().try_acquire_owned();
        let slot =
            slot.map_err(|_| InferenceError::Busy(format!("{} answers wait for this model already", self.answers)))?;
        let GenerateRequest { messages, max_tokens, sampling, stop } = request;
        sampling::check(&sampling).map_err(InferenceError::Invalid)?;
        let prompt = self.prompt(messages).await?;
        let budget = self.budget(prompt.asked(), max_tokens).map_err(InferenceError::Invalid)?;
        // A piece a token, and the end: so there is always room.
        let (sender, pieces) = mpsc::channel(budget.saturating_sub(prompt.begun) + 1);
        let context = prompt.ids.len() - CONTEXT.min(prompt.begun);
        let spelling = Spelling::new(self.tokenizer.clone(), prompt.ids.get(context..).unwrap_or_default(), stop);
        let sampler = Sampler::new(sampling, self.penalty, &prompt.ids);
        let limits = Limits { budget, ends: self.ends.clone() };
        if let Some(answer) = Answer::begin(prompt, limits, sampler, spelling, sender) {
            self.line.push(answer);
        }
        Ok(stream(pieces, slot))
    }

    /// Tokenises a text by itself.
    pub(crate) fn tokenise(&self, text: &str) -> Result<(), String> {
        let encoding = self.tokenizer.encode(text, false);
        encoding.map(drop).map_err(|error| format!("the text cannot be tokenised: {error}"))
    }

    /// The tokens of a conversation, up to where the model goes on.
    async fn prompt(&self, messages: Vec<Message>) -> Result<Prompt, InferenceError> {
        let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        if bytes > LARGEST {
            return Err(InferenceError::Invalid(format!(
                "the conversation has {bytes} bytes: at most {LARGEST} are read"
            )));
        }
        let rendered = self.renderer.prompt(&messages).await?;
        let tokenizer = self.tokenizer.clone();
        let tokenise = move |(asked, begun): &(String, String)| {
            let encode = |text: &str| {
                let encoding = tokenizer.encode(text, false);
                encoding.map_err(|error| format!("the text cannot be tokenised: {error}"))
            };
            let ids = encode(asked)?.get_ids().to_vec();
            if begun.is_empty() {
                return Ok(Prompt { ids, begun: 0 });
            }
            let all = encode(&format!("{asked}{begun}"))?.get_ids().to_vec();
            Ok(Prompt { begun: all.len().saturating_sub(ids.len()), ids: all })
        };
        let length = |(asked, begun): &(String, String)| asked.len() + begun.len();
        let mut one = off_thread(vec![rendered], length, tokenise).await?;
        let said = one.pop().filter(|prompt| !prompt.ids.is_empty());
        said.ok_or_else(|| InferenceError::Invalid("the conversation has no message".to_owned()))
    }

    /// The tokens that an answer may have after as many of a conversation.
    fn budget(&self, asked: usize, wanted: Option<usize>) -> Result<usize, String> {
        let left = self.window.saturating_sub(asked);
        match wanted {
            Some(0) => Err("max_tokens is 0: an answer has at least one token".to_owned()),
            _ if left == 0 => Err(format!(
                "the conversation has {asked} tokens, and with its answer it may have {}: say less, or raise \
                 onnx.context where the model reads more",
                self.window
            )),
            wanted => Ok(wanted.unwrap_or(left).min(left)),
        }
    }
}

#[cfg(test)]
impl CausalModel {
    fn line_is_busy(&self) -> bool {
        self.slots.available_permits() < self.answers
    }
}

impl Drop for CausalModel {
    fn drop(&mut self) {
        self.line.close();
    }
}

/// The pieces of one answer, to its end.
fn stream(
    pieces: mpsc::Receiver<Result<Piece, InferenceError>>,
    slot: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Piece, InferenceError>> + Send {
    futures::stream::unfold(Some((pieces, slot)), |open| async move {
        let (mut pieces, slot) = open?;
        let ended = || InferenceError::Unavailable("the model is being closed".to_owned());
        let piece = pieces.recv().await.unwrap_or_else(|| Err(ended()));
        let over = matches!(piece, Err(_) | Ok(Piece::End { .. }));
        Some((piece, (!over).then_some((pieces, slot))))
    })
    .fuse()
}

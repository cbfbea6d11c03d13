//! Causal language models: streamed generation for conversations.
//!
//! # Layout
//! - `spec`, `template`: graph inputs and chat template, from the model's folder. `renderer`: helper processes that
//!   render conversations.
//! - `decoder`: one decoding step with its key-value cache.
//! - `sampling`: selects the next token. `detokenizer`: decodes tokens to text and detects stop texts.
//! - `generation`: state of one generation. `scheduler`: the thread that interleaves generations.

mod decoder;
mod detokenizer;
mod generation;
mod renderer;
mod sampling;
mod scheduler;
pub(crate) mod spec;
mod template;
#[cfg(test)]
mod tests;

use crate::{blocking::run_cpu_bound, engine::EngineFactory, files::ModelError, session::SessionConfig};
use decoder::{Decoder, StepEngine};
use detokenizer::Detokenizer;
use futures::{Stream, StreamExt};
use generation::{Generation, GenerationLimits};
use nerve_core::inference::{GenerateRequest, InferenceError, Message, Piece};
use nerve_sandbox::Pool;
pub use renderer::CHAT_TEMPLATES;
use renderer::Renderer;
use sampling::Sampler;
use scheduler::Scheduler;
use spec::CausalSpec;
use std::{collections::HashSet, path::Path, sync::Arc};
use template::{ChatTemplate, Template};
use tokenizers::Tokenizer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::TaskTracker;

/// Maximum number of queued and running generations per model.
const MAX_GENERATIONS: usize = 32;
/// Maximum size of a conversation in bytes.
const MAX_CONVERSATION_BYTES: usize = 1 << 20;
/// Number of tokens before a resumed answer that determine how its next token is decoded.
const RESUME_CONTEXT_TOKENS: usize = 8;

/// A loaded causal language model.
pub(crate) struct CausalModel {
    tokenizer: Arc<Tokenizer>,
    renderer: Renderer,
    /// Maximum number of tokens of a conversation with its answer.
    window: usize,
    /// End-of-text tokens.
    end_tokens: Arc<HashSet<u32>>,
    penalty: f32,
    scheduler: Arc<Scheduler>,
    slots: Arc<Semaphore>,
    max_generations: usize,
}

/// Compiles a chat template and renders a conversation; texts in `special` are special tokens.
pub(crate) fn render_chat_template(source: &str, messages: &[Message], special: &[String]) -> Result<String, String> {
    let (conversation, partial) = Template::compile(&ChatTemplate::of(source))?.prompt(messages, special)?;
    Ok(conversation + &partial)
}

/// Parts of a causal language model.
pub(crate) struct CausalParts<'p> {
    pub(crate) name: &'p str,
    pub(crate) root: &'p Path,
    pub(crate) spec: CausalSpec,
    /// Maximum number of queued and running generations.
    pub(crate) queue: usize,
    /// Maximum number of tokens of a conversation that are kept in memory.
    pub(crate) context: usize,
    /// Helper processes that render conversations; `None` to render in this process.
    pub(crate) helpers: Option<&'p Pool>,
}

/// A tokenized conversation.
struct Prompt {
    /// All tokens, including the existing part of the answer.
    ids: Vec<u32>,
    /// Number of tokens of the existing part of the answer.
    resumed_tokens: usize,
}

impl Prompt {
    /// Number of tokens before the answer.
    fn conversation_tokens(&self) -> usize {
        self.ids.len() - self.resumed_tokens
    }
}

impl CausalModel {
    /// Loads the tokenizer and the graph, and probes the graph with a few tokens.
    pub(crate) fn load(
        parts: CausalParts<'_>,
        session_config: SessionConfig,
        tasks: &TaskTracker,
    ) -> Result<Self, ModelError> {
        let graph = Arc::new(parts.spec.graph.clone());
        let factory: Arc<EngineFactory<StepEngine>> =
            Arc::new(move || Decoder::open(&session_config, graph.clone()).map(Decoder::into_engine));
        Self::with_engine(parts, tasks, factory)
    }

    /// A model that runs on engines from `make`.
    fn with_engine(
        parts: CausalParts<'_>,
        tasks: &TaskTracker,
        factory: Arc<EngineFactory<StepEngine>>,
    ) -> Result<Self, ModelError> {
        let CausalParts { name, root, spec, queue, context, helpers } = parts;
        let file = root.join("tokenizer.json");
        let unusable =
            |error: &dyn std::fmt::Display| ModelError(format!("{} cannot be used: {error}", file.display()));
        let mut tokenizer = Tokenizer::from_file(&file).map_err(|error| unusable(&error))?;
        tokenizer.with_truncation(None).map_err(|error| unusable(&error))?;
        tokenizer.with_padding(None);
        let end = spec.template.eos_token().and_then(|token| tokenizer.token_to_id(token));
        let end_tokens: HashSet<u32> = spec.end_tokens.iter().copied().chain(end).collect();
        if end_tokens.is_empty() {
            return Err(unusable(&"it has no end-of-text token (eos_token in tokenizer_config.json)"));
        }
        let added = tokenizer.get_added_tokens_decoder();
        let special = added.into_values().filter(|token| token.special && !token.content.is_empty());
        let special = special.map(|token| token.content).collect();
        let renderer = Renderer::new(name, spec.template, special, helpers).map_err(ModelError)?;
        let max_generations = queue.clamp(1, MAX_GENERATIONS);
        Ok(Self {
            tokenizer: Arc::new(tokenizer),
            renderer,
            window: spec.window.min(context),
            end_tokens: Arc::new(end_tokens),
            penalty: spec.penalty,
            scheduler: Scheduler::start(name, tasks, factory).map_err(ModelError)?,
            slots: Arc::new(Semaphore::new(max_generations)),
            max_generations,
        })
    }

    /// Streams generated text. Dropping the stream stops the generation.
    pub(crate) async fn generate(
        &self,
        request: GenerateRequest,
    ) -> Result<impl Stream<Item = Result<Piece, InferenceError>> + Send + use<>, InferenceError> {
        let slot = self.slots.clone().try_acquire_owned();
        let slot = slot.map_err(|_| {
            InferenceError::Busy(format!(
                "queue full: {} generations are queued for this model (`onnx.queue` in the settings, at most 32)",
                self.max_generations
            ))
        })?;
        let GenerateRequest { messages, max_tokens, sampling, stop } = request;
        sampling::check(&sampling).map_err(InferenceError::Invalid)?;
        let prompt = self.prompt(messages).await?;
        let max_answer_tokens =
            self.max_answer_tokens(prompt.conversation_tokens(), max_tokens).map_err(InferenceError::Invalid)?;
        // Capacity for one piece per token and the end, so sending never blocks.
        let (sender, pieces) = mpsc::channel(max_answer_tokens.saturating_sub(prompt.resumed_tokens) + 1);
        let context = prompt.ids.len() - RESUME_CONTEXT_TOKENS.min(prompt.resumed_tokens);
        let detokenizer = Detokenizer::new(self.tokenizer.clone(), prompt.ids.get(context..).unwrap_or_default(), stop);
        let sampler = Sampler::new(sampling, self.penalty, &prompt.ids);
        let limits = GenerationLimits { max_tokens: max_answer_tokens, end_tokens: self.end_tokens.clone() };
        if let Some(generation) = Generation::new(prompt, limits, sampler, detokenizer, sender) {
            self.scheduler.push(generation);
        }
        Ok(stream(pieces, slot))
    }

    /// Tokenizes a text.
    pub(crate) fn tokenize(&self, text: &str) -> Result<(), String> {
        let encoding = self.tokenizer.encode(text, false);
        encoding.map(drop).map_err(|error| format!("the text cannot be tokenized: {error}"))
    }

    /// Tokenizes a conversation up to the point where the model continues.
    async fn prompt(&self, messages: Vec<Message>) -> Result<Prompt, InferenceError> {
        let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        if bytes > MAX_CONVERSATION_BYTES {
            return Err(InferenceError::Invalid(format!(
                "the conversation has {bytes} bytes, more than the limit of {MAX_CONVERSATION_BYTES}"
            )));
        }
        let rendered = self.renderer.prompt(&messages).await?;
        let tokenizer = self.tokenizer.clone();
        let tokenize = move |(conversation, partial): &(String, String)| {
            let encode = |text: &str| {
                let encoding = tokenizer.encode(text, false);
                encoding.map_err(|error| format!("the text cannot be tokenized: {error}"))
            };
            let ids = encode(conversation)?.get_ids().to_vec();
            if partial.is_empty() {
                return Ok(Prompt { ids, resumed_tokens: 0 });
            }
            let all = encode(&format!("{conversation}{partial}"))?.get_ids().to_vec();
            Ok(Prompt { resumed_tokens: all.len().saturating_sub(ids.len()), ids: all })
        };
        let length = |(conversation, partial): &(String, String)| conversation.len() + partial.len();
        let mut prompts = run_cpu_bound(vec![rendered], length, tokenize).await?;
        let tokenized = prompts.pop().filter(|prompt| !prompt.ids.is_empty());
        tokenized.ok_or_else(|| InferenceError::Invalid("the conversation has no message".to_owned()))
    }

    /// Maximum number of tokens of the answer, given the number of tokens of the conversation.
    fn max_answer_tokens(&self, conversation_tokens: usize, requested: Option<usize>) -> Result<usize, String> {
        let available = self.window.saturating_sub(conversation_tokens);
        match requested {
            Some(0) => Err("max_tokens is 0: it must be at least 1".to_owned()),
            _ if available == 0 => Err(format!(
                "the conversation has {conversation_tokens} tokens, but with its answer it may have at most {}: shorten it, or \
                 raise onnx.context if the model supports more",
                self.window
            )),
            requested => Ok(requested.unwrap_or(available).min(available)),
        }
    }
}

#[cfg(test)]
impl CausalModel {
    fn scheduler_is_busy(&self) -> bool {
        self.slots.available_permits() < self.max_generations
    }
}

impl Drop for CausalModel {
    fn drop(&mut self) {
        self.scheduler.close();
    }
}

/// The stream of one generation's pieces.
fn stream(
    pieces: mpsc::Receiver<Result<Piece, InferenceError>>,
    slot: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Piece, InferenceError>> + Send {
    futures::stream::unfold(Some((pieces, slot)), |open| async move {
        let (mut pieces, slot) = open?;
        let closed = || InferenceError::Unavailable("the model is closing".to_owned());
        let piece = pieces.recv().await.unwrap_or_else(|| Err(closed()));
        let is_end = matches!(piece, Err(_) | Ok(Piece::End { .. }));
        Some((piece, (!is_end).then_some((pieces, slot))))
    })
    .fuse()
}

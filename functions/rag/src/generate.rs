//! `rag/generate`: `documents.retrieved` or `documents.reranked` → `answer.generated`, and parts of the answer before
//! it.
//!
//! # Layout
//! - `extractive`: quotes sentences, without a language model.
//! - `endpoint`: calls an OpenAI-compatible endpoint.
//! - `publisher`: publishes parts of the answer. `prompt`: builds the prompt. `streamed_answer`: tracks the text and citations while the model writes.

mod endpoint;
mod extractive;
mod prompt;
mod publisher;
mod streamed_answer;

use crate::{
    extractive::{AnswerLimits, NO_ANSWER},
    function::{FunctionContext, inference_failed, invalid},
    usage::UsageTracker,
};
use async_trait::async_trait;
pub(crate) use endpoint::{Endpoint, check_url as check_endpoint_url, piece_stream as read_stream};
pub(crate) use extractive::ExtractiveBackend;
use futures::{StreamExt, future::join_all, stream::BoxStream};
use nerve_core::{
    Context, Event, Fault, Function, FunctionError, Inference, Outcome, answer,
    inference::{Finish, GenerateRequest, Model, Piece, Sampling},
};
use nerve_events::{
    answers::{AnswerGenerated, Citation, ContextDocument, Usage},
    documents::DEFAULT_COLLECTION,
    retrieval::{ConversationHistory, DocumentsReranked, Hit, Message, ModelOptions, QuestionParameters, StopTexts},
};
use publisher::AnswerPublisher;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// `with` of `rag/generate`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct GenerateOptions {
    /// Extractive answers: maximum number of sentences.
    pub(crate) sentences: usize,
    /// Extractive answers: minimum score of the best sentence, from 0 to 1.
    pub(crate) threshold: f32,
    /// URL of an OpenAI-compatible endpoint, up to and including `/v1`.
    pub(crate) endpoint: Option<String>,
    /// Model to request from the endpoint.
    pub(crate) chat_model: Option<String>,
    /// System prompt of a language model.
    pub(crate) system: String,
    /// Maximum number of documents in the prompt.
    pub(crate) documents: usize,
    /// Maximum number of tokens in the answer.
    pub(crate) max_tokens: usize,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    pub(crate) top_k: usize,
    pub(crate) seed: Option<u64>,
    pub(crate) stop: Vec<String>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            sentences: 3,
            threshold: 0.4,
            endpoint: None,
            chat_model: None,
            system: prompt::DEFAULT_SYSTEM_PROMPT.to_owned(),
            documents: 5,
            max_tokens: 512,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            seed: None,
            stop: Vec::new(),
        }
    }
}

impl GenerateOptions {
    pub(crate) fn limits(&self) -> AnswerLimits {
        AnswerLimits { sentences: self.sentences, threshold: self.threshold }
    }

    /// Checks the range of each option.
    ///
    /// # Errors
    /// Names the first option that is out of range.
    pub(crate) fn check(&self) -> Result<(), String> {
        let bounds = [
            ((1..=20).contains(&self.sentences), format!("`sentences` is {}: it must be from 1 to 20", self.sentences)),
            ((0.0..=1.0).contains(&self.threshold), "`threshold` must be from 0 to 1".to_owned()),
            ((1..=50).contains(&self.documents), format!("`documents` is {}: it must be from 1 to 50", self.documents)),
            (
                (1..=32_768).contains(&self.max_tokens),
                format!("`max_tokens` is {}: it must be from 1 to 32768", self.max_tokens),
            ),
            ((0.0..=2.0).contains(&self.temperature), "`temperature` must be from 0 to 2".to_owned()),
            ((0.0..=1.0).contains(&self.top_p), "`top_p` must be from 0 to 1".to_owned()),
            (self.stop.len() <= 8, "`stop` has more than 8 entries".to_owned()),
            (
                self.chat_model.is_some() == self.endpoint.is_some(),
                "`endpoint` and `chat_model` must be set together: the model's URL and name".to_owned(),
            ),
        ];
        let wrong = bounds.into_iter().find(|(right, _)| !right).map(|(_, why)| why);
        wrong.map_or_else(|| self.endpoint.as_deref().map_or(Ok(()), endpoint::check_url), Err)
    }
}

/// Backend that generates answers.
pub(crate) enum AnswerBackend {
    /// Quotes the documents.
    Extractive(ExtractiveBackend),
    /// A remote model.
    Endpoint(Endpoint),
    /// A local model.
    Local { inference: Arc<dyn Inference>, model: Model },
}

/// The loaded function.
pub(crate) struct Generator {
    pub(crate) context: FunctionContext,
    pub(crate) backend: AnswerBackend,
    pub(crate) options: GenerateOptions,
}

/// A question with its documents.
pub(crate) struct GenerateInput {
    question: String,
    documents: Vec<Hit>,
    /// Earlier messages, supplied by the caller.
    messages: Vec<Message>,
    /// Memory of the conversation.
    history: Option<ConversationHistory>,
    /// Options of the caller that override `with`.
    options: ModelOptions,
    /// What else the caller gave, passed through.
    parameters: QuestionParameters,
    /// Other fields of the event, passed through.
    rest: Map<String, Value>,
}

impl GenerateInput {
    /// Reads an event, with at most `limit` of its documents.
    ///
    /// # Errors
    /// Names what cannot be read.
    fn read(event: &Event, limit: usize) -> Result<Self, String> {
        let data: DocumentsReranked = serde_json::from_slice(&event.data).map_err(|error| error.to_string())?;
        let DocumentsReranked { question, mut parameters, history, weights, mut documents, mut rest, .. } = data;
        documents.truncate(limit);
        Hit::complete(&mut documents);
        AnswerGenerated::remove_own_fields(&mut rest);
        if let Some(weights) = weights {
            rest.insert("weights".to_owned(), json!(weights));
        }
        let messages: Option<Vec<Message>> = parsed("messages", parameters.messages.take().map(Value::Array))?;
        let options = parsed("options", parameters.options.take().map(Value::Object))?;
        let history = parsed("history", history)?;
        let (messages, options) = (messages.unwrap_or_default(), options.unwrap_or_default());
        Ok(Self { question, documents, messages, history, options, parameters, rest })
    }

    /// Collection of the question.
    fn collection(&self) -> &str {
        self.parameters.collection.as_deref().unwrap_or(DEFAULT_COLLECTION)
    }
}

/// Parses a field that other steps pass through unread.
fn parsed<T: DeserializeOwned>(name: &str, value: Option<Value>) -> Result<Option<T>, String> {
    let parse = |value| serde_json::from_value(value).map_err(|error| format!("`{name}`: {error}"));
    value.map(parse).transpose()
}

/// An answer, from any backend.
pub(crate) struct GeneratedAnswer {
    answer: String,
    answered: bool,
    confidence: Option<f32>,
    citations: Vec<Citation>,
    finish: Option<Finish>,
    usage: Option<Usage>,
}

/// Stream of a language model's output.
type PieceStream = BoxStream<'static, Result<Piece, FunctionError>>;

#[async_trait]
impl Function for Generator {
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        let usage = UsageTracker::of(&context);
        let each = batch.iter().enumerate().map(|(index, event)| {
            let publisher = AnswerPublisher { context: &self.context, emitter: context.emitter.as_ref(), index };
            self.context.with_timeout(self.generate(event, publisher, &usage))
        });
        join_all(each).await
    }
}

impl Generator {
    async fn generate(&self, event: &Event, publisher: AnswerPublisher<'_>, usage: &UsageTracker) -> Outcome {
        let input = GenerateInput::read(event, self.options.documents);
        let input = input.map_err(|why| invalid(format!("its data is not a question with documents: {why}")))?;
        let answer = match &self.backend {
            AnswerBackend::Extractive(extractor) => extractor.answer(&input, self.options.limits(), &publisher).await?,
            _ if input.documents.is_empty() => {
                publisher.text(NO_ANSWER).await?;
                GeneratedAnswer::no_answer()
            }
            _ => {
                let collection = input.collection();
                usage.check_tokens(collection).await?;
                let answer = self.generate_with_model(&input, &publisher).await?;
                usage.count_tokens(collection, answer.usage.unwrap_or_default().total()).await;
                answer
            }
        };
        self.context.output(event, &self.generated(input, answer))
    }

    /// Generates with a language model, resuming after the parts that an earlier attempt published.
    async fn generate_with_model(
        &self,
        input: &GenerateInput,
        publisher: &AnswerPublisher<'_>,
    ) -> Result<GeneratedAnswer, FunctionError> {
        let published = publisher.emitter.emitted(publisher.index).await?;
        let mut partial = streamed_answer::StreamedAnswer::resumed(&input.documents, &published);
        let mut request = self.request(input, partial.text());
        // An endpoint cannot count the tokens of an earlier attempt; each published piece counts as one.
        let earlier = match &self.backend {
            AnswerBackend::Endpoint(_) => published.iter().filter(|output| output.ty.as_str() == answer::TOKEN).count(),
            _ => 0,
        };
        request.max_tokens = request.max_tokens.map(|max_tokens| max_tokens.saturating_sub(earlier).max(1));
        let mut piece_stream = self.piece_stream(request, !partial.text().is_empty()).await?;
        while let Some(piece) = piece_stream.next().await {
            match piece? {
                Piece::Text(text) => {
                    publisher.text(&text).await?;
                    for citation in partial.add(&text) {
                        publisher.citation(&citation).await?;
                    }
                }
                Piece::End { finish, prompt_tokens, completion_tokens } => {
                    let completion_tokens = earlier + completion_tokens;
                    return Ok(partial.finish(finish, Usage { prompt_tokens, completion_tokens }));
                }
            }
        }
        Err(FunctionError::new(Fault::Retry { after: None }, "the model stopped before the end of its answer"))
    }

    async fn piece_stream(&self, request: GenerateRequest, resumed: bool) -> Result<PieceStream, FunctionError> {
        match &self.backend {
            AnswerBackend::Endpoint(endpoint) => endpoint.generate(request, resumed).await,
            AnswerBackend::Local { inference, model } => {
                let piece_stream =
                    inference.generate(model, request).await.map_err(|error| inference_failed(&error))?;
                Ok(piece_stream.map(|piece| piece.map_err(|error| inference_failed(&error))).boxed())
            }
            AnswerBackend::Extractive(_) => Err(invalid("the extractive backend does not generate text")),
        }
    }

    fn request(&self, input: &GenerateInput, partial: &str) -> GenerateRequest {
        let (defaults, overrides) = (&self.options, &input.options);
        let stop = match &overrides.stop {
            None => defaults.stop.clone(),
            Some(StopTexts::One(one)) => vec![one.clone()],
            Some(StopTexts::Many(many)) => many.iter().take(8).cloned().collect(),
        };
        let max_tokens = overrides.max_completion_tokens.or(overrides.max_tokens);
        GenerateRequest {
            messages: prompt::messages(&defaults.system, input, partial),
            max_tokens: Some(max_tokens.unwrap_or(defaults.max_tokens).clamp(1, defaults.max_tokens)),
            sampling: Sampling {
                temperature: overrides.temperature.unwrap_or(defaults.temperature).clamp(0.0, 2.0),
                top_p: overrides.top_p.unwrap_or(defaults.top_p).clamp(0.0, 1.0),
                top_k: defaults.top_k,
                seed: overrides.seed.or(defaults.seed).unwrap_or_default(),
            },
            stop,
        }
    }

    fn generated(&self, input: GenerateInput, answer: GeneratedAnswer) -> AnswerGenerated {
        let GeneratedAnswer { answer, answered, confidence, citations, finish, usage } = answer;
        AnswerGenerated {
            question: Some(input.question),
            parameters: input.parameters,
            answer,
            answered,
            confidence,
            citations,
            context: input.documents.iter().map(context_document).collect(),
            generator: Some(self.backend.name()),
            finish: finish.map(|finish| finish_name(finish).to_owned()),
            usage,
            rest: input.rest,
        }
    }
}

/// A document as the generator was given it.
fn context_document(hit: &Hit) -> ContextDocument {
    // The score with its own digits, of which a conversion to f64 would add some.
    let score: Option<f64> = hit.score.to_string().parse().ok();
    let rest = Map::from_iter([("name".to_owned(), json!(hit.name)), ("score".to_owned(), json!(score))]);
    ContextDocument { chunk: hit.id.clone(), source: hit.document.clone(), rest }
}

fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

impl GeneratedAnswer {
    /// The answer if no document was retrieved.
    fn no_answer() -> Self {
        let answer = NO_ANSWER.to_owned();
        Self { answer, answered: false, confidence: None, citations: Vec::new(), finish: None, usage: None }
    }
}

impl AnswerBackend {
    fn name(&self) -> String {
        match self {
            Self::Extractive(_) => "extractive".to_owned(),
            Self::Endpoint(endpoint) => endpoint.model().to_owned(),
            Self::Local { model, .. } => model.name.clone(),
        }
    }
}

/// Event types that this function emits in addition to its result.
pub(crate) const AUXILIARY_OUTPUTS: &[&str] = &[answer::TOKEN, answer::CITATION];

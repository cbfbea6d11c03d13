//! `rag/generate`: `documents.retrieved` or `documents.reranked` → `answer.generated`, and its parts meanwhile.
//!
//! # Layout
//! - `extractive`: quotes the sentences that answer. No language model.
//! - `endpoint`: any endpoint with OpenAI's chat completions.
//! - `prompt`: what a language model is asked. `writing`: what it writes, as parts of the answer.

mod endpoint;
mod extractive;
mod prompt;
mod writing;

use crate::{
    accounts::Accounts,
    extract::{Citation, Limits, NO_ANSWER},
    function::{Frame, inference_failed, invalid},
};
use async_trait::async_trait;
pub(crate) use endpoint::{Endpoint, check as check_endpoint, pieces as read_stream};
pub(crate) use extractive::Extractor;
use futures::{StreamExt, future::join_all, stream::BoxStream};
use nerve_core::{
    Context, Emission, Event, EventType, Fault, Function, FunctionError, Inference, Outcome, answer,
    function::Emitter,
    inference::{Finish, GenerateRequest, Message, Model, Piece, Sampling},
};
use nerve_index::{Hit, document::DEFAULT_COLLECTION};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc};

/// `with` of `rag/generate`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct GenerateOptions {
    /// Without a language model: the most sentences of an answer.
    pub(crate) sentences: usize,
    /// Without a language model: how much the best sentence must have to do with the question, from 0 to 1.
    pub(crate) threshold: f32,
    /// Where an endpoint with OpenAI's chat completions is, up to and with `/v1`.
    pub(crate) endpoint: Option<String>,
    /// The model to ask for there.
    pub(crate) chat_model: Option<String>,
    /// What a language model is told before anything else.
    pub(crate) system: String,
    /// Documents that a language model reads.
    pub(crate) documents: usize,
    /// The most tokens that a language model writes.
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
            system: prompt::SYSTEM.to_owned(),
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
    pub(crate) fn limits(&self) -> Limits {
        Limits { sentences: self.sentences, threshold: self.threshold }
    }

    /// Says which option is out of its bounds.
    pub(crate) fn check(&self) -> Result<(), String> {
        let bounds = [
            ((1..=20).contains(&self.sentences), format!("`sentences` is {}: from 1 to 20", self.sentences)),
            ((0.0..=1.0).contains(&self.threshold), "`threshold` must be from 0 to 1".to_owned()),
            ((1..=50).contains(&self.documents), format!("`documents` is {}: from 1 to 50", self.documents)),
            ((1..=32_768).contains(&self.max_tokens), format!("`max_tokens` is {}: from 1 to 32768", self.max_tokens)),
            ((0.0..=2.0).contains(&self.temperature), "`temperature` must be from 0 to 2".to_owned()),
            ((0.0..=1.0).contains(&self.top_p), "`top_p` must be from 0 to 1".to_owned()),
            (self.stop.len() <= 8, "`stop` has more than 8 texts".to_owned()),
            (
                self.chat_model.is_some() == self.endpoint.is_some(),
                "`endpoint` and `chat_model` go together: where the model is, and which".to_owned(),
            ),
        ];
        let wrong = bounds.into_iter().find(|(right, _)| !right).map(|(_, why)| why);
        wrong.map_or_else(|| self.endpoint.as_deref().map_or(Ok(()), endpoint::check), Err)
    }
}

/// Who makes the answers.
pub(crate) enum Writer {
    /// Quotes the documents.
    Extractive(Extractor),
    /// A model somewhere else.
    Endpoint(Endpoint),
    /// A model on this machine.
    Local { inference: Arc<dyn Inference>, model: Model },
}

/// The function, loaded.
pub(crate) struct Generator {
    pub(crate) frame: Frame,
    pub(crate) writer: Writer,
    pub(crate) options: GenerateOptions,
}

#[derive(Deserialize)]
pub(crate) struct Given {
    question: String,
    documents: Vec<Hit>,
    /// What was said before, where the caller has it.
    #[serde(default)]
    messages: Vec<Message>,
    /// What is remembered of the conversation.
    #[serde(default)]
    history: Option<crate::remember::History>,
    /// What the caller wants otherwise than nerve.toml.
    #[serde(default)]
    options: Overrides,
    /// Whatever else the prompt had goes along.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Given {
    /// The collection that is asked.
    fn collection(&self) -> String {
        let named = self.rest.get("collection").and_then(Value::as_str);
        named.unwrap_or(DEFAULT_COLLECTION).to_owned()
    }
}

/// Options as OpenAI's callers name them.
#[derive(Debug, Clone, Default, Deserialize)]
struct Overrides {
    temperature: Option<f32>,
    top_p: Option<f32>,
    #[serde(alias = "max_completion_tokens")]
    max_tokens: Option<usize>,
    seed: Option<u64>,
    stop: Option<Stop>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Many(Vec<String>),
}

/// What is published in the end.
#[derive(Debug, Serialize)]
pub(crate) struct Generated {
    question: String,
    answer: String,
    answered: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f32>,
    citations: Vec<Citation>,
    /// What the answer was made from, the best first.
    context: Vec<Source>,
    /// Who made it.
    generator: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish: Option<Finish>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A document that the answer was made from.
#[derive(Debug, Serialize)]
struct Source {
    chunk: String,
    source: String,
    name: String,
    score: f32,
}

/// Tokens of a language model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    #[serde(deserialize_with = "nerve_core::limits::count")]
    pub(crate) prompt_tokens: usize,
    #[serde(deserialize_with = "nerve_core::limits::count")]
    pub(crate) completion_tokens: usize,
}

/// An answer, however it was made.
pub(crate) struct Made {
    answer: String,
    answered: bool,
    confidence: Option<f32>,
    citations: Vec<Citation>,
    finish: Option<Finish>,
    usage: Option<Usage>,
}

/// What a language model writes, as it writes it.
type Pieces = BoxStream<'static, Result<Piece, FunctionError>>;

/// The way of one answer's parts to its readers.
pub(crate) struct Outlet<'c> {
    frame: &'c Frame,
    emitter: &'c dyn Emitter,
    index: usize,
}

impl Outlet<'_> {
    /// Publishes a part, where the manifest lets the function.
    async fn part<T: Serialize + Sync>(&self, ty: &'static str, data: &T) -> Result<(), FunctionError> {
        let Some(ty) = self.frame.side_event(ty) else { return Ok(()) };
        let data = serde_json::to_vec(data).map_err(|error| FunctionError::new(Fault::Crash, error.to_string()))?;
        let emission =
            Emission { ty: ty.clone(), data: data.into(), content_type: None, subject: None, partition_key: None };
        self.emitter.emit(self.index, emission).await
    }

    async fn text(&self, text: &str) -> Result<(), FunctionError> {
        self.part(answer::TOKEN, &BTreeMap::from([("text", text)])).await
    }

    async fn citation(&self, citation: &Citation) -> Result<(), FunctionError> {
        self.part(answer::CITATION, citation).await
    }
}

#[async_trait]
impl Function for Generator {
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        let accounts = Accounts::of(&context);
        let each = batch.iter().enumerate().map(|(index, event)| {
            let outlet = Outlet { frame: &self.frame, emitter: context.emitter.as_ref(), index };
            self.frame.within(self.generate(event, outlet, &accounts))
        });
        join_all(each).await
    }
}

impl Generator {
    async fn generate(&self, event: &Event, outlet: Outlet<'_>, accounts: &Accounts) -> Outcome {
        let given: Result<Given, _> = serde_json::from_slice(&event.data);
        let mut given =
            given.map_err(|error| invalid(format!("its data is not a question with documents: {error}")))?;
        given.documents.truncate(self.options.documents);
        let made = match &self.writer {
            Writer::Extractive(extractor) => extractor.answer(&given, self.options.limits(), &outlet).await?,
            _ if given.documents.is_empty() => {
                outlet.text(NO_ANSWER).await?;
                Made::none()
            }
            _ => {
                let collection = given.collection();
                accounts.check_tokens(&collection).await?;
                let made = self.write(&given, &outlet).await?;
                let usage = made.usage.unwrap_or_default();
                accounts.count_tokens(&collection, usage.prompt_tokens.saturating_add(usage.completion_tokens)).await;
                made
            }
        };
        self.frame.emission(event, &self.generated(given, made))
    }

    /// Has a language model write, going on where an earlier attempt was cut off.
    async fn write(&self, given: &Given, outlet: &Outlet<'_>) -> Result<Made, FunctionError> {
        let before = outlet.emitter.emitted(outlet.index).await?;
        let mut written = writing::Writing::resumed(&given.documents, &before);
        let mut request = self.request(given, written.text());
        // An endpoint does not know the tokens that it wrote before; a piece is one, as far as anybody tells.
        let earlier = match &self.writer {
            Writer::Endpoint(_) => before.iter().filter(|emission| emission.ty.as_str() == answer::TOKEN).count(),
            _ => 0,
        };
        request.max_tokens = request.max_tokens.map(|most| most.saturating_sub(earlier).max(1));
        let mut pieces = self.pieces(request, !written.text().is_empty()).await?;
        while let Some(piece) = pieces.next().await {
            match piece? {
                Piece::Text(text) => {
                    outlet.text(&text).await?;
                    for citation in written.add(&text) {
                        outlet.citation(&citation).await?;
                    }
                }
                Piece::End { finish, prompt_tokens, completion_tokens } => {
                    let completion_tokens = earlier + completion_tokens;
                    return Ok(written.finish(finish, Usage { prompt_tokens, completion_tokens }));
                }
            }
        }
        Err(FunctionError::new(Fault::Retry { after: None }, "the model stopped in the middle of its answer"))
    }

    async fn pieces(&self, request: GenerateRequest, resumed: bool) -> Result<Pieces, FunctionError> {
        match &self.writer {
            Writer::Endpoint(endpoint) => endpoint.write(request, resumed).await,
            Writer::Local { inference, model } => {
                let pieces = inference.generate(model, request).await.map_err(|error| inference_failed(&error))?;
                Ok(pieces.map(|piece| piece.map_err(|error| inference_failed(&error))).boxed())
            }
            Writer::Extractive(_) => Err(invalid("nothing writes here")),
        }
    }

    fn request(&self, given: &Given, written: &str) -> GenerateRequest {
        let (own, wanted) = (&self.options, &given.options);
        let stop = match &wanted.stop {
            None => own.stop.clone(),
            Some(Stop::One(one)) => vec![one.clone()],
            Some(Stop::Many(many)) => many.iter().take(8).cloned().collect(),
        };
        GenerateRequest {
            messages: prompt::messages(&own.system, given, written),
            max_tokens: Some(wanted.max_tokens.unwrap_or(own.max_tokens).clamp(1, own.max_tokens)),
            sampling: Sampling {
                temperature: wanted.temperature.unwrap_or(own.temperature).clamp(0.0, 2.0),
                top_p: wanted.top_p.unwrap_or(own.top_p).clamp(0.0, 1.0),
                top_k: own.top_k,
                seed: wanted.seed.or(own.seed).unwrap_or_default(),
            },
            stop,
        }
    }

    fn generated(&self, given: Given, made: Made) -> Generated {
        let Made { answer, answered, confidence, citations, finish, usage } = made;
        let source = |hit: &Hit| Source {
            chunk: hit.id.clone(),
            source: hit.document.clone(),
            name: hit.name.clone(),
            score: hit.score,
        };
        let mut rest = given.rest;
        for own in
            ["answer", "answered", "confidence", "citations", "context", "generator", "finish", "usage", "dropped"]
        {
            rest.remove(own);
        }
        Generated {
            question: given.question,
            answer,
            answered,
            confidence,
            citations,
            context: given.documents.iter().map(source).collect(),
            generator: self.writer.name(),
            finish,
            usage,
            rest,
        }
    }
}

impl Made {
    /// What is said where no document was found.
    fn none() -> Self {
        let answer = NO_ANSWER.to_owned();
        Self { answer, answered: false, confidence: None, citations: Vec::new(), finish: None, usage: None }
    }
}

impl Writer {
    fn name(&self) -> String {
        match self {
            Self::Extractive(_) => "extractive".to_owned(),
            Self::Endpoint(endpoint) => endpoint.model().to_owned(),
            Self::Local { model, .. } => model.name.clone(),
        }
    }
}

/// The types that this function emits besides its result.
pub(crate) const PARTS: &[&str] = &[answer::TOKEN, answer::CITATION];

/// A type that is a constant of this crate.
pub(crate) fn known(ty: &'static str) -> Option<EventType> {
    EventType::parse(ty).ok()
}

//! The catalog of event types: name, kind, producers and consumers of each, and its schema.

use crate::{
    agent::{AgentAsked, AgentStep, ToolCalled, ToolReturned},
    answers::{
        AnswerCitation, AnswerEvaluated, AnswerFailed, AnswerFlagged, AnswerGenerated, AnswerOpened, AnswerToken,
        MemoryUpdated, NotificationSent,
    },
    control::{
        CollectionErased, ControlCancelled, ControlRetried, ControlRetryRefused, ControlRetryRequested, ControlTimeout,
    },
    documents::{DocumentChunked, DocumentDeleted, DocumentIndexed, DocumentUploaded, EmbeddingCreated},
    feedback::{FeedbackSubmitted, WeightsRejected, WeightsRollbackRequested, WeightsRolledBack, WeightsUpdated},
    retrieval::{DocumentsReranked, DocumentsRetrieved, PromptReceived},
    schema,
    sinks::{SinkDisabled, SinkEnabled},
};
use nerve_core::{EventType, answer, tool};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use std::{fmt, sync::LazyLock};

/// The data of the events of one type. Its documentation is what an event of this type states.
pub trait EventData: JsonSchema {
    /// Name of the type, or a pattern with a wildcard at the end.
    const TYPE: &'static str;
    /// Kind of the type.
    const KIND: Kind;
    /// The functions and routes that publish it.
    const PRODUCERS: &'static [&'static str];
    /// The functions that consume it.
    const CONSUMERS: &'static [&'static str];

    /// The type.
    ///
    /// # Panics
    /// If [`Self::TYPE`] is a pattern.
    fn event_type() -> EventType {
        #[expect(clippy::expect_used, reason = "a constant that a test parses")]
        EventType::parse(Self::TYPE).expect("an event type")
    }
}

/// The kind of an event type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A question or task from outside.
    Input,
    /// Data that is stored or was found.
    Data,
    /// The output of a model.
    Model,
    /// Control of other work.
    Control,
    /// A judgment of an answer, and what is learned from it.
    Feedback,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Input => "input",
            Self::Data => "data",
            Self::Model => "model",
            Self::Control => "control",
            Self::Feedback => "feedback",
        })
    }
}

/// An event type of Nerve.
#[derive(Debug, Clone, Serialize)]
pub struct KnownType {
    /// Its name, or a pattern with a wildcard at the end.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its kind.
    pub kind: Kind,
    /// What an event of this type states.
    pub about: String,
    /// The functions and routes that publish it.
    pub producers: &'static [&'static str],
    /// The functions that consume it.
    pub consumers: &'static [&'static str],
    /// The JSON Schema of its data (draft 2020-12).
    pub schema: Value,
}

impl KnownType {
    fn of<T: EventData>() -> Self {
        let schema = schema::of::<T>();
        let about = schema.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
        let (producers, consumers) = (T::PRODUCERS, T::CONSUMERS);
        Self { ty: T::TYPE.to_owned(), kind: T::KIND, about, producers, consumers, schema }
    }
}

/// All event types of Nerve, in pipeline order.
pub fn known_types() -> &'static [KnownType] {
    static KNOWN: LazyLock<Vec<KnownType>> = LazyLock::new(|| TYPES.iter().map(|of| of()).collect());
    &KNOWN
}

macro_rules! catalog {
    ($($data:ident: $ty:expr, $kind:ident, $producers:expr => $consumers:expr;)*) => {
        $(impl EventData for $data {
            const TYPE: &'static str = $ty;
            const KIND: Kind = Kind::$kind;
            const PRODUCERS: &'static [&'static str] = &$producers;
            const CONSUMERS: &'static [&'static str] = &$consumers;
        })*

        const TYPES: &[fn() -> KnownType] = &[$(KnownType::of::<$data>),*];
    };
}

catalog! {
    DocumentUploaded: "document.uploaded", Data,
        ["POST /v1/documents", "nerve ingest", "rag/remember"] => ["rag/chunk"];
    DocumentDeleted: "document.deleted", Data, ["DELETE /v1/documents/{document}"] => ["rag/index"];
    DocumentChunked: "document.chunked", Data, ["rag/chunk"] => ["onnx/embed"];
    EmbeddingCreated: "embedding.created", Model, ["onnx/embed"] => ["rag/index"];
    DocumentIndexed: "document.indexed", Data, ["rag/index"] => ["nerve ingest"];

    PromptReceived: "prompt.received", Input,
        ["POST /v1/answers", "POST /v1/chat/completions", "nerve ask"] => ["rag/retrieve", "rag/agent"];
    DocumentsRetrieved: answer::RETRIEVED, Data, ["rag/retrieve"] => ["rag/rerank"];
    DocumentsReranked: "documents.reranked", Model, ["rag/rerank"] => ["rag/generate", "rag/learn"];

    AnswerOpened: answer::OPENED, Control, ["POST /v1/answers"] => ["readers of the answer"];
    AnswerToken: answer::TOKEN, Model, ["rag/generate", "rag/agent"] => ["readers of the answer"];
    AnswerCitation: answer::CITATION, Model, ["rag/generate"] => ["readers of the answer"];
    AnswerGenerated: answer::GENERATED, Model,
        ["rag/generate", "rag/agent"] => ["rag/evaluate", "readers of the answer", "rag/learn"];
    AnswerFailed: answer::FAILED, Control, ["the gateway", "a worker"] => ["readers of the answer"];
    AnswerEvaluated: "answer.evaluated", Feedback, ["rag/evaluate"] => ["rag/remember", "nerve eval"];
    AnswerFlagged: "answer.flagged", Feedback, ["rag/evaluate"] => [];
    MemoryUpdated: "memory.updated", Data, ["rag/remember"] => ["rag/notify"];
    NotificationSent: "notification.sent", Data, ["rag/notify"] => [];

    AgentAsked: "agent.asked", Input, ["nerve publish"] => ["rag/agent"];
    AgentStep: tool::STEP, Model, ["rag/agent"] => ["rag/agent"];
    ToolCalled: "tool.called.*", Model, ["rag/agent"] => ["functions with tool"];
    ToolReturned: tool::RETURNED, Data, ["functions with tool", "a worker"] => ["rag/agent"];

    FeedbackSubmitted: "feedback.submitted", Feedback, ["POST /v1/feedback"] => ["rag/learn"];
    WeightsUpdated: "weights.updated", Feedback, ["rag/learn"] => [];
    WeightsRejected: "weights.rejected", Feedback, ["rag/learn"] => [];
    WeightsRolledBack: "weights.rolled_back", Feedback, ["rag/learn"] => [];
    WeightsRollbackRequested: "weights.rollback_requested", Control, ["nerve publish"] => ["rag/learn"];

    CollectionErased: "collection.erased", Control, ["nerve collections erase"] => [];
    ControlCancelled: "control.cancelled", Control, ["DELETE /v1/answers/{id}"] => ["workers"];
    ControlTimeout: "control.timeout", Control, ["the gateway", "a worker"] => ["workers"];
    ControlRetryRequested: "control.retry_requested", Control,
        ["POST /v1/answers/{id}/retry", "nerve publish"] => ["workers"];
    ControlRetried: "control.retried", Control, ["a worker"] => [];
    ControlRetryRefused: "control.retry_refused", Control, ["a worker"] => [];

    SinkDisabled: "sink.disabled", Control, ["workers", "nerve sink disable"] => [];
    SinkEnabled: "sink.enabled", Control, ["nerve sink enable"] => [];
}

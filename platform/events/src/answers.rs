//! Answers: their parts, the whole, its evaluation, and what follows from it.

use crate::{documents::DEFAULT_COLLECTION, retrieval::QuestionParameters, schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// An answer was requested and can be read. In ANSWERS only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AnswerOpened {
    /// Collection that owns the answer.
    #[schemars(length(min = 1))]
    pub collection: String,
}

/// The next part of an answer's text. In ANSWERS only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AnswerToken {
    /// The text.
    pub text: String,
}

/// The source of a part of an answer. In ANSWERS only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AnswerCitation {
    /// The source.
    #[serde(flatten)]
    pub citation: Citation,
}

/// The source of a sentence of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["source", "text"]))]
pub struct Citation {
    /// Number by which the answer names the document; absent in an extractive answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<usize>,
    /// Id of the chunk in the index.
    pub chunk: String,
    /// Id of the document.
    pub source: String,
    /// Name of the document.
    pub name: String,
    /// Headings above the sentence.
    pub heading: Vec<String>,
    /// The sentence, verbatim.
    pub text: String,
    /// Start offset in the document's text, in bytes.
    pub start: usize,
    /// End offset in the document's text, in bytes.
    pub end: usize,
}

/// The complete answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnswerGenerated {
    /// The question. Without it `rag/evaluate` measures no relevance, and `rag/remember` remembers nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub question: Option<String>,
    /// What the caller gave with it.
    #[serde(flatten)]
    pub parameters: QuestionParameters,
    /// The answer.
    pub answer: String,
    /// Whether the documents answer the question; `true` if absent.
    #[serde(default = "answered")]
    pub answered: bool,
    /// Score of an extractive answer, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
    /// Sources of its sentences.
    #[serde(default)]
    pub citations: Vec<Citation>,
    /// Documents given to the generator, the best first.
    #[serde(default)]
    pub context: Vec<ContextDocument>,
    /// Name of the model, or `extractive`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<String>,
    /// Reason why the model ended the text, as `stop` or `length`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<String>,
    /// Token usage of a language model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Other fields, passed through.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

fn answered() -> bool {
    true
}

impl AnswerGenerated {
    /// Removes the fields that describe an answer, so that a caller of the question cannot give them.
    pub fn remove_own_fields(fields: &mut Map<String, Value>) {
        for own in ["answer", "answered", "confidence", "citations", "context", "generator", "finish", "usage"] {
            fields.remove(own);
        }
    }
}

/// A document given to a generator.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["source"]))]
pub struct ContextDocument {
    /// Id of the chunk.
    pub chunk: String,
    /// Id of the document.
    pub source: String,
    /// Other fields, such as `name` and `score`, passed through.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Token usage of a language model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Usage {
    /// Number of tokens that the model read.
    #[serde(deserialize_with = "nerve_core::limits::count")]
    pub prompt_tokens: usize,
    /// Number of tokens that it wrote.
    #[serde(deserialize_with = "nerve_core::limits::count")]
    pub completion_tokens: usize,
}

impl Usage {
    /// Number of all tokens.
    pub fn total(self) -> usize {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }

    /// Adds another usage.
    pub fn add(&mut self, other: Self) {
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(other.completion_tokens);
    }
}

/// The answer failed. In ANSWERS only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AnswerFailed {
    /// Kind of the failure.
    pub kind: FailureKind,
    /// Cause, for its readers.
    pub message: String,
    /// Function that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
}

/// The kind of the failure of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FailureKind {
    /// A function failed.
    Failed,
    /// It took too long.
    Timeout,
    /// It was cancelled.
    Cancelled,
}

/// Measures of an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = schema::without_constraints)]
pub struct Evaluation {
    /// Mean groundedness of the sentences, from 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groundedness: Option<f32>,
    /// Groundedness of the least grounded sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub least_grounded: Option<f32>,
    /// Similarity of the answer and the question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relevance: Option<f32>,
    /// Context precision: whether cited documents rank before others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_precision: Option<f32>,
    /// Time from the question's event to the answer's, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
    /// Number of prompt and completion tokens.
    pub tokens: usize,
    /// Cost, in the currency of `price`.
    pub cost: f64,
}

/// A measure beyond its threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Flag {
    /// Name of the measure.
    pub measure: String,
    /// Its value.
    pub value: f64,
    /// Its threshold.
    #[serde(rename = "bound")]
    pub threshold: f64,
}

/// Quality scores of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct AnswerEvaluated {
    /// The answer.
    #[serde(flatten)]
    pub generated: AnswerGenerated,
    /// Measures of the answer.
    pub evaluation: Evaluation,
    /// Measures beyond their thresholds.
    #[schemars(default)]
    pub flags: Vec<Flag>,
}

/// An answer is outside one of its thresholds.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct AnswerFlagged {
    /// The answer.
    #[serde(flatten)]
    pub generated: AnswerGenerated,
    /// Measures of the answer.
    #[schemars(default)]
    pub evaluation: Evaluation,
    /// Measures beyond their thresholds.
    pub flags: Vec<Flag>,
}

/// A question and its answer were added to a conversation.
// No function of Nerve depends on a field of it.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(transform = schema::without_constraints)]
pub struct MemoryUpdated {
    /// Whether the answer is in the memory of a conversation.
    pub remembered: bool,
    /// Number of turns stored verbatim.
    pub turns: usize,
    /// The question and its answer.
    #[serde(flatten)]
    pub answered: AnsweredQuestion,
}

/// A question and its answer, with everything that came with them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnsweredQuestion {
    /// The question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// The answer.
    pub answer: String,
    /// Conversation that they belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
    /// Collection; `default` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collection: Option<String>,
    /// Other fields of the answer, passed through.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl AnsweredQuestion {
    /// The collection, by default [`DEFAULT_COLLECTION`].
    pub fn collection(&self) -> &str {
        self.collection.as_deref().unwrap_or(DEFAULT_COLLECTION)
    }
}

/// A notification was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NotificationSent {
    /// Id of the answer.
    #[serde(default)]
    pub answer: String,
    /// Text of the notification.
    pub text: String,
    /// Whether the answer is flagged.
    #[serde(default)]
    pub flagged: bool,
    /// Host of the receiver; absent for an event only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

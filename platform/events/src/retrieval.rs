//! Questions, and the documents retrieved for them.

use crate::{documents::Chunk, feedback::UsedWeights};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a caller gives with a question; every step of the answer carries it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct QuestionParameters {
    /// Collection to search; `default` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub collection: Option<String>,
    /// Id of the conversation that the question continues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
    /// Metadata that a document must have.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub filter: Map<String, Value>,
    /// Maximum number of documents to retrieve.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub limit: Option<usize>,
    /// Earlier messages of the conversation, supplied by the caller.
    // Passed through with all their fields; `Message` names those that built-in functions read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Message>>")]
    pub messages: Option<Vec<Value>>,
    /// Options of the language model, in OpenAI's names.
    // Passed through as it came; `ModelOptions` names what built-in functions read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ModelOptions>")]
    pub options: Option<Map<String, Value>>,
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Message {
    /// Role of its author: `system` or `developer`, `user`, `assistant`. `rag/generate` leaves out messages of others.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// Options of a language model, in OpenAI's names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ModelOptions {
    /// Sampling temperature.
    #[schemars(extend("nullable" = true))]
    pub temperature: Option<f32>,
    /// Total probability of the tokens that are considered.
    #[schemars(extend("nullable" = true))]
    pub top_p: Option<f32>,
    /// Maximum number of tokens in the answer.
    #[schemars(extend("nullable" = true))]
    pub max_tokens: Option<usize>,
    /// The newer name of `max_tokens`, which it overrides.
    #[schemars(extend("nullable" = true))]
    pub max_completion_tokens: Option<usize>,
    /// Random seed.
    #[schemars(extend("nullable" = true))]
    pub seed: Option<u64>,
    /// Text that ends the answer, or a list of such texts.
    #[schemars(extend("nullable" = true))]
    pub stop: Option<StopTexts>,
}

/// Texts that end an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum StopTexts {
    /// One text.
    One(String),
    /// Several texts.
    Many(Vec<String>),
}

/// A question.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("anyOf" = [{"required": ["question"]}, {"required": ["prompt"]}, {"required": ["text"]}]))]
pub struct PromptReceived {
    /// The question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub question: Option<String>,
    /// The question, if `question` is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub prompt: Option<String>,
    /// The question, if `question` and `prompt` are absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub text: Option<String>,
    /// What the caller gives with it.
    #[serde(flatten)]
    pub parameters: QuestionParameters,
    /// Other fields, which every function passes through.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl PromptReceived {
    /// Takes the question out of the first field that has one.
    pub fn take_question(&mut self) -> Option<String> {
        [&mut self.question, &mut self.prompt, &mut self.text].into_iter().find_map(Option::take)
    }

    /// All fields that are not parameters, without the question.
    pub fn into_rest(self) -> Map<String, Value> {
        let mut rest = self.rest;
        let unused = [("prompt", self.prompt), ("text", self.text)];
        rest.extend(unused.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?.into()))));
        rest
    }
}

/// A retrieved chunk of a document.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hit {
    /// Id of the chunk, valid until the document is uploaded again. If absent, the document's id and the rank.
    #[serde(default)]
    pub id: String,
    /// Id of the document.
    #[schemars(length(min = 1))]
    pub document: String,
    /// Name of the document; its id if absent.
    #[serde(default)]
    pub name: String,
    /// The chunk.
    #[serde(flatten)]
    pub chunk: Chunk,
    /// Metadata of the document.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    /// Score, meaningful only for the order.
    #[serde(default)]
    pub score: f32,
    /// Lexical score of a lexical candidate: BM25, or the rank of PostgreSQL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("nullable" = true))]
    pub bm25: Option<f32>,
    /// Cosine similarity of the chunk and the question. `rag/rerank` computes it if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("nullable" = true))]
    pub similarity: Option<f32>,
    /// Rank among the lexical candidates, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub lexical_rank: Option<usize>,
    /// Rank among the dense candidates, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub dense_rank: Option<usize>,
    /// Relevance by the reranking model, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relevance: Option<f32>,
}

impl Hit {
    /// Fills in the id and the name of hits that have none, as those of a function that knows only documents.
    pub fn complete(hits: &mut [Self]) {
        for (hit, rank) in hits.iter_mut().zip(1..) {
            if hit.id.is_empty() {
                hit.id = format!("{}#{rank}", hit.document);
            }
            if hit.name.is_empty() {
                hit.name.clone_from(&hit.document);
            }
        }
    }
}

/// Memory of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ConversationHistory {
    /// Summary of the turns before `turns`.
    pub summary: String,
    /// The most recent turns, oldest first.
    pub turns: Vec<Turn>,
}

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Turn {
    /// Id of the answer.
    #[serde(default)]
    pub id: String,
    /// The question.
    pub question: String,
    /// Its answer.
    pub answer: String,
}

/// The documents retrieved for a question, the best first; streamed to the answer's clients.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DocumentsRetrieved {
    /// The question.
    #[schemars(length(min = 1))]
    pub question: String,
    /// What the caller gave with it.
    #[serde(flatten)]
    pub parameters: QuestionParameters,
    /// Time of the question (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_at: Option<String>,
    /// Memory of the conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<ConversationHistory>,
    /// Earlier answers of the conversation that are similar to the question.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recalled: Vec<Hit>,
    /// Weights of the rankings, and their version if they were learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<UsedWeights>,
    /// The documents, the best first.
    pub documents: Vec<Hit>,
    /// Other fields of the question, passed through.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// The same documents, ordered by relevance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DocumentsReranked {
    /// The question.
    #[schemars(length(min = 1))]
    pub question: String,
    /// What the caller gave with it.
    #[serde(flatten)]
    pub parameters: QuestionParameters,
    /// Memory of the conversation.
    // Passed through with all its fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ConversationHistory>", extend("nullable" = true))]
    pub history: Option<Value>,
    /// Weights of the rankings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<UsedWeights>,
    /// The documents, the best first.
    pub documents: Vec<Hit>,
    /// Documents that reranking dropped, without their texts, for `rag/learn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<DroppedHit>,
    /// Other fields, passed through.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// A dropped document: its ranks without its text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DroppedHit {
    /// Id of the chunk.
    #[serde(default)]
    pub id: String,
    /// Id of the document.
    #[schemars(length(min = 1))]
    pub document: String,
    /// Name of the document.
    #[serde(default)]
    pub name: String,
    /// Rank among the lexical candidates, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub lexical_rank: Option<usize>,
    /// Rank among the dense candidates, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub dense_rank: Option<usize>,
    /// Relevance by the reranking model, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relevance: Option<f32>,
}

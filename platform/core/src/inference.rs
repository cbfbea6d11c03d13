//! The contract between the gateway and the model runtime.
//!
//! The gateway parses requests and locates a model's files; an [`Inference`] computes vectors, relevance scores, labels
//! and text. The runtime does not depend on HTTP, the gateway does not depend on ONNX Runtime.

use crate::function::Artifact;
use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use futures_core::stream::BoxStream;
use half::f16;
use serde::{Deserialize, Serialize, Serializer};

/// A model's files on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// The requested name.
    pub name: String,
    /// Its files, with paths relative to the model directory.
    pub files: Vec<Artifact>,
}

/// The purpose of an embedding, for models that distinguish queries and documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// A search query.
    #[serde(alias = "search_query")]
    Query,
    /// A document to be retrieved.
    #[serde(alias = "search_document", alias = "passage")]
    Document,
}

/// The number format of a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    #[serde(alias = "float", alias = "float32")]
    F32,
    /// 16-bit floats (IEEE 754 binary16).
    #[serde(alias = "float16")]
    F16,
    /// Signed bytes: each number is divided by the vector's largest magnitude and multiplied by 127, which preserves
    /// cosine similarity.
    Int8,
    /// Unsigned bytes: `int8` plus 128.
    Uint8,
    /// One bit per dimension, set if positive, packed into signed bytes (the byte minus 128), most significant bit
    /// first.
    Binary,
    /// One bit per dimension, packed into unsigned bytes.
    Ubinary,
}

/// Texts to embed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EmbedRequest {
    /// The texts.
    pub texts: Vec<String>,
    /// Their purpose; a model with prompts prepends the matching one.
    pub purpose: Option<Purpose>,
    /// Truncate to the first N dimensions and normalize again (Matryoshka).
    pub dimensions: Option<usize>,
    /// The number format of the vectors.
    pub precision: Precision,
}

/// A vector. In JSON an array of numbers, or `{"indices": […], "values": […]}` if sparse.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Vector {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 16-bit floats.
    F16(#[serde(serialize_with = "as_floats")] Vec<f16>),
    /// Signed bytes; packed bits if the precision is binary.
    I8(Vec<i8>),
    /// Unsigned bytes; packed bits if the precision is ubinary.
    U8(Vec<u8>),
    /// The non-zero dimensions, ascending, and their weights.
    Sparse {
        /// The dimensions.
        indices: Vec<u32>,
        /// The weights.
        values: Vec<f32>,
    },
}

fn as_floats<S: Serializer>(numbers: &[f16], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(numbers.iter().map(|number| number.to_f32()))
}

impl Vector {
    /// Encodes the numbers, little-endian, in Base64.
    ///
    /// # Errors
    /// Returns a sparse vector unchanged.
    pub fn into_base64(self) -> Result<String, Self> {
        let bytes: Vec<u8> = match self {
            Self::F32(numbers) => numbers.into_iter().flat_map(f32::to_le_bytes).collect(),
            Self::F16(numbers) => numbers.into_iter().flat_map(f16::to_le_bytes).collect(),
            Self::I8(numbers) => numbers.into_iter().map(i8::cast_unsigned).collect(),
            Self::U8(numbers) => numbers,
            Self::Sparse { .. } => return Err(self),
        };
        Ok(BASE64_STANDARD.encode(bytes))
    }
}

/// The embedding of one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// The vector.
    pub vector: Vector,
    /// Input tokens, including special tokens.
    pub tokens: usize,
    /// Whether the text exceeded the model's maximum length and was truncated.
    pub truncated: bool,
}

/// Documents to rank by their relevance to a query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RerankRequest {
    /// The query.
    pub query: String,
    /// The documents.
    pub documents: Vec<String>,
    /// Whether to return raw logits.
    pub raw: bool,
}

/// The relevance of one document.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Relevance {
    /// Score, higher is more relevant; from 0 to 1 unless raw.
    pub score: f32,
    /// Input tokens of query and document.
    pub tokens: usize,
    /// Whether query and document together exceeded the model's maximum length and were truncated.
    pub truncated: bool,
}

/// An input of a classification.
#[derive(Debug, Clone, PartialEq)]
pub enum Sample {
    /// A text.
    Text(String),
    /// A text pair.
    Pair(String, String),
    /// Features of a tabular model, named or ordered.
    Features(serde_json::Value),
}

/// A label and its score.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Label {
    /// The label's name in the model.
    pub label: String,
    /// Score from 0 to 1, or the raw model output if requested. A tabular model's score is its own output for this
    /// label, such as the distance to a cluster.
    pub score: f32,
}

/// The classification of one sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Classification {
    /// The predicted label, then the others by descending score.
    pub labels: Vec<Label>,
    /// Input tokens; 0 for a tabular model.
    pub tokens: usize,
    /// Whether the text exceeded the model's maximum length and was truncated.
    pub truncated: bool,
}

/// The role of a message's author.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The system prompt.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Role of its author.
    pub role: Role,
    /// Its text.
    pub content: String,
}

/// Sampling parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Temperature; 0 always selects the most likely token.
    pub temperature: f32,
    /// Nucleus sampling: only the most likely tokens with this total probability are considered; from 0 to 1.
    pub top_p: f32,
    /// Only the k most likely tokens are considered; 0 considers all.
    pub top_k: usize,
    /// Random seed: the same seed gives the same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 }
    }
}

/// A conversation for a causal language model to continue.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerateRequest {
    /// The messages so far. If the last one is the model's own, the model continues it.
    pub messages: Vec<Message>,
    /// Maximum tokens of the answer, including an existing beginning; `None` is the rest of the model's context.
    pub max_tokens: Option<usize>,
    /// Sampling parameters.
    pub sampling: Sampling,
    /// Stop sequences, which end the answer and are not part of it.
    pub stop: Vec<String>,
}

/// The reason why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model ended the text, or wrote a stop sequence.
    Stop,
    /// The token limit was reached.
    Length,
}

/// An item of a text stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// The next text; never empty, and never a part of a character.
    Text(String),
    /// The end of the text.
    End {
        /// The reason.
        finish: Finish,
        /// Tokens of the conversation before the answer.
        prompt_tokens: usize,
        /// Tokens of the answer, including an existing beginning.
        completion_tokens: usize,
    },
}

/// An inference failure, divided by the required reaction of the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InferenceError {
    /// The request can never succeed on this model.
    #[error("{0}")]
    Invalid(String),
    /// The queue is full: retry later.
    #[error("{0}")]
    Busy(String),
    /// The answer exceeded the time limit.
    #[error("{0}")]
    Timeout(String),
    /// This machine cannot run the model: software must be installed or resources freed.
    #[error("{0}")]
    Unavailable(String),
    /// The model failed on a valid request: a retry may succeed.
    #[error("{0}")]
    Failed(String),
}

/// Runs models for the gateway. Dropping a future cancels jobs that have not started.
#[async_trait]
pub trait Inference: Send + Sync {
    /// Returns the bundled model of this name.
    async fn bundled(&self, name: &str) -> Option<Model>;

    /// Names of the bundled models.
    fn bundled_names(&self) -> Vec<String>;

    /// Computes one embedding per text, in the order of the texts.
    ///
    /// # Errors
    /// See [`InferenceError`].
    async fn embed(&self, model: &Model, request: EmbedRequest) -> Result<Vec<Embedding>, InferenceError>;

    /// Computes one relevance per document, in the order of the documents.
    ///
    /// # Errors
    /// See [`InferenceError`].
    async fn rerank(&self, model: &Model, request: RerankRequest) -> Result<Vec<Relevance>, InferenceError>;

    /// Computes one classification per sample, in the order of the samples.
    ///
    /// # Errors
    /// See [`InferenceError`].
    async fn classify(
        &self,
        model: &Model,
        samples: Vec<Sample>,
        raw: bool,
    ) -> Result<Vec<Classification>, InferenceError>;

    /// Streams the text of a causal language model. The last item is [`Piece::End`] or an error. Dropping the stream
    /// cancels the generation.
    ///
    /// # Errors
    /// See [`InferenceError`].
    async fn generate(
        &self,
        model: &Model,
        request: GenerateRequest,
    ) -> Result<BoxStream<'static, Result<Piece, InferenceError>>, InferenceError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_precision_has_a_json_and_a_base64_form() {
        let half = f16::from_f32(-0.5);
        let cases = [
            (Vector::F32(vec![0.1, -2.0]), "[0.1,-2.0]", vec![205, 204, 204, 61, 0, 0, 0, 192]),
            (Vector::F16(vec![half]), "[-0.5]", half.to_le_bytes().to_vec()),
            (Vector::I8(vec![-1, 127]), "[-1,127]", vec![255, 127]),
            (Vector::U8(vec![0, 255]), "[0,255]", vec![0, 255]),
        ];
        for (vector, json, bytes) in cases {
            assert_eq!(serde_json::to_string(&vector).unwrap(), json);
            assert_eq!(BASE64_STANDARD.decode(vector.into_base64().unwrap()).unwrap(), bytes);
        }
        let sparse = Vector::Sparse { indices: vec![7], values: vec![0.5] };
        assert_eq!(serde_json::to_string(&sparse).unwrap(), r#"{"indices":[7],"values":[0.5]}"#);
        assert_eq!(sparse.clone().into_base64(), Err(sparse));
    }
}

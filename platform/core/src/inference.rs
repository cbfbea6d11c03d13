//! The contract between the gateway and whatever runs models.
//!
//! The gateway reads requests and finds a model's files; an [`Inference`] turns texts into vectors, relevance and
//! labels. Neither sees the other's machinery: models never see HTTP, the gateway never sees ONNX Runtime.

use crate::function::Artifact;
use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use futures_core::stream::BoxStream;
use half::f16;
use serde::{Deserialize, Serialize, Serializer};

/// A model's files on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// The name it was asked for by.
    pub name: String,
    /// Its files, named relative to the model's folder.
    pub files: Vec<Artifact>,
}

/// What a text is embedded for, where a model was trained to tell the two apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// It is searched for.
    #[serde(alias = "search_query")]
    Query,
    /// It is found.
    #[serde(alias = "search_document", alias = "passage")]
    Document,
}

/// What a vector's numbers are.
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
    /// Signed bytes: each number's share of the vector's largest, times 127, so that cosines stay what they are.
    Int8,
    /// Unsigned bytes: `int8` plus 128.
    Uint8,
    /// One bit a dimension, set where it is positive, eight to a signed byte (the byte minus 128), the first highest.
    Binary,
    /// One bit a dimension, eight to an unsigned byte.
    Ubinary,
}

/// Texts to embed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EmbedRequest {
    /// The texts.
    pub texts: Vec<String>,
    /// What they are for; a model with prompts puts the right one before each.
    pub purpose: Option<Purpose>,
    /// Keep only this many leading dimensions (Matryoshka), and normalise again.
    pub dimensions: Option<usize>,
    /// What the vectors' numbers are.
    pub precision: Precision,
}

/// A vector; as JSON an array of its numbers, or of a sparse one `{"indices": […], "values": […]}`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Vector {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 16-bit floats.
    F16(#[serde(serialize_with = "as_floats")] Vec<f16>),
    /// Signed bytes; bits where the precision is binary.
    I8(Vec<i8>),
    /// Unsigned bytes; bits where the precision is ubinary.
    U8(Vec<u8>),
    /// The dimensions that are not zero, ascending, and their weights.
    Sparse {
        /// Which.
        indices: Vec<u32>,
        /// How much.
        values: Vec<f32>,
    },
}

fn as_floats<S: Serializer>(numbers: &[f16], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(numbers.iter().map(|number| number.to_f32()))
}

impl Vector {
    /// The numbers' bytes, little-endian, in Base64; a sparse vector, which is no row of numbers, comes back.
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

/// One text's vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// The vector.
    pub vector: Vector,
    /// Tokens the model read, special ones too.
    pub tokens: usize,
    /// Whether the text was longer than the model reads, and cut.
    pub truncated: bool,
}

/// Documents to order by their relevance to a query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RerankRequest {
    /// The query.
    pub query: String,
    /// The documents.
    pub documents: Vec<String>,
    /// Whether to leave the model's own activation out.
    pub raw: bool,
}

/// One document's relevance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Relevance {
    /// Higher is more relevant; from 0 to 1 unless raw.
    pub score: f32,
    /// Tokens the model read of query and document.
    pub tokens: usize,
    /// Whether query and document together were longer than the model reads, and cut.
    pub truncated: bool,
}

/// What is classified.
#[derive(Debug, Clone, PartialEq)]
pub enum Sample {
    /// A text.
    Text(String),
    /// A text and a second one that belongs to it.
    Pair(String, String),
    /// Named or ordered features of a tabular model.
    Features(serde_json::Value),
}

/// A label and its score.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Label {
    /// The model's name for it.
    pub label: String,
    /// From 0 to 1, or the model's own output when raw was asked for. A tabular model's is its own number for this label:
    /// of a cluster, the distance to it.
    pub score: f32,
}

/// What a model says of one sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Classification {
    /// The label that the model has chosen, then the others, the best first.
    pub labels: Vec<Label>,
    /// Tokens the model read; none of a tabular model.
    pub tokens: usize,
    /// Whether the text was longer than the model reads, and cut.
    pub truncated: bool,
}

/// Who says a message of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Whoever set the conversation up.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// How each next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// How far from the likeliest token it may stray; 0 always takes the likeliest.
    pub temperature: f32,
    /// Only the likeliest tokens whose chances together reach this are considered; from 0 to 1.
    pub top_p: f32,
    /// Only this many of the likeliest tokens are considered; 0 considers all.
    pub top_k: usize,
    /// Where chance begins: the same seed gives the same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 }
    }
}

/// A conversation that a causal language model goes on with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerateRequest {
    /// What was said so far. The last message may be the model's own, unfinished: it goes on with it.
    pub messages: Vec<Message>,
    /// The most tokens of the answer, with what is there of it already; none: as many as the model's context holds.
    pub max_tokens: Option<usize>,
    /// How each next token is chosen.
    pub sampling: Sampling,
    /// Texts that end the answer, and are no part of it.
    pub stop: Vec<String>,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model had said it all, or one of the texts that end it came.
    Stop,
    /// The most tokens were written.
    Length,
}

/// A piece of a text that is being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// What comes next; never empty, and never a part of a character.
    Text(String),
    /// The text is over.
    End {
        /// Why.
        finish: Finish,
        /// Tokens of the conversation before the answer.
        prompt_tokens: usize,
        /// Tokens of the answer, with what was there of it already.
        completion_tokens: usize,
    },
}

/// Why a model gave no answer, split by what the caller must do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InferenceError {
    /// The request can never succeed on this model.
    #[error("{0}")]
    Invalid(String),
    /// Too much is waiting already: try again a little later.
    #[error("{0}")]
    Busy(String),
    /// The answer did not come within the time allowed.
    #[error("{0}")]
    Timeout(String),
    /// This machine cannot run the model as it is: something is to be installed or freed.
    #[error("{0}")]
    Unavailable(String),
    /// It failed though nothing was wrong with the request: trying again may help.
    #[error("{0}")]
    Failed(String),
}

/// Runs models for the gateway. Dropping a future withdraws what has not begun.
#[async_trait]
pub trait Inference: Send + Sync {
    /// The model that comes with this installation under `name`, if one does.
    async fn bundled(&self, name: &str) -> Option<Model>;

    /// The names of the models that come with this installation.
    fn bundled_names(&self) -> Vec<String>;

    /// One vector a text, in the texts' order.
    async fn embed(&self, model: &Model, request: EmbedRequest) -> Result<Vec<Embedding>, InferenceError>;

    /// One relevance a document, in the documents' order.
    async fn rerank(&self, model: &Model, request: RerankRequest) -> Result<Vec<Relevance>, InferenceError>;

    /// One classification a sample, in the samples' order.
    async fn classify(
        &self,
        model: &Model,
        samples: Vec<Sample>,
        raw: bool,
    ) -> Result<Vec<Classification>, InferenceError>;

    /// What a causal language model writes, as it writes it. The last item is [`Piece::End`] or an error; dropping
    /// the stream ends the writing.
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
    fn each_precision_has_its_two_forms() {
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

//! Documents: uploaded, chunked, embedded and indexed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Collection of documents and questions that name none.
pub const DEFAULT_COLLECTION: &str = "default";

/// Add or replace a document. A non-JSON body is taken as the document content.
// In alphabetical order, as in a map: `rag/chunk` digests these bytes to recognize an unchanged document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("anyOf" = [{"required": ["text"]}, {"required": ["data"]}]))]
pub struct DocumentUploaded {
    /// Collection; `default` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub collection: Option<String>,
    /// Content in Base64, if it is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("contentEncoding" = "base64"))]
    pub data: Option<String>,
    /// Id in the collection; a later upload with the same id replaces it. The event's subject, the name or the event's
    /// id if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub document: Option<String>,
    /// Media type of the content; detected if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Metadata for filters.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    /// Display name: a file name or page title. The event's subject if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Content as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// Remove a document from the index.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DocumentDeleted {
    /// Collection; `default` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub collection: Option<String>,
    /// Id in the collection.
    #[schemars(length(min = 1))]
    pub document: String,
    /// Metadata, passed through.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    /// Name, passed through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Time of the deletion, in nanoseconds since 1970; the event's time if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uploaded_at: Option<i64>,
    /// Version, passed through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// Identity and metadata of a document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Document {
    /// Collection; `default` if absent. A search covers one collection.
    #[serde(default = "default_collection")]
    #[schemars(length(min = 1))]
    pub collection: String,
    /// Id in the collection; a later upload with the same id replaces it.
    #[schemars(length(min = 1))]
    pub document: String,
    /// Display name: a file name or page title.
    #[serde(default)]
    pub name: String,
    /// SHA-256 digest of the text, in hexadecimal.
    #[serde(default)]
    pub version: String,
    /// SHA-256 digest of the upload and its chunking, in hexadecimal; absent if unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// Time of the upload, in nanoseconds since 1970; the latest upload wins.
    #[serde(default)]
    pub uploaded_at: i64,
    /// Metadata for filters.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

fn default_collection() -> String {
    DEFAULT_COLLECTION.to_owned()
}

/// A part of a document that is embedded, retrieved and cited as one unit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Chunk {
    /// Index among the document's chunks, from 0.
    #[serde(default)]
    pub index: usize,
    /// Text, verbatim from the document's text.
    pub text: String,
    /// Headings above it, or enclosing definitions, outermost first.
    #[serde(default)]
    pub heading: Vec<String>,
    /// Start offset in the document's text, in bytes; 0 if absent.
    #[serde(default)]
    pub start: usize,
    /// End offset in the document's text, in bytes.
    #[serde(default)]
    pub end: usize,
}

/// A document's chunks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DocumentChunked {
    /// The document.
    #[serde(flatten)]
    pub document: Document,
    /// Its chunks, in order.
    pub chunks: Vec<Chunk>,
}

/// One vector per chunk.
// `chunks` and `embeddings` are no part of a flattened struct, so that serde reads them without buffering.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
pub struct EmbeddingCreated {
    /// The document.
    #[serde(flatten)]
    pub document: Document,
    /// Its chunks, in order.
    pub chunks: Vec<Chunk>,
    /// One embedding per chunk, in the same order.
    pub embeddings: Vec<TextEmbedding>,
    /// Name of the embedding model.
    #[serde(default)]
    pub model: Option<String>,
    /// Number of dimensions of each vector.
    #[serde(default)]
    pub dimensions: Option<usize>,
}

/// The embedding of one text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TextEmbedding<V = EncodedVector> {
    /// The vector.
    pub embedding: V,
    /// Number of tokens that the model read.
    #[serde(default, deserialize_with = "nerve_core::limits::count")]
    pub tokens: usize,
    /// Whether the text was longer than the model's limit.
    #[serde(default)]
    pub truncated: bool,
}

/// A dense vector: numbers, or 32-bit floats (little-endian) in Base64.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EncodedVector {
    /// The numbers.
    Array(Vec<f32>),
    /// The bytes of 32-bit floats (little-endian) in Base64.
    Base64(String),
}

/// A document was added to or removed from the index.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DocumentIndexed {
    /// The document.
    #[serde(flatten)]
    pub document: Document,
    /// Number of chunks of the document after the change.
    #[serde(default)]
    pub chunks: usize,
    /// Whether the document existed before.
    #[serde(default)]
    pub replaced: bool,
    /// Whether a later upload was already indexed, so that nothing changed.
    #[serde(default)]
    pub stale: bool,
    /// Whether another upload of the same content was already indexed, so that no chunk was written.
    #[serde(default)]
    pub unchanged: bool,
    /// Time of the document's last upload or deletion, in nanoseconds since 1970; 0 if there is none.
    #[serde(default)]
    pub latest_upload: i64,
    /// Whether the document was removed.
    #[serde(default)]
    pub removed: bool,
}

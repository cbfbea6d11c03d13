//! Identity and metadata of a document.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Collection of documents that name none.
pub const DEFAULT_COLLECTION: &str = "default";

/// Identity and metadata of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Collection; a search covers one collection.
    #[serde(default = "default_collection")]
    pub collection: String,
    /// Id in the collection; a later upload with the same id replaces it.
    pub document: String,
    /// Display name: a file name or page title.
    #[serde(default)]
    pub name: String,
    /// SHA-256 digest of the text, in hexadecimal.
    #[serde(default)]
    pub version: String,
    /// SHA-256 digest of the upload and its chunking, in hexadecimal; empty if unknown.
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

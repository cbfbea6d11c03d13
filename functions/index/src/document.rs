//! Which document of which collection.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The collection of a document that names none.
pub const DEFAULT_COLLECTION: &str = "default";

/// Which document of which collection, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// What is searched together.
    #[serde(default = "default_collection")]
    pub collection: String,
    /// What a later upload replaces.
    pub document: String,
    /// For people: a file's name, a page's title.
    #[serde(default)]
    pub name: String,
    /// SHA-256 of the text, in hexadecimal.
    #[serde(default)]
    pub version: String,
    /// SHA-256 of its upload and of how it is chunked, in hexadecimal; empty where its chunker gives none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// When it was uploaded, in nanoseconds since 1970: of two uploads the later stays.
    #[serde(default)]
    pub uploaded_at: i64,
    /// What searches can be narrowed by.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

fn default_collection() -> String {
    DEFAULT_COLLECTION.to_owned()
}

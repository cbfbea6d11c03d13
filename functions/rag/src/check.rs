//! Checks whether the index already has a document in its current version, so that an unchanged document is neither
//! uploaded nor embedded again.
//!
//! The index stores a digest of each document's upload and chunking. A check names a digest and a time. If the digests
//! are equal, the index records the document as uploaded at that time, so an older upload still in flight becomes
//! stale, as it would after a real upload.

use crate::chunk::ChunkOptions;
use data_encoding::HEXLOWER;
use nerve_core::Event;
use nerve_events::documents::Document;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// Event type of a direct call to `rag/index` that checks documents.
pub const CHECK_REQUESTED: &str = "document.check_requested";
/// Version of the readers and the chunker. A new version causes unchanged documents to be chunked again.
const CHUNKER_VERSION: u32 = 1;

/// Identity of a chunking: model, options and version of the chunker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunking(String);

impl Chunking {
    /// The chunking of a `rag/chunk` function with this `model` and `with`.
    ///
    /// # Errors
    /// Names the unknown or invalid option.
    pub fn new(model: Option<&str>, with: &Map<String, Value>) -> Result<Self, String> {
        let options = serde_json::from_value(Value::Object(with.clone())).map_err(|error| error.to_string())?;
        let ChunkOptions { size, overlap } = options;
        Ok(Self(format!("{CHUNKER_VERSION} {size} {overlap} {}", model.unwrap_or_default())))
    }

    /// SHA-256 digest, in hexadecimal, of a `document.uploaded` event's content and its chunking.
    pub fn digest(&self, upload: &Event) -> String {
        let mut digest = Sha256::new();
        let subject = upload.subject.as_deref().unwrap_or_default();
        let content_type = upload.content_type.as_deref().unwrap_or_default();
        for publish in [self.0.as_bytes(), subject.as_bytes(), content_type.as_bytes(), &upload.data] {
            digest.update(u64::try_from(publish.len()).unwrap_or(u64::MAX).to_be_bytes());
            digest.update(publish);
        }
        HEXLOWER.encode(&digest.finalize())
    }
}

/// Data of a check, which one `document.indexed` per document answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckRequest {
    /// Documents to check. Only `collection`, `document`, `digest` and `uploaded_at` are read.
    pub documents: Vec<Document>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::EventType;
    use serde_json::json;

    #[test]
    fn digest_depends_on_the_content_and_on_the_chunking() {
        let chunking = |with: Value| Chunking::new(Some("m"), with.as_object().unwrap()).unwrap();
        let upload = |id: &str, text: &str| {
            let event = Event::new(id, "/test", EventType::parse("document.uploaded").unwrap());
            event.with_data("text/plain", text.as_bytes().to_vec())
        };
        let usual = chunking(json!({}));
        assert_eq!(usual.digest(&upload("1", "a")), usual.digest(&upload("2", "a")), "an upload's id is no content");
        assert_eq!(usual, chunking(json!({"size": 200})), "a default may be written out");
        let other = Chunking::new(Some("n"), &Map::new()).unwrap();
        let html = upload("1", "a").with_data("text/html", "a");
        for digest in [
            usual.digest(&upload("1", "b")),
            usual.digest(&html),
            chunking(json!({"size": 100})).digest(&upload("1", "a")),
            other.digest(&upload("1", "a")),
        ] {
            assert_ne!(digest, usual.digest(&upload("1", "a")));
        }
        assert!(Chunking::new(None, json!({"sise": 1}).as_object().unwrap()).is_err());
    }
}

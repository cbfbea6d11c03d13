//! Reads a document into chunks. Request and result are encoded as bytes, for a helper process.

use crate::{
    chunk::{self, Chunk, ChunkSize},
    extract::{self, ContentMetadata, ExtractedText},
};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

/// Size of the length prefix of a request.
const LENGTH_BYTES: usize = 4;

/// Parameters of reading a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRequest {
    /// Media type given by the sender.
    pub media_type: Option<String>,
    /// Name.
    pub name: String,
    /// Whether the sender sent it as text.
    pub sent_as_text: bool,
    /// Maximum number of tokens per chunk.
    pub size: usize,
    /// Number of tokens shared with the preceding chunk.
    pub overlap: usize,
}

/// A document that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadDocument {
    /// SHA-256 digest of its text, in hexadecimal.
    pub version: String,
    /// Its chunks.
    pub chunks: Vec<Chunk>,
}

impl ReadRequest {
    /// Encodes the request for [`Reader::handle`], as consecutive parts.
    ///
    /// # Errors
    /// If the request cannot be serialized.
    pub fn encode(&self, document: Bytes) -> Result<Vec<Bytes>, String> {
        let head = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        let length = u32::try_from(head.len()).map_err(|error| error.to_string())?;
        Ok(vec![Bytes::copy_from_slice(&length.to_le_bytes()), head.into(), document])
    }
}

impl ReadDocument {
    /// Decodes the result of [`Reader::handle`].
    ///
    /// # Errors
    /// If the result is malformed.
    pub fn decode(result: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(result).map_err(|error| error.to_string())
    }
}

/// Reads documents for one embedding model.
pub struct Reader {
    tokenizer: Tokenizer,
}

impl Reader {
    /// A reader that measures chunks with the tokenizer in a `tokenizer.json`.
    ///
    /// # Errors
    /// If the tokenizer is invalid.
    pub fn new(tokenizer: &[u8]) -> Result<Self, String> {
        let invalid = |error: tokenizers::Error| format!("the model's tokenizer.json cannot be used: {error}");
        let mut tokenizer = Tokenizer::from_bytes(tokenizer).map_err(invalid)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(invalid)?;
        Ok(Self { tokenizer })
    }

    /// Reads a document.
    ///
    /// # Errors
    /// Tells the sender why the document cannot be read.
    pub fn read(&self, request: &ReadRequest, document: &[u8]) -> Result<ReadDocument, String> {
        let ReadRequest { media_type, name, sent_as_text, size, overlap } = request;
        let source = ContentMetadata { media_type: media_type.as_deref(), name, sent_as_text: *sent_as_text };
        let ExtractedText { text, format } = extract::extract(document, source)?;
        let size = ChunkSize { max: *size, overlap: *overlap };
        let chunks = chunk::split(&text, format, size, &self.tokenizer)?;
        Ok(ReadDocument { version: HEXLOWER.encode(&Sha256::digest(text.as_bytes())), chunks })
    }

    /// Handles an encoded request and returns its encoded result.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn handle(&self, request: &[u8]) -> Result<Vec<u8>, String> {
        let broken = || "the request is truncated".to_owned();
        let (length, rest) = request.split_first_chunk::<LENGTH_BYTES>().ok_or_else(broken)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|error| error.to_string())?;
        let (head, document) = rest.split_at_checked(length).ok_or_else(broken)?;
        let request: ReadRequest = serde_json::from_slice(head).map_err(|error| error.to_string())?;
        serde_json::to_vec(&self.read(&request, document)?).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn request_and_result_survive_encoding() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/onnx/models");
        let reader = Reader::new(&std::fs::read(models.join("pooling-cls/tokenizer.json")).unwrap()).unwrap();
        let name = "a.html".to_owned();
        let request = ReadRequest { media_type: None, name, sent_as_text: true, size: 24, overlap: 0 };
        let encoded = request.encode(Bytes::from_static(b"<h1>Fees</h1><p>Late.</p>")).unwrap().concat();
        let read = ReadDocument::decode(&reader.handle(&encoded).unwrap()).unwrap();
        assert_eq!((read.chunks.len(), read.chunks[0].heading.as_slice()), (1, ["Fees".to_owned()].as_slice()));
        assert_eq!(read.version.len(), 64);
        assert!(reader.handle(&encoded[..3]).is_err() && reader.handle(&encoded[..9]).is_err());
        assert!(Reader::new(b"{}").is_err());
    }
}

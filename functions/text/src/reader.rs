//! A document to chunks, as one request and its result, both of which are bytes: they go to another process and come back.

use crate::{
    chunk::{self, Chunk, Size},
    extract::{self, Source, Text},
};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

/// The length of a request's head, before it.
const LENGTH_BYTES: usize = 4;

/// What is to be read, besides the document's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRequest {
    /// The media type that its sender named.
    pub media_type: Option<String>,
    /// Its name.
    pub name: String,
    /// Whether its sender sent it as text.
    pub sent_as_text: bool,
    /// The most tokens of a chunk.
    pub size: usize,
    /// How many of them are in the chunk before too.
    pub overlap: usize,
}

/// A document that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadDocument {
    /// SHA-256 of its text, in hexadecimal.
    pub version: String,
    /// Its text in chunks.
    pub chunks: Vec<Chunk>,
}

impl ReadRequest {
    /// The request as [`Reader::answer`] takes it, one part after the other.
    ///
    /// # Errors
    /// Says why the request cannot be written.
    pub fn encode(&self, document: Bytes) -> Result<Vec<Bytes>, String> {
        let head = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        let length = u32::try_from(head.len()).map_err(|error| error.to_string())?;
        Ok(vec![Bytes::copy_from_slice(&length.to_le_bytes()), head.into(), document])
    }
}

impl ReadDocument {
    /// Reads what [`Reader::answer`] gave.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn decode(result: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(result).map_err(|error| error.to_string())
    }
}

/// Reads documents for one embedding model.
pub struct Reader {
    tokenizer: Tokenizer,
}

impl Reader {
    /// A reader that measures chunks by the tokenizer in a `tokenizer.json`.
    ///
    /// # Errors
    /// Says what is wrong with the tokenizer.
    pub fn new(tokenizer: &[u8]) -> Result<Self, String> {
        let unfit = |error: tokenizers::Error| format!("the model's tokenizer.json cannot be used: {error}");
        let mut tokenizer = Tokenizer::from_bytes(tokenizer).map_err(unfit)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(unfit)?;
        Ok(Self { tokenizer })
    }

    /// Reads a document.
    ///
    /// # Errors
    /// Says, for the document's sender, why it cannot be read.
    pub fn read(&self, request: &ReadRequest, document: &[u8]) -> Result<ReadDocument, String> {
        let ReadRequest { media_type, name, sent_as_text, size, overlap } = request;
        let source = Source { media_type: media_type.as_deref(), name, sent_as_text: *sent_as_text };
        let Text { text, format } = extract::extract(document, source)?;
        let size = Size { most: *size, overlap: *overlap };
        let chunks = chunk::split(&text, format, size, &self.tokenizer)?;
        Ok(ReadDocument { version: HEXLOWER.encode(&Sha256::digest(text.as_bytes())), chunks })
    }

    /// Reads an encoded request, and encodes its result.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn answer(&self, request: &[u8]) -> Result<Vec<u8>, String> {
        let broken = || "the request is cut off".to_owned();
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
    fn request_and_result_survive_the_way() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/onnx/models");
        let reader = Reader::new(&std::fs::read(models.join("pooling-cls/tokenizer.json")).unwrap()).unwrap();
        let name = "a.html".to_owned();
        let request = ReadRequest { media_type: None, name, sent_as_text: true, size: 24, overlap: 0 };
        let encoded = request.encode(Bytes::from_static(b"<h1>Fees</h1><p>Late.</p>")).unwrap().concat();
        let read = ReadDocument::decode(&reader.answer(&encoded).unwrap()).unwrap();
        assert_eq!((read.chunks.len(), read.chunks[0].heading.as_slice()), (1, ["Fees".to_owned()].as_slice()));
        assert_eq!(read.version.len(), 64);
        assert!(reader.answer(&encoded[..3]).is_err() && reader.answer(&encoded[..9]).is_err());
        assert!(Reader::new(b"{}").is_err());
    }
}

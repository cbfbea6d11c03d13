//! Reads and chunks documents in helper processes, because parsers of untrusted formats may exhaust stack, memory and
//! time.

use crate::upload::UploadedDocument;
use nerve_core::{Fault, FunctionError, LoadError};
use nerve_events::documents::{Chunk, Document};
use nerve_sandbox::{Limits, Pool, Request, SandboxError, Setup, Work};
use nerve_text::{
    ReadDocument, ReadRequest, Reader,
    chunk::{self, ChunkSize},
};
use std::time::Duration;

/// Work of a helper process that reads documents. Its setup is a model's `tokenizer.json`.
pub const READER: Work = Work {
    name: "documents",
    start: |tokenizer| {
        let reader = Reader::new(tokenizer)?;
        Ok(Box::new(move |request| reader.handle(request)))
    },
    load: None,
};

/// Stack of a reader in bytes. Parsers of HTML and PDF recurse.
const STACK_BYTES: u64 = 32 << 20;
/// Maximum size of a document in bytes. The memory limit of a reader is usually reached first.
const MAX_DOCUMENT_BYTES: u64 = 512 << 20;
/// Maximum size of a result in bytes: a document of 32 MiB with JSON escapes. The server reads it into memory.
const MAX_RESULT_BYTES: u64 = 96 << 20;

/// Helper processes that read documents.
#[derive(Clone)]
pub struct DocumentReaders {
    pool: Pool,
    memory: u64,
}

impl DocumentReaders {
    /// Helper processes from `pool`, with `memory` bytes each.
    pub fn new(pool: Pool, memory: u64) -> Self {
        Self { pool, memory }
    }
}

impl std::fmt::Debug for DocumentReaders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DocumentReaders").field("memory", &self.memory).finish_non_exhaustive()
    }
}

/// Reads documents for one embedding model.
pub(crate) struct ModelReader {
    readers: DocumentReaders,
    setup: Setup,
}

impl ModelReader {
    /// A reader that measures chunks with this `tokenizer.json`.
    ///
    /// # Errors
    /// If the tokenizer is invalid.
    pub(crate) fn new(readers: DocumentReaders, tokenizer: Vec<u8>) -> Result<Self, LoadError> {
        Reader::new(&tokenizer).map_err(LoadError::Invalid)?;
        Ok(Self { readers, setup: Setup::new(tokenizer.into()) })
    }

    /// Reads a document in a helper process of its collection.
    ///
    /// # Errors
    /// If the document cannot be read, or no helper process is available.
    pub(crate) async fn read(
        &self,
        uploaded: UploadedDocument,
        size: ChunkSize,
        timeout: Duration,
    ) -> Result<(Document, Vec<Chunk>), FunctionError> {
        let UploadedDocument { mut document, name, media_type, content, sent_as_text } = uploaded;
        let request = ReadRequest { media_type, name, sent_as_text, size: size.max, overlap: size.overlap };
        let invalid = |why: String| FunctionError::new(Fault::Invalid, why);
        let memory = self.readers.memory;
        let request = Request {
            work: READER.name,
            tenant: document.collection.clone(),
            setup: self.setup.clone(),
            parts: request.encode(content).map_err(invalid)?,
            limits: Limits { memory, stack: STACK_BYTES, input: MAX_DOCUMENT_BYTES, output: MAX_RESULT_BYTES },
            timeout,
        };
        let read = self.readers.pool.run(&request).await.map_err(|error| read_error(&error))?;
        let ReadDocument { version, chunks } = ReadDocument::decode(&read)
            .map_err(|error| FunctionError::new(Fault::Crash, format!("the reader returned no chunks: {error}")))?;
        document.version = version;
        let chunk = |chunk::Chunk { index, text, heading, start, end }| Chunk { index, text, heading, start, end };
        Ok((document, chunks.into_iter().map(chunk).collect()))
    }
}

/// Converts the error of a helper process.
fn read_error(error: &SandboxError) -> FunctionError {
    let fault = match error {
        error if error.is_permanent() => Fault::Invalid,
        SandboxError::Unavailable(_) => Fault::Retry { after: None },
        _ => Fault::Crash,
    };
    let hint = match error {
        SandboxError::Died(nerve_sandbox::Death::Memory(_)) => " (`sandbox.document_memory` in the settings)",
        SandboxError::Timeout(_) => " (`timeout` in nerve.toml)",
        _ => "",
    };
    let message = match error {
        SandboxError::Refused(why) => why.clone(),
        error => format!("the document cannot be read: {error}{hint}"),
    };
    FunctionError::new(fault, message)
}

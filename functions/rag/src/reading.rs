//! Documents to chunks, in helper processes: what reads untrusted formats may recurse, allocate and compute without bound.

use crate::upload::Uploaded;
use nerve_core::{Fault, FunctionError, LoadError};
use nerve_index::Document;
use nerve_sandbox::{Limits, Pool, Request, SandboxError, Setup, Work};
use nerve_text::{
    ReadDocument, ReadRequest, Reader,
    chunk::{Chunk, Size},
};
use std::time::Duration;

/// What a helper process does that reads documents. It is set up with a model's `tokenizer.json`.
pub const READER: Work = Work {
    name: "documents",
    start: |tokenizer| {
        let reader = Reader::new(tokenizer)?;
        Ok(Box::new(move |request| reader.answer(request)))
    },
    load: None,
};

/// The stack of a reader, in bytes: HTML and PDF are read by recursion.
const STACK_BYTES: u64 = 32 << 20;
/// The largest document, in bytes. A reader's memory bounds it sooner.
const MAX_DOCUMENT_BYTES: u64 = 512 << 20;
/// The largest result, in bytes: a document of 32 MiB with room for what JSON escapes. It is read into the server's memory.
const MAX_RESULT_BYTES: u64 = 96 << 20;

/// The helper processes that read documents.
#[derive(Clone)]
pub struct DocumentReaders {
    pool: Pool,
    memory: u64,
}

impl DocumentReaders {
    /// Helper processes of `pool`, of so much memory each, in bytes.
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
    /// A reader that measures chunks by this `tokenizer.json`.
    pub(crate) fn new(readers: DocumentReaders, tokenizer: Vec<u8>) -> Result<Self, LoadError> {
        Reader::new(&tokenizer).map_err(LoadError::Invalid)?;
        Ok(Self { readers, setup: Setup::new(tokenizer.into()) })
    }

    /// Reads a document in a helper process of its collection.
    pub(crate) async fn read(
        &self,
        uploaded: Uploaded,
        size: Size,
        timeout: Duration,
    ) -> Result<(Document, Vec<Chunk>), FunctionError> {
        let Uploaded { mut document, name, media_type, content, sent_as_text } = uploaded;
        let request = ReadRequest { media_type, name, sent_as_text, size: size.most, overlap: size.overlap };
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
        let read = self.readers.pool.run(&request).await.map_err(|error| unread(&error))?;
        let ReadDocument { version, chunks } = ReadDocument::decode(&read)
            .map_err(|error| FunctionError::new(Fault::Crash, format!("its reader gave no chunks: {error}")))?;
        document.version = version;
        Ok((document, chunks))
    }
}

/// What becomes of a document that was not read.
fn unread(error: &SandboxError) -> FunctionError {
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

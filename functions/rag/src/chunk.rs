//! `rag/chunk`: `document.uploaded` → `document.chunked`.

use crate::{
    check::Chunking,
    function::{FunctionContext, blocking, invalid},
    reader::ModelReader,
    upload::UploadedDocument,
    usage::UsageTracker,
};
use async_trait::async_trait;
use futures::future::join_all;
use nerve_core::{Context, Event, Function, Outcome};
use nerve_events::documents::DocumentChunked;
use nerve_text::chunk::ChunkSize;
use serde::Deserialize;

/// `with` of `rag/chunk`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ChunkOptions {
    /// Maximum number of tokens per chunk.
    pub(crate) size: usize,
    /// Number of tokens that consecutive chunks share.
    pub(crate) overlap: usize,
}

impl Default for ChunkOptions {
    fn default() -> Self {
        Self { size: 200, overlap: 0 }
    }
}

/// The loaded function.
pub(crate) struct Chunker {
    pub(crate) context: FunctionContext,
    pub(crate) size: ChunkSize,
    pub(crate) chunking: Chunking,
    pub(crate) reader: ModelReader,
}

#[async_trait]
impl Function for Chunker {
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        let usage = UsageTracker::of(&context);
        // The wait for a reader does not count towards the timeout.
        join_all(batch.into_iter().map(|event| self.chunk(event, &usage))).await
    }
}

impl Chunker {
    async fn chunk(&self, event: Event, usage: &UsageTracker) -> Outcome {
        let chunking = self.chunking.clone();
        let (event, uploaded) = blocking(move || {
            let mut uploaded = UploadedDocument::read(&event).map_err(invalid)?;
            uploaded.document.digest = chunking.digest(&event);
            Ok((event, uploaded))
        })
        .await?;
        // Before the reader spends any time on it.
        usage.check_tokens(&uploaded.document.collection).await?;
        let (document, chunks) = self.reader.read(uploaded, self.size, self.context.timeout).await?;
        self.context.output(&event, &DocumentChunked { document, chunks })
    }
}

//! `rag/chunk`: `document.uploaded` → `document.chunked`.

use crate::{
    accounts::Accounts,
    check::Chunking,
    function::{Frame, blocking, invalid},
    reading::ModelReader,
    upload::Uploaded,
};
use async_trait::async_trait;
use futures::future::join_all;
use nerve_core::{Context, Event, Function, Outcome};
use nerve_index::document::Document;
use nerve_text::chunk::{Chunk, Size};
use serde::{Deserialize, Serialize};

/// `with` of `rag/chunk`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ChunkOptions {
    /// The most tokens of a chunk.
    pub(crate) size: usize,
    /// Tokens that two neighbours share.
    pub(crate) overlap: usize,
}

impl Default for ChunkOptions {
    fn default() -> Self {
        Self { size: 200, overlap: 0 }
    }
}

/// `rag/chunk`: `document.uploaded` → `document.chunked`.
pub(crate) struct Chunker {
    pub(crate) frame: Frame,
    pub(crate) size: Size,
    pub(crate) chunking: Chunking,
    pub(crate) reader: ModelReader,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Chunked {
    #[serde(flatten)]
    pub(crate) document: Document,
    pub(crate) chunks: Vec<Chunk>,
}

#[async_trait]
impl Function for Chunker {
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        let accounts = Accounts::of(&context);
        // Waiting for a reader is not the document's time.
        join_all(batch.into_iter().map(|event| self.chunk(event, &accounts))).await
    }
}

impl Chunker {
    async fn chunk(&self, event: Event, accounts: &Accounts) -> Outcome {
        let chunking = self.chunking.clone();
        let (event, uploaded) = blocking(move || {
            let mut uploaded = Uploaded::read(&event).map_err(invalid)?;
            uploaded.document.digest = chunking.digest(&event);
            Ok((event, uploaded))
        })
        .await?;
        // Before it costs any.
        accounts.check_tokens(&uploaded.document.collection).await?;
        let (document, chunks) = self.reader.read(uploaded, self.size, self.frame.timeout).await?;
        self.frame.emission(&event, &Chunked { document, chunks })
    }
}

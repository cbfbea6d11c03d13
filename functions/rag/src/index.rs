//! `rag/index`: `embedding.created` or `document.deleted` → `document.indexed`.

use crate::{
    accounts::Accounts,
    check::{CHECK_REQUESTED, CheckRequest},
    chunk::Chunked,
    erase::{ERASE_REQUESTED, EraseRequest},
    function::{Frame, blocking, index_failed, invalid},
};
use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use nerve_core::{Context, Event, Fault, Function, FunctionError, Outcome};
use nerve_index::{
    Index,
    change::{Applied, Change},
    collections::TenantCollections,
    document::Document,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// The end of the types of events that say that a document is gone.
const DELETED: &str = ".deleted";

/// `rag/index`: `embedding.created` or `document.deleted` → `document.indexed`; called directly with
/// `document.check_requested`, a `document.indexed` for each document that is checked; called directly with
/// `collection.erase_requested`, one event that counts what was erased.
pub(crate) struct Indexer {
    pub(crate) frame: Frame,
    pub(crate) index: Arc<Index>,
}

#[derive(Deserialize)]
struct Embedded {
    #[serde(flatten)]
    chunked: Chunked,
    embeddings: Vec<OneEmbedding>,
}

#[derive(Deserialize)]
struct OneEmbedding {
    embedding: Numbers,
    /// Tokens that the model read for it.
    #[serde(default, deserialize_with = "nerve_core::limits::count")]
    tokens: usize,
}

/// A vector as `onnx/embed` writes it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Numbers {
    Array(Vec<f32>),
    Base64(String),
}

impl Numbers {
    fn read(self) -> Result<Vec<f32>, String> {
        match self {
            Self::Array(numbers) => Ok(numbers),
            Self::Base64(text) => {
                let bytes =
                    BASE64_STANDARD.decode(text).map_err(|error| format!("an embedding is not Base64: {error}"))?;
                let (numbers, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err("an embedding is not whole 32-bit floats: use precision = \"f32\"".to_owned());
                }
                Ok(numbers.iter().map(|four| f32::from_le_bytes(*four)).collect())
            }
        }
    }
}

#[derive(Serialize)]
struct Indexed<'d> {
    #[serde(flatten)]
    document: &'d Document,
    #[serde(flatten)]
    applied: Applied,
    removed: bool,
}

#[async_trait]
impl Function for Indexer {
    /// The changes of a batch are one transaction; if it fails, each is tried alone, unless none of them can be done now.
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        if let [event] = batch.as_slice()
            && event.ty.as_str() == ERASE_REQUESTED
        {
            return vec![self.erase(event).await];
        }
        let accounts = Accounts::of(&context);
        let mut used = Used::default();
        let changes: Vec<Result<Vec<Change>, FunctionError>> =
            batch.iter().map(|event| changes_of(event, &mut used).map_err(invalid)).collect();
        let good: Vec<Change> = changes.iter().flatten().flatten().cloned().collect();
        let (mut together, mut unavailable) = (None, None);
        if changes.iter().flatten().count() > 1 {
            match self.apply(good, &accounts).await {
                Ok(applied) => together = Some(applied.into_iter()),
                Err(error) if matches!(error.fault, Fault::Retry { .. }) => unavailable = Some(error),
                Err(_) => {}
            }
        }
        let mut outcomes = Vec::with_capacity(batch.len());
        for (event, changes) in batch.iter().zip(changes) {
            let outcome = async {
                let changes = changes?;
                if let Some(error) = &unavailable {
                    return Err(error.clone());
                }
                let applied = match &mut together {
                    Some(applied) => applied.take(changes.len()).collect(),
                    None => self.apply(changes.clone(), &accounts).await?,
                };
                let mut emissions = Vec::with_capacity(changes.len());
                for (change, applied) in changes.iter().zip(applied) {
                    let removed = matches!(change, Change::Remove(_));
                    let indexed = Indexed { document: change.document(), applied, removed };
                    emissions.extend(self.frame.emission(event, &indexed)?);
                }
                Ok(emissions)
            };
            outcomes.push(outcome.await);
        }
        self.record(&accounts, used).await;
        outcomes
    }

    async fn close(&self) {
        let index = self.index.clone();
        if let Err(error) = blocking(move || index.save().map_err(|error| index_failed(&error))).await {
            tracing::warn!(%error, "the index could not be written down: it catches up when it is opened");
        }
    }
}

impl Indexer {
    /// Erases a tenant's documents, or counts them. The time that takes grows with the index, so the function's `timeout` does not
    /// bound it: the caller bounds its own wait, and may call again.
    async fn erase(&self, event: &Event) -> Outcome {
        let request: Result<EraseRequest, _> = serde_json::from_slice(&event.data);
        let EraseRequest { collection, dry_run } =
            request.map_err(|error| invalid(format!("its data is no request to erase a collection: {error}")))?;
        let (index, tenant) = (self.index.clone(), TenantCollections::new(collection));
        let erased = blocking(move || {
            let erased = if dry_run { index.count_of(&tenant) } else { index.erase(&tenant) };
            erased.map_err(|error| index_failed(&error))
        });
        self.frame.emission(event, &erased.await?)
    }

    /// Records what the collections of a batch have now, and what it has used.
    async fn record(&self, accounts: &Accounts, used: Used) {
        for (collection, tokens) in used.0 {
            let (index, name) = (self.index.clone(), collection.clone());
            let held = blocking(move || index.held_of(&name).map_err(|error| index_failed(&error))).await;
            match held {
                Ok(held) => accounts.record(&collection, tokens, Some(held)).await,
                Err(error) => tracing::warn!(%error, collection, "the documents of a collection are not counted"),
            }
        }
    }

    async fn apply(&self, changes: Vec<Change>, accounts: &Accounts) -> Result<Vec<Applied>, FunctionError> {
        let (index, quotas) = (self.index.clone(), accounts.quotas.clone());
        let work = blocking(move || index.apply_within(&changes, &quotas).map_err(|error| index_failed(&error)));
        let late =
            || FunctionError::new(Fault::Timeout, format!("the index took longer than {:?}", self.frame.timeout));
        tokio::time::timeout(self.frame.timeout, work).await.map_err(|_| late())?
    }
}

/// Tokens by collection, of those that a batch changes.
#[derive(Default)]
struct Used(BTreeMap<String, usize>);

impl Used {
    fn add(&mut self, collection: &str, tokens: usize) {
        let used = self.0.entry(collection.to_owned()).or_default();
        *used = used.saturating_add(tokens);
    }
}

fn changes_of(event: &Event, used: &mut Used) -> Result<Vec<Change>, String> {
    let unread = |error: serde_json::Error| format!("its data is not what `rag/index` reads: {error}");
    if event.ty.as_str().ends_with(DELETED) {
        let mut document: Document = serde_json::from_slice(&event.data).map_err(unread)?;
        if let (0, Some(time)) = (document.uploaded_at, event.time) {
            document.uploaded_at = i64::try_from(time.unix_timestamp_nanos()).unwrap_or_default();
        }
        used.add(&document.collection, 0);
        return Ok(vec![Change::Remove(document)]);
    }
    if event.ty.as_str() == CHECK_REQUESTED {
        let CheckRequest { documents } = serde_json::from_slice(&event.data).map_err(unread)?;
        return Ok(documents.into_iter().map(Change::Confirm).collect());
    }
    let Embedded { chunked: Chunked { document, chunks }, embeddings } =
        serde_json::from_slice(&event.data).map_err(unread)?;
    if chunks.len() != embeddings.len() {
        return Err(format!("it has {} chunks and {} embeddings: one belongs to each", chunks.len(), embeddings.len()));
    }
    let tokens = embeddings.iter().fold(0, |sum: usize, one| sum.saturating_add(one.tokens));
    used.add(&document.collection, tokens);
    let vectors = embeddings.into_iter().map(|one| one.embedding.read());
    let chunks =
        chunks.into_iter().zip(vectors).map(|(chunk, vector)| Ok((chunk, vector?))).collect::<Result<_, String>>()?;
    Ok(vec![Change::Replace { document, chunks }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use nerve_core::{Emission, EventType, function::Emitter};
    use serde_json::{Value, json};
    use std::time::Duration;

    struct NoEmitter;

    #[async_trait]
    impl Emitter for NoEmitter {
        async fn emit(&self, _index: usize, _emission: Emission) -> Result<(), FunctionError> {
            unreachable!("an index emits nothing before its end");
        }
    }

    fn event(ty: &str, data: &Value) -> Event {
        Event::new("e", "/test", EventType::parse(ty).unwrap()).with_data("application/json", data.to_string())
    }

    fn embedded(document: &str, uploaded_at: i64, digest: &str) -> Event {
        let chunks = json!([{"index": 0, "text": "some words", "start": 0, "end": 10}]);
        let data = json!({"document": document, "digest": digest, "uploaded_at": uploaded_at, "chunks": chunks,
                          "embeddings": [{"embedding": [1.0, 0.0]}]});
        event("embedding.created", &data)
    }

    async fn answers(indexer: &Indexer, batch: Vec<Event>) -> Vec<Value> {
        let outcomes =
            indexer.invoke(batch, Context { emitter: Arc::new(NoEmitter), views: None, quotas: Arc::default() }).await;
        let emissions = outcomes.into_iter().flat_map(|outcome| outcome.expect("no event fails"));
        emissions.map(|one| serde_json::from_slice(&one.data).unwrap()).collect()
    }

    #[tokio::test]
    async fn index_says_of_each_checked_document_whether_it_is_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let emits = EventType::parse("document.indexed").unwrap();
        let frame = Frame { emits, side_events: Vec::new(), timeout: Duration::from_secs(30) };
        let indexer = Indexer { frame, index: Arc::new(Index::open(folder.path(), "test", 2).unwrap()) };
        let deleted = event("document.deleted", &json!({"document": "gone", "uploaded_at": 2}));
        let made = [embedded("same", 1, "A"), embedded("changed", 1, "A"), embedded("gone", 1, "A"), deleted];
        assert_eq!(answers(&indexer, made.to_vec()).await.len(), 4);
        let ask = |document: &str| json!({"document": document, "digest": "A", "uploaded_at": 5});
        let documents = json!([ask("same"), ask("new"), {"document": "changed", "digest": "B"}, ask("gone")]);
        let check = event(CHECK_REQUESTED, &json!({"documents": documents}));
        let checked = answers(&indexer, vec![check, embedded("new", 7, "A")]).await;
        let of = |answer: &Value| {
            let checked: crate::check::Checked = serde_json::from_value(answer.clone()).unwrap();
            (checked.document, checked.unchanged, checked.latest_upload)
        };
        let expected =
            [("same", true, 5), ("new", false, 0), ("changed", false, 1), ("gone", false, 2), ("new", false, 7)];
        let expected = expected.map(|(document, unchanged, latest)| (document.to_owned(), unchanged, latest));
        assert_eq!(checked.iter().map(of).collect::<Vec<_>>(), expected);
    }
}

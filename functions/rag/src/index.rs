//! `rag/index`: `embedding.created` or `document.deleted` → `document.indexed`.

use crate::{
    check::{CHECK_REQUESTED, CheckRequest},
    erase::{ERASE_REQUESTED, EraseRequest},
    function::{FunctionContext, blocking, index_failed, invalid},
    usage::UsageTracker,
};
use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use nerve_core::{Context, Event, Fault, Function, FunctionError, Outcome};
use nerve_events::documents::{
    DEFAULT_COLLECTION, Document, DocumentDeleted, DocumentIndexed, EmbeddingCreated, EncodedVector,
};
use nerve_index::{
    Index,
    change::{Change, ChangeResult},
    collections::TenantCollections,
};
use std::{collections::BTreeMap, sync::Arc};

/// Suffix of event types that delete a document.
const DELETED_SUFFIX: &str = ".deleted";

/// `rag/index`. A direct call with `document.check_requested` returns one `document.indexed` per checked document; one
/// with `collection.erase_requested` returns one event with the erased counts.
pub(crate) struct Indexer {
    pub(crate) context: FunctionContext,
    pub(crate) index: Arc<Index>,
}

/// Reads a vector in either encoding.
fn vector_of(encoded: EncodedVector) -> Result<Vec<f32>, String> {
    match encoded {
        EncodedVector::Array(numbers) => Ok(numbers),
        EncodedVector::Base64(text) => {
            let bytes = BASE64_STANDARD.decode(text).map_err(|error| format!("an embedding is not Base64: {error}"))?;
            let (numbers, rest) = bytes.as_chunks::<4>();
            if !rest.is_empty() {
                return Err("an embedding does not consist of 32-bit floats: use precision = \"f32\"".to_owned());
            }
            Ok(numbers.iter().map(|four| f32::from_le_bytes(*four)).collect())
        }
    }
}

/// The result of a change as an event.
fn indexed(change: &Change, applied: ChangeResult) -> DocumentIndexed {
    let ChangeResult { chunks, replaced, stale, unchanged, latest_upload } = applied;
    let (document, removed) = (change.document().clone(), matches!(change, Change::Remove(_)));
    DocumentIndexed { document, chunks, replaced, stale, unchanged, latest_upload, removed }
}

#[async_trait]
impl Function for Indexer {
    /// Applies all changes of a batch in one transaction. If it fails, applies those of each event separately, unless
    /// the index is unavailable.
    async fn invoke(&self, batch: Vec<Event>, context: Context) -> Vec<Outcome> {
        if let [event] = batch.as_slice()
            && event.ty.as_str() == ERASE_REQUESTED
        {
            return vec![self.erase(event).await];
        }
        let usage = UsageTracker::of(&context);
        let mut tokens_used = TokensByCollection::default();
        let changes: Vec<Result<Vec<Change>, FunctionError>> =
            batch.iter().map(|event| parse_changes(event, &mut tokens_used).map_err(invalid)).collect();
        let valid_changes: Vec<Change> = changes.iter().flatten().flatten().cloned().collect();
        let (mut applied_together, mut unavailable) = (None, None);
        if changes.iter().flatten().count() > 1 {
            match self.apply(valid_changes, &usage).await {
                Ok(applied) => applied_together = Some(applied.into_iter()),
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
                let applied = match &mut applied_together {
                    Some(applied) => applied.take(changes.len()).collect(),
                    None => self.apply(changes.clone(), &usage).await?,
                };
                let mut emissions = Vec::with_capacity(changes.len());
                for (change, applied) in changes.iter().zip(applied) {
                    emissions.extend(self.context.output(event, &indexed(change, applied))?);
                }
                Ok(emissions)
            };
            outcomes.push(outcome.await);
        }
        self.record(&usage, tokens_used).await;
        outcomes
    }

    async fn close(&self) {
        let index = self.index.clone();
        if let Err(error) = blocking(move || index.save().map_err(|error| index_failed(&error))).await {
            tracing::warn!(%error, "cannot save the index; it will catch up when it is opened");
        }
    }
}

impl Indexer {
    /// Erases or counts a tenant's documents. The duration grows with the index, so the function's `timeout` does not
    /// apply: the caller limits its own wait and may call again.
    async fn erase(&self, event: &Event) -> Outcome {
        let request: Result<EraseRequest, _> = serde_json::from_slice(&event.data);
        let EraseRequest { collection, dry_run } =
            request.map_err(|error| invalid(format!("its data is not a request to erase a collection: {error}")))?;
        let (index, tenant) = (self.index.clone(), TenantCollections::new(collection));
        let erased = blocking(move || {
            let erased = if dry_run { index.count_tenant(&tenant) } else { index.erase(&tenant) };
            erased.map_err(|error| index_failed(&error))
        });
        self.context.output(event, &erased.await?)
    }

    /// Records the document counts and token usage of the collections in a batch.
    async fn record(&self, usage: &UsageTracker, tokens_used: TokensByCollection) {
        for (collection, tokens) in tokens_used.0 {
            let (index, name) = (self.index.clone(), collection.clone());
            let stored = blocking(move || index.collection_usage(&name).map_err(|error| index_failed(&error))).await;
            match stored {
                Ok(stored) => usage.record(&collection, tokens, Some(stored)).await,
                Err(error) => tracing::warn!(%error, collection, "cannot count the documents of a collection"),
            }
        }
    }

    async fn apply(&self, changes: Vec<Change>, usage: &UsageTracker) -> Result<Vec<ChangeResult>, FunctionError> {
        let (index, quotas) = (self.index.clone(), usage.quotas.clone());
        let work = blocking(move || index.apply_with_quotas(&changes, &quotas).map_err(|error| index_failed(&error)));
        let timed_out = || {
            FunctionError::new(
                Fault::Timeout,
                format!("the index timed out after {:?} (`timeout` in nerve.toml)", self.context.timeout),
            )
        };
        tokio::time::timeout(self.context.timeout, work).await.map_err(|_| timed_out())?
    }
}

/// Token usage per collection of a batch.
#[derive(Default)]
struct TokensByCollection(BTreeMap<String, usize>);

impl TokensByCollection {
    fn add(&mut self, collection: &str, tokens: usize) {
        let tokens_used = self.0.entry(collection.to_owned()).or_default();
        *tokens_used = tokens_used.saturating_add(tokens);
    }
}

fn parse_changes(event: &Event, tokens_used: &mut TokensByCollection) -> Result<Vec<Change>, String> {
    let malformed = |error: serde_json::Error| format!("its data is not valid for `rag/index`: {error}");
    if event.ty.as_str().ends_with(DELETED_SUFFIX) {
        let document = deleted_document(serde_json::from_slice(&event.data).map_err(malformed)?, event);
        tokens_used.add(&document.collection, 0);
        return Ok(vec![Change::Remove(document)]);
    }
    if event.ty.as_str() == CHECK_REQUESTED {
        let CheckRequest { documents } = serde_json::from_slice(&event.data).map_err(malformed)?;
        return Ok(documents.into_iter().map(Change::Confirm).collect());
    }
    let EmbeddingCreated { document, mut chunks, embeddings, .. } =
        serde_json::from_slice(&event.data).map_err(malformed)?;
    if chunks.len() != embeddings.len() {
        return Err(format!(
            "it has {} chunks and {} embeddings: the numbers must be equal",
            chunks.len(),
            embeddings.len()
        ));
    }
    let tokens = embeddings.iter().fold(0, |sum: usize, one| sum.saturating_add(one.tokens));
    tokens_used.add(&document.collection, tokens);
    // A chunker may leave the numbers to their order.
    for (position, chunk) in chunks.iter_mut().enumerate().filter(|(_, chunk)| chunk.index == 0) {
        chunk.index = position;
    }
    let vectors = embeddings.into_iter().map(|one| vector_of(one.embedding));
    let chunks =
        chunks.into_iter().zip(vectors).map(|(chunk, vector)| Ok((chunk, vector?))).collect::<Result<_, String>>()?;
    Ok(vec![Change::Replace { document, chunks }])
}

/// The document that an event deletes, at the time of the event unless its data has another.
fn deleted_document(deleted: DocumentDeleted, event: &Event) -> Document {
    let DocumentDeleted { collection, document, metadata, name, uploaded_at, version } = deleted;
    let of_event = || event.time.and_then(|time| i64::try_from(time.unix_timestamp_nanos()).ok());
    Document {
        collection: collection.unwrap_or_else(|| DEFAULT_COLLECTION.to_owned()),
        document,
        name: name.unwrap_or_default(),
        version: version.unwrap_or_default(),
        digest: String::new(),
        uploaded_at: uploaded_at.filter(|at| *at != 0).or_else(of_event).unwrap_or_default(),
        metadata,
    }
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
    async fn check_reports_whether_each_document_is_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let emits = EventType::parse("document.indexed").unwrap();
        let context = FunctionContext { emits, auxiliary_outputs: Vec::new(), timeout: Duration::from_secs(30) };
        let indexer = Indexer { context, index: Arc::new(Index::open(folder.path(), "test", 2).unwrap()) };
        let deleted = event("document.deleted", &json!({"document": "gone", "uploaded_at": 2}));
        let made = [embedded("same", 1, "A"), embedded("changed", 1, "A"), embedded("gone", 1, "A"), deleted];
        assert_eq!(answers(&indexer, made.to_vec()).await.len(), 4);
        let ask = |document: &str| json!({"document": document, "digest": "A", "uploaded_at": 5});
        let documents = json!([ask("same"), ask("new"), {"document": "changed", "digest": "B"}, ask("gone")]);
        let check = event(CHECK_REQUESTED, &json!({"documents": documents}));
        let checked = answers(&indexer, vec![check, embedded("new", 7, "A")]).await;
        let of = |answer: &Value| {
            let checked: DocumentIndexed = serde_json::from_value(answer.clone()).unwrap();
            (checked.document.document, checked.unchanged, checked.latest_upload)
        };
        let expected =
            [("same", true, 5), ("new", false, 0), ("changed", false, 1), ("gone", false, 2), ("new", false, 7)];
        let expected = expected.map(|(document, unchanged, latest)| (document.to_owned(), unchanged, latest));
        assert_eq!(checked.iter().map(of).collect::<Vec<_>>(), expected);
    }
}

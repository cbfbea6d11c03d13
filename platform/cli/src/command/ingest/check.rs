//! Checks which documents the index already has unchanged.

use nerve_broker::bus::{Bus, InvokeError};
use nerve_core::{Event, EventType, Name, manifest::RuntimeSpec};
use nerve_events::{
    EventData,
    documents::{Document, DocumentIndexed, DocumentUploaded},
};
use nerve_rag::check::{CHECK_REQUESTED, CheckRequest, Chunking};
use nerve_registry::{Entry, FunctionRecord, Registry};
use std::{collections::HashMap, time::Duration};
use time::OffsetDateTime;
use uuid::Uuid;

/// Timeout of a check. If the index is slower, all documents are uploaded.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// A check with the deployed index.
pub(super) struct IndexCheck {
    index: Name,
    chunking: Chunking,
    failure: Option<InvokeError>,
}

impl IndexCheck {
    /// Creates the check if exactly one built-in index and one built-in chunker, which computes the digests, are
    /// deployed.
    pub(super) async fn find(registry: &Registry) -> anyhow::Result<Option<Self>> {
        let functions = registry.functions().await?;
        let subject = format!("events.{}", DocumentUploaded::TYPE);
        let consumes_uploads = |entry: &&Entry<FunctionRecord>| {
            builtin(entry, "rag/chunk") && entry.record.spec.on.iter().any(|pattern| pattern.covers(&subject))
        };
        let mut chunkers = functions.iter().filter(consumes_uploads);
        let mut indexes = functions.iter().filter(|entry| builtin(entry, "rag/index"));
        let (Some(chunker), None, Some(index), None) =
            (chunkers.next(), chunkers.next(), indexes.next(), indexes.next())
        else {
            return Ok(None);
        };
        let RuntimeSpec::Builtin { model, with, .. } = &chunker.record.spec.run else { return Ok(None) };
        let Ok(chunking) = Chunking::new(model.as_deref(), with) else { return Ok(None) };
        Ok(Some(Self { index: index.name.clone(), chunking, failure: None }))
    }

    /// Returns the error of the index. After an error it is not queried again.
    pub(super) fn failure(&self) -> Option<&InvokeError> {
        self.failure.as_ref()
    }

    /// Returns the state of these documents in the index, by name; empty if the index does not respond.
    pub(super) async fn check(
        &mut self,
        bus: &Bus,
        collection: &str,
        uploads: &[(Event, String)],
    ) -> HashMap<String, DocumentIndexed> {
        if self.failure.is_some() || uploads.is_empty() {
            return HashMap::new();
        }
        match self.request(bus, collection, uploads).await {
            Ok(results) => {
                let checked = results.iter().filter_map(|result| serde_json::from_slice(&result.data).ok());
                checked.map(|checked: DocumentIndexed| (checked.document.document.clone(), checked)).collect()
            }
            Err(error) => {
                self.failure = Some(error);
                HashMap::new()
            }
        }
    }

    async fn request(
        &self,
        bus: &Bus,
        collection: &str,
        uploads: &[(Event, String)],
    ) -> Result<Vec<Event>, InvokeError> {
        let document = |(upload, name): &(Event, String)| Document {
            collection: collection.to_owned(),
            document: name.clone(),
            name: name.clone(),
            version: String::new(),
            digest: self.chunking.digest(upload),
            uploaded_at: uploaded_at(upload),
            metadata: serde_json::Map::new(),
        };
        let request = CheckRequest { documents: uploads.iter().map(document).collect() };
        let invalid = |error: String| nerve_core::FunctionError::new(nerve_core::Fault::Invalid, error);
        let ty = EventType::parse(CHECK_REQUESTED).map_err(|error| invalid(error.to_string()))?;
        let data = serde_json::to_vec(&request).map_err(|error| invalid(error.to_string()))?;
        let event = Event::new(Uuid::now_v7().to_string(), "/nerve/ingest", ty).with_data("application/json", data);
        bus.invoke(&self.index, &event, CHECK_TIMEOUT).await
    }
}

fn builtin(entry: &Entry<FunctionRecord>, expected: &str) -> bool {
    matches!(&entry.record.spec.run, RuntimeSpec::Builtin { function, .. } if function == expected)
}

fn uploaded_at(upload: &Event) -> i64 {
    let nanoseconds = upload.time.map(OffsetDateTime::unix_timestamp_nanos).unwrap_or_default();
    i64::try_from(nanoseconds).unwrap_or_default()
}

/// Returns the time right after an upload, which is in nanoseconds since the Unix epoch.
pub(super) fn time_after(uploaded_at: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(uploaded_at) + 1).ok()
}

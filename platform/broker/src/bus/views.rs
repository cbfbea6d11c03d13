//! What lasts beyond an event: documents by key in the bucket `views`, written over a version or not at all.

use super::{Bus, BusError, streams::VIEWS};
use async_nats::jetstream::kv::{self, CreateErrorKind, UpdateErrorKind};
use async_trait::async_trait;
use bytes::Bytes;
use nerve_core::{
    Fault, FunctionError,
    function::{View, Views},
};

impl Bus {
    async fn views(&self, what: &str) -> Result<kv::Store, BusError> {
        let store = self.jetstream.get_key_value(VIEWS).await;
        store.map_err(|error| BusError::unavailable(format!("{what} a view"), error))
    }
}

/// Whatever the broker says, the event is tried again.
fn again(error: impl std::fmt::Display) -> FunctionError {
    FunctionError::new(Fault::Retry { after: None }, error.to_string())
}

fn unwritten(error: impl Into<async_nats::Error>) -> FunctionError {
    again(BusError::of_bucket(VIEWS, "writing a view", error))
}

#[async_trait]
impl Views for Bus {
    async fn view(&self, key: &str) -> Result<Option<View>, FunctionError> {
        let store = self.views("reading").await.map_err(again)?;
        let entry = store.entry(key).await.map_err(again)?;
        Ok(entry
            .filter(|entry| entry.operation == kv::Operation::Put)
            .map(|entry| View { data: entry.value, revision: entry.revision }))
    }

    async fn put_view(&self, key: &str, data: Bytes, after: Option<u64>) -> Result<bool, FunctionError> {
        let store = self.views("writing").await.map_err(again)?;
        match after {
            Some(revision) => match store.update(key, data, revision).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
                Err(error) => Err(unwritten(error)),
            },
            None => match store.create(key, data).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(unwritten(error)),
            },
        }
    }
}

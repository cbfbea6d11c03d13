//! Views: documents by key in the bucket `views`, written with optimistic locking.

use super::error::ResultExt as _;
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
        self.jetstream.get_key_value(VIEWS).await.unavailable(|| format!("{what} a view"))
    }
}

/// Any broker error is retried.
fn retryable(error: impl std::fmt::Display) -> FunctionError {
    FunctionError::new(Fault::Retry { after: None }, error.to_string())
}

fn write_failed(error: impl Into<async_nats::Error>) -> FunctionError {
    retryable(BusError::of_bucket(VIEWS, "writing a view", error))
}

#[async_trait]
impl Views for Bus {
    async fn view(&self, key: &str) -> Result<Option<View>, FunctionError> {
        let store = self.views("reading").await.map_err(retryable)?;
        let entry = store.entry(key).await.map_err(retryable)?;
        Ok(entry
            .filter(|entry| entry.operation == kv::Operation::Put)
            .map(|entry| View { data: entry.value, revision: entry.revision }))
    }

    async fn put_view(&self, key: &str, data: Bytes, after: Option<u64>) -> Result<bool, FunctionError> {
        let store = self.views("writing").await.map_err(retryable)?;
        match after {
            Some(revision) => match store.update(key, data, revision).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
                Err(error) => Err(write_failed(error)),
            },
            None => match store.create(key, data).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(write_failed(error)),
            },
        }
    }
}

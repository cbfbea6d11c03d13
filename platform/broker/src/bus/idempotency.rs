//! Requests with an `Idempotency-Key`: their digest, the id of their event, and their receipt.
//!
//! They are stored in the KV bucket `requests`, by the identity of caller, route and key, for `gateway.idempotency_window`. The record
//! is written before the event, so that a repeated request finds the event's id; the receipt is added once the event is stored.

use super::error::ResultExt as _;
use super::{Bus, BusError, buckets::Bucket};
use crate::streams::StreamsConfig;
use async_nats::jetstream::kv::{self, CreateErrorKind, UpdateErrorKind};
use nerve_core::Identity;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;
use time::OffsetDateTime;

/// KV: requests with an `Idempotency-Key`.
pub(super) const REQUESTS: &str = "requests";
/// The stream of that bucket.
pub(super) const STREAM: &str = "KV_requests";

/// The stored record of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// The digest of the request.
    pub digest: String,
    /// The id of the resulting event and answer.
    pub id: String,
    /// The receipt of the event, once it is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Value>,
}

/// A stored record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRequest {
    /// The record.
    pub record: RequestRecord,
    /// Its revision.
    pub revision: u64,
    /// The storage time of this revision.
    pub stored: OffsetDateTime,
}

impl Bus {
    /// Creates the bucket if it is missing, and sets the maximum age of its records.
    pub async fn provision_requests(&self, max_age: Duration, config: &StreamsConfig) -> Result<(), BusError> {
        self.ensure_bucket(Bucket { name: REQUESTS, history: 1, max_age, config, disk: None }).await
    }

    async fn requests(&self) -> Result<&kv::Store, BusError> {
        self.requests
            .get_or_try_init(|| self.jetstream.get_key_value(REQUESTS))
            .await
            .unavailable("opening the bucket requests")
    }

    /// Finds the request of this identity, if there was one within the window.
    pub async fn request(&self, id: Identity) -> Result<Option<StoredRequest>, BusError> {
        let what = || format!("reading the request {id}");
        let entry = self.requests().await?.entry(id.to_string()).await.unavailable(what)?;
        let Some(entry) = entry.filter(|entry| entry.operation == kv::Operation::Put) else { return Ok(None) };
        let record = serde_json::from_slice(&entry.value).refused(what)?;
        Ok(Some(StoredRequest { record, revision: entry.revision, stored: entry.created }))
    }

    /// Stores the record of a new request, and returns its revision; `None` if the identity is taken.
    pub async fn create_request(&self, id: Identity, record: &RequestRecord) -> Result<Option<u64>, BusError> {
        let what = || format!("storing the request {id}");
        let body = serde_json::to_vec(record).refused(what)?;
        match self.requests().await?.create(id.to_string(), body.into()).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(BusError::of_bucket(REQUESTS, what(), error)),
        }
    }

    /// Stores the record with its receipt over the revision `after`. Another process may have done so.
    pub async fn finish_request(&self, id: Identity, record: &RequestRecord, after: u64) -> Result<(), BusError> {
        let what = || format!("storing the receipt of the request {id}");
        let body = serde_json::to_vec(record).refused(what)?;
        match self.requests().await?.update(id.to_string(), body.into(), after).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(()),
            Err(error) => Err(BusError::of_bucket(REQUESTS, what(), error)),
        }
    }

    /// Deletes the record of a rejected request, if it still has this revision.
    pub async fn withdraw_request(&self, id: Identity, revision: u64) -> Result<(), BusError> {
        self.requests()
            .await?
            .delete_expect_revision(id.to_string(), Some(revision))
            .await
            .unavailable(|| format!("deleting the request {id}"))
    }
}

//! Key-value buckets, for crates that do not name the NATS client.

use super::error::ResultExt as _;
use super::{Bus, BusError};
use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, UpdateErrorKind};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use time::OffsetDateTime;

/// A key-value bucket; cheap to clone.
///
/// Each method accepts the name of the operation (`"reading source.github"`), which begins the error message.
#[derive(Debug, Clone)]
pub struct Bucket {
    name: &'static str,
    store: kv::Store,
}

/// A key, its value and its revision.
#[derive(Debug, Clone)]
pub struct BucketEntry {
    /// The key.
    pub key: String,
    /// The value; empty if the key was deleted.
    pub value: Bytes,
    /// The revision, which each change of the bucket increments.
    pub revision: u64,
    /// The time of this revision.
    pub created: OffsetDateTime,
    /// Whether this revision deleted the key.
    pub is_deleted: bool,
    /// Entries that follow this one in the initial state of a watch.
    pub pending: u64,
}

impl From<kv::Entry> for BucketEntry {
    fn from(entry: kv::Entry) -> Self {
        let is_deleted = entry.operation != Operation::Put;
        let kv::Entry { key, value, revision, created, delta: pending, .. } = entry;
        Self { key, value, revision, created, is_deleted, pending }
    }
}

/// The changes of a bucket, in order, from its oldest revision on.
pub type BucketChanges = BoxStream<'static, Result<BucketEntry, BusError>>;

impl Bus {
    /// Opens a bucket, which [`Bus::provision`] creates.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] if the broker cannot be reached or has no such bucket.
    pub async fn bucket(&self, name: &'static str) -> Result<Bucket, BusError> {
        let store = self.jetstream.get_key_value(name).await.unavailable(|| format!("opening the bucket {name}"))?;
        Ok(Bucket { name, store })
    }
}

impl Bucket {
    /// The current entry of a key; `None` if there is none or it was deleted.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] if the broker cannot be reached.
    pub async fn entry(&self, key: &str, what: impl Into<String>) -> Result<Option<BucketEntry>, BusError> {
        let entry = self.store.entry(key).await.unavailable(|| what.into())?;
        Ok(entry.map(BucketEntry::from).filter(|entry| !entry.is_deleted))
    }

    /// The current value of a key; `None` if there is none or it was deleted.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] if the broker cannot be reached.
    pub async fn get(&self, key: &str, what: impl Into<String>) -> Result<Option<Bytes>, BusError> {
        Ok(self.entry(key, what).await?.map(|entry| entry.value))
    }

    /// All keys that are not deleted.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] if the broker cannot be reached.
    pub async fn keys(&self, what: &str) -> Result<Vec<String>, BusError> {
        let keys = self.store.keys().await.unavailable(what)?;
        keys.try_collect().await.unavailable(what)
    }

    /// Writes a value and returns its revision.
    ///
    /// # Errors
    /// [`BusError::Full`] if the bucket is full, [`BusError::Unavailable`] if the broker cannot be reached.
    pub async fn put(&self, key: &str, value: Vec<u8>, what: impl Into<String>) -> Result<u64, BusError> {
        self.store.put(key, value.into()).await.map_err(|error| BusError::of_bucket(self.name, what, error))
    }

    /// Writes a value if the key has none, and returns its revision; `None` if it has one.
    ///
    /// # Errors
    /// [`BusError::Full`] if the bucket is full, [`BusError::Unavailable`] if the broker cannot be reached.
    pub async fn create(&self, key: &str, value: Vec<u8>, what: impl Into<String>) -> Result<Option<u64>, BusError> {
        match self.store.create(key, value.into()).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(BusError::of_bucket(self.name, what, error)),
        }
    }

    /// Replaces the value of this revision, and returns the new revision; `None` if the key has changed.
    ///
    /// # Errors
    /// [`BusError::Full`] if the bucket is full, [`BusError::Unavailable`] if the broker cannot be reached.
    pub async fn update(
        &self,
        (key, revision): (&str, u64),
        value: Vec<u8>,
        what: impl Into<String>,
    ) -> Result<Option<u64>, BusError> {
        match self.store.update(key, value.into(), revision).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
            Err(error) => Err(BusError::of_bucket(self.name, what, error)),
        }
    }

    /// Deletes a key and keeps its history.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] if the broker cannot be reached.
    pub async fn delete(&self, key: &str, what: impl Into<String>) -> Result<(), BusError> {
        self.store.delete(key).await.unavailable(|| what.into())
    }

    /// Deletes the value of this revision; `false` if the key has changed.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] if the broker cannot be reached.
    pub async fn delete_revision(&self, key: &str, revision: u64, what: impl Into<String>) -> Result<bool, BusError> {
        match self.store.delete_expect_revision(key, Some(revision)).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
            Err(error) => Err(BusError::unavailable(what, error)),
        }
    }

    /// Deletes a key and its history.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] if the broker cannot be reached.
    pub async fn purge(&self, key: &str, what: impl Into<String>) -> Result<(), BusError> {
        self.store.purge(key).await.unavailable(|| what.into())
    }

    /// Follows the bucket: every existing entry, then every change. Returns the number of existing entries as well, because a
    /// watch of an empty bucket delivers nothing.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] if the broker cannot be reached.
    pub async fn follow(&self, what: &'static str) -> Result<(u64, BucketChanges), BusError> {
        let unavailable = move |error: async_nats::Error| BusError::unavailable(what, error);
        let watch = self.store.watch_with_history(">").await.map_err(|error| unavailable(error.into()))?;
        // Requested again: the store's own information dates from when the bucket was opened.
        let info = self.store.stream.get_info().await.map_err(|error| unavailable(error.into()))?;
        let changes = watch.map(move |entry| entry.map(BucketEntry::from).map_err(|error| unavailable(error.into())));
        Ok((info.state.messages, changes.boxed()))
    }
}

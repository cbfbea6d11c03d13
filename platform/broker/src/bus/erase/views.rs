//! Lists and deletes documents in the bucket `views`.

use super::{
    super::{Bus, BusError, Start, streams::VIEWS},
    remove::BucketEntry,
};
use bytes::Bytes;

/// A document in the bucket `views`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredView {
    /// Its key.
    pub key: String,
    /// Its revision.
    pub revision: u64,
    /// Its content.
    pub data: Bytes,
}

impl Bus {
    /// Calls `show` for each document whose key matches `pattern`, oldest first.
    pub async fn each_view(&self, pattern: &str, mut show: impl FnMut(StoredView)) -> Result<(), BusError> {
        let prefix = format!("$KV.{VIEWS}.");
        let filters = vec![format!("{prefix}{pattern}")];
        self.for_each(&format!("KV_{VIEWS}"), filters, Start::First, |message, revision, _| {
            let key = message.subject.strip_prefix(&prefix).unwrap_or_default().to_owned();
            show(StoredView { key, revision, data: message.payload });
            true
        })
        .await
    }

    /// Deletes documents by key and revision, except those that were updated since.
    pub async fn erase_views(&self, views: impl IntoIterator<Item = (String, u64)>) -> Result<(), BusError> {
        let entry = |(key, revision)| BucketEntry { subject: format!("$KV.{VIEWS}.{key}"), revision };
        let entries: Vec<BucketEntry> = views.into_iter().map(entry).collect();
        self.purge_entries(&format!("KV_{VIEWS}"), &entries).await
    }
}

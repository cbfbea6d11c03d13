//! Documents in the bucket `views`, listed by their keys and deleted.

use super::super::{Bus, BusError, Start, streams::VIEWS};
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
    /// Shows each document whose key matches `pattern`, oldest first.
    pub async fn each_view(&self, pattern: &str, mut show: impl FnMut(StoredView)) -> Result<(), BusError> {
        let prefix = format!("$KV.{VIEWS}.");
        let filters = vec![format!("{prefix}{pattern}")];
        self.each(&format!("KV_{VIEWS}"), filters, Start::First, |message, revision, _| {
            let key = message.subject.strip_prefix(&prefix).unwrap_or_default().to_owned();
            show(StoredView { key, revision, data: message.payload });
            true
        })
        .await
    }

    /// Deletes documents, each as it was in that revision: one that was written since stays.
    pub async fn erase_views(&self, revisions: impl IntoIterator<Item = u64>) -> Result<(), BusError> {
        self.delete(&format!("KV_{VIEWS}"), revisions.into_iter()).await
    }
}

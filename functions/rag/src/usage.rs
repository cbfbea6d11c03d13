//! Usage of each collection, recorded in the bucket `views`, and its token quota.

use crate::{
    function::invalid,
    views::{self, ViewChange},
};
use nerve_core::{
    Context, FunctionError,
    function::Views,
    quota::{CollectionUsage, Quotas, usage_key},
};
use nerve_index::collections::is_conversation;
use std::sync::Arc;
use time::OffsetDateTime;

/// Usage of all collections, as seen by one invocation.
#[derive(Clone)]
pub(crate) struct UsageTracker {
    views: Option<Arc<dyn Views>>,
    pub(crate) quotas: Arc<Quotas>,
}

impl UsageTracker {
    pub(crate) fn of(context: &Context) -> Self {
        Self { views: context.views.clone(), quotas: context.quotas.clone() }
    }

    /// Rejects work that costs tokens if the collection has used up its daily quota.
    ///
    /// # Errors
    /// `Fault::Invalid` if the quota is used up; the error of `views` if it cannot be read.
    pub(crate) async fn check_tokens(&self, collection: &str) -> Result<(), FunctionError> {
        let quota = self.quotas.of(collection);
        let Some(views) = self.views.as_deref().filter(|_| quota.tokens_per_day.is_some()) else { return Ok(()) };
        let usage: CollectionUsage = views::read(views, &usage_key(collection)).await?.unwrap_or_default();
        let now = OffsetDateTime::now_utc();
        usage.check_tokens(quota, collection, now).map_err(|over| invalid(over.to_string()))
    }

    /// Adds tokens to the usage of a collection.
    pub(crate) async fn count_tokens(&self, collection: &str, tokens: usize) {
        self.record(collection, tokens, None).await;
    }

    /// Adds tokens, and records the document count and text bytes that the index stores for a collection.
    pub(crate) async fn record(&self, collection: &str, tokens: usize, stored: Option<(u64, u64)>) {
        let Some(views) = self.views.as_deref().filter(|_| !is_conversation(collection)) else { return };
        if tokens == 0 && stored.is_none() {
            return;
        }
        let tokens = u64::try_from(tokens).unwrap_or(u64::MAX);
        let count = |usage: &mut CollectionUsage| {
            usage.collection = collection.to_owned();
            usage.add_tokens(tokens, OffsetDateTime::now_utc());
            if let Some((documents, bytes)) = stored {
                (usage.documents, usage.documents_bytes) = (documents, bytes);
            }
            ViewChange::Write(())
        };
        let document = "the usage of a collection";
        if let Err(error) = views::update(views, &usage_key(collection), document, count).await {
            // The work is done, so its event must not fail.
            tracing::warn!(%error, collection, "cannot record the usage of a collection");
        }
    }
}

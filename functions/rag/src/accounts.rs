//! What collections use, recorded in the bucket `views`, and whether they may use more.

use crate::{
    function::invalid,
    views::{self, Change},
};
use nerve_core::{
    Context, FunctionError,
    function::Views,
    quota::{CollectionUsage, Quotas, usage_key},
};
use nerve_index::collections::is_conversation;
use std::sync::Arc;
use time::OffsetDateTime;

/// The accounts of all collections, as one invocation sees them.
#[derive(Clone)]
pub(crate) struct Accounts {
    views: Option<Arc<dyn Views>>,
    pub(crate) quotas: Arc<Quotas>,
}

impl Accounts {
    pub(crate) fn of(context: &Context) -> Self {
        Self { views: context.views.clone(), quotas: context.quotas.clone() }
    }

    /// Refuses what costs tokens where the collection has none left for today.
    pub(crate) async fn check_tokens(&self, collection: &str) -> Result<(), FunctionError> {
        let quota = self.quotas.of(collection);
        let Some(views) = self.views.as_deref().filter(|_| quota.tokens_per_day.is_some()) else { return Ok(()) };
        let usage: CollectionUsage = views::read(views, &usage_key(collection)).await?.unwrap_or_default();
        let now = OffsetDateTime::now_utc();
        usage.check_tokens(quota, collection, now).map_err(|over| invalid(over.to_string()))
    }

    /// Counts tokens that were used for a collection.
    pub(crate) async fn count_tokens(&self, collection: &str, tokens: usize) {
        self.record(collection, tokens, None).await;
    }

    /// Counts tokens, and records what the index has of a collection: documents, and the bytes of their text.
    pub(crate) async fn record(&self, collection: &str, tokens: usize, held: Option<(u64, u64)>) {
        let Some(views) = self.views.as_deref().filter(|_| !is_conversation(collection)) else { return };
        if tokens == 0 && held.is_none() {
            return;
        }
        let tokens = u64::try_from(tokens).unwrap_or(u64::MAX);
        let count = |usage: &mut CollectionUsage| {
            usage.collection = collection.to_owned();
            usage.add_tokens(tokens, OffsetDateTime::now_utc());
            if let Some((documents, bytes)) = held {
                (usage.documents, usage.documents_bytes) = (documents, bytes);
            }
            Change::Write(())
        };
        let what = "what a collection has used";
        if let Err(error) = views::update(views, &usage_key(collection), what, count).await {
            // The work is done: its event does not fail for that.
            tracing::warn!(%error, collection, "what a collection has used is not recorded");
        }
    }
}

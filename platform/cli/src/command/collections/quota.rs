//! `nerve collections quota`

use super::list;
use crate::{
    connection::Connection,
    globals::{DataFolder, Globals},
};
use clap::Args;
use nerve_core::quota::Quota;

/// Set the quota of a collection
#[derive(Debug, Args)]
#[command(after_help = "\
Limits without an option are not changed. 0 is unlimited, even if the settings ([collections]) have a limit. Servers apply
changes immediately. Document and byte limits are exact: requests that exceed them get 507 or become dead letters. Requests
over the rate limits get 429.

Examples:
  nerve collections quota acme --documents 1000 --documents-bytes 100000000
  nerve collections quota acme --events-per-minute 60 --tokens-per-day 1000000
  nerve collections quota acme --reset                  use the settings")]
pub(crate) struct SetQuota {
    /// The collection
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: String,
    /// Documents in the index
    #[arg(long, value_name = "N")]
    documents: Option<u64>,
    /// Bytes of the documents' text
    #[arg(long, value_name = "N")]
    documents_bytes: Option<u64>,
    /// Documents, deletions, questions and feedback per minute
    #[arg(long, value_name = "N")]
    events_per_minute: Option<u64>,
    /// Model tokens per day (UTC)
    #[arg(long, value_name = "N")]
    tokens_per_day: Option<u64>,
    /// Reset limits without an option to the settings
    #[arg(long)]
    reset: bool,
    #[command(flatten)]
    folder: DataFolder,
}

impl SetQuota {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let registry = connection.registry().await?;
        let default = connection.config.collections;
        let given = Quota {
            documents: self.documents,
            documents_bytes: self.documents_bytes,
            events_per_minute: self.events_per_minute,
            tokens_per_day: self.tokens_per_day,
        };
        let before = if self.reset { Quota::default() } else { registry.quota(&self.name).await?.unwrap_or_default() };
        let quota = given.or(before);
        if self.reset || quota != before {
            registry.set_quota(&self.name, Some(quota).filter(|quota| *quota != Quota::default())).await?;
        }
        if quota == Quota::default() && list::collections(&connection, default).await?.is_empty() {
            return Ok(());
        }
        list::show(globals, &connection, (&self.name, default)).await
    }
}

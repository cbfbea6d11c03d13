//! `nerve collections quota`

use super::list;
use crate::{
    args::{DataFolder, Globals},
    connection::Connection,
};
use clap::Args;
use nerve_core::quota::Quota;

/// Set what a collection may have
#[derive(Debug, Args)]
#[command(after_help = "\
What is not named stays as it was. 0 is no bound, also where the settings ([collections]) have one. Servers follow at once.
Documents and bytes are kept to exactly: what is over them is answered 507, or becomes a dead letter. Rates are answered 429.

Examples:
  nerve collections quota acme --documents 1000 --documents-bytes 100000000
  nerve collections quota acme --events-per-minute 60 --tokens-per-day 1000000
  nerve collections quota acme --reset                  as the settings say")]
pub(crate) struct SetQuota {
    /// The collection
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: String,
    /// Documents in the index
    #[arg(long, value_name = "N")]
    documents: Option<u64>,
    /// Bytes of their text
    #[arg(long, value_name = "N")]
    documents_bytes: Option<u64>,
    /// Documents, deletions, questions and feedback in a minute
    #[arg(long, value_name = "N")]
    events_per_minute: Option<u64>,
    /// Tokens of models in a day (UTC)
    #[arg(long, value_name = "N")]
    tokens_per_day: Option<u64>,
    /// Leave everything that is not named to the settings
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
        let named = Quota {
            documents: self.documents,
            documents_bytes: self.documents_bytes,
            events_per_minute: self.events_per_minute,
            tokens_per_day: self.tokens_per_day,
        };
        let before = if self.reset { Quota::default() } else { registry.quota(&self.name).await?.unwrap_or_default() };
        let quota = named.or(before);
        if self.reset || quota != before {
            registry.set_quota(&self.name, Some(quota).filter(|quota| *quota != Quota::default())).await?;
        }
        if quota == Quota::default() && list::collections(&connection, default).await?.is_empty() {
            return Ok(());
        }
        list::show(globals, &connection, (&self.name, default)).await
    }
}

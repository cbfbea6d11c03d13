//! `nerve collections list` and `nerve collections show`

use crate::{
    connection::Connection,
    failure::Failure,
    globals::{DataFolder, Globals},
    output,
};
use clap::Args;
use nerve_core::quota::{CollectionUsage, Quota, QuotaKind, Quotas, USAGE_KEY_PREFIX};
use serde::Serialize;
use std::collections::BTreeMap;
use time::OffsetDateTime;

/// List collections with their usage and quotas
#[derive(Debug, Args)]
#[command(after_help = "\
Collections with indexed documents, with tokens used by a language model, or with a quota are listed.

Examples:
  nerve collections list
  nerve collections list --output json | jq '.collections[] | select(.used.documents > 1000)'")]
pub(crate) struct List {
    #[command(flatten)]
    folder: DataFolder,
}

/// Show the usage and quota of a collection
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nerve collections show acme")]
pub(crate) struct Show {
    /// The collection
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: String,
    #[command(flatten)]
    folder: DataFolder,
}

/// A collection with usage and quota.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Collection {
    collection: String,
    used: DisplayedUsage,
    /// Limits; unlimited kinds are omitted.
    quota: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
struct DisplayedUsage {
    documents: u64,
    documents_bytes: u64,
    /// Tokens used today (UTC).
    tokens: u64,
}

#[derive(Serialize)]
struct Listing {
    collections: Vec<Collection>,
}

impl Collection {
    fn new(collection: String, usage: &CollectionUsage, quota: Quota) -> Self {
        let tokens = usage.tokens_at(OffsetDateTime::now_utc());
        let limits = QuotaKind::ALL.into_iter().filter_map(|kind| Some((kind.name(), quota.limit(kind)?)));
        let used = DisplayedUsage { documents: usage.documents, documents_bytes: usage.documents_bytes, tokens };
        Self { collection, used, quota: limits.collect() }
    }

    /// Formats the usage of a kind with its limit.
    fn usage_of(&self, used: u64, kind: QuotaKind) -> String {
        match self.quota.get(kind.name()) {
            Some(limit) => format!("{used} of {limit}"),
            None => used.to_string(),
        }
    }

    fn columns(&self) -> [String; 5] {
        let DisplayedUsage { documents, documents_bytes, tokens } = self.used;
        let rate = self.quota.get(QuotaKind::EventsPerMinute.name());
        [
            self.collection.clone(),
            self.usage_of(documents, QuotaKind::Documents),
            self.usage_of(documents_bytes, QuotaKind::DocumentsBytes),
            self.usage_of(tokens, QuotaKind::TokensPerDay),
            rate.map_or_else(|| "-".to_owned(), u64::to_string),
        ]
    }
}

/// Returns all known collections.
pub(super) async fn collections(connection: &Connection, default: Quota) -> anyhow::Result<Vec<Collection>> {
    let own = connection.registry().await?.quotas().await?;
    let mut usage: BTreeMap<String, CollectionUsage> =
        own.iter().map(|(collection, _)| (collection.clone(), CollectionUsage::default())).collect();
    let quotas = Quotas { default, own: own.into_iter().collect() };
    connection
        .bus
        .each_view(&format!("{USAGE_KEY_PREFIX}>"), |view| {
            if let Ok(used) = serde_json::from_slice::<CollectionUsage>(&view.data) {
                usage.insert(used.collection.clone(), used);
            }
        })
        .await?;
    let with_quota = |(collection, usage): (String, CollectionUsage)| {
        let quota = quotas.of(&collection);
        Collection::new(collection, &usage, quota)
    };
    Ok(usage.into_iter().map(with_quota).collect())
}

impl List {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let default = connection.config.collections;
        let listing = Listing { collections: collections(&connection, default).await? };
        globals.output.show(&listing, |listing| match listing.collections.as_slice() {
            [] => "no collections; create one with `nerve ingest PATH`".to_owned(),
            collections => {
                let heading = ["COLLECTION", "DOCUMENTS", "BYTES", "TOKENS TODAY (UTC)", "EVENTS PER MINUTE"];
                output::table(heading, collections.iter().map(Collection::columns))
            }
        })
    }
}

impl Show {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let default = connection.config.collections;
        show(globals, &connection, (&self.name, default)).await
    }
}

/// Shows one collection.
pub(super) async fn show(
    globals: &Globals,
    connection: &Connection,
    (name, default): (&str, Quota),
) -> anyhow::Result<()> {
    let all = collections(connection, default).await?;
    let found = all.into_iter().find(|one| one.collection == name);
    let missing = || {
        let failure = Failure::new(format!("unknown collection `{name}`"));
        failure.cause("it has no indexed documents and no quota").next("see `nerve collections list`")
    };
    let found = found.ok_or_else(missing)?;
    globals.output.show(&found, |found| {
        let [collection, documents, bytes, tokens, rate] = found.columns();
        output::pairs([
            ("collection", collection),
            ("documents", documents),
            ("bytes of their text", bytes),
            ("tokens of today (UTC)", tokens),
            ("events per minute", rate),
        ])
    })
}

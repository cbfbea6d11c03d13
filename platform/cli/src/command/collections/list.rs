//! `nerve collections list` and `nerve collections show`

use crate::{
    args::{DataFolder, Globals},
    connection::Connection,
    failure::Failure,
    output,
};
use clap::Args;
use nerve_core::quota::{CollectionUsage, Quota, QuotaKind, Quotas, USAGE_KEY_PREFIX};
use serde::Serialize;
use std::collections::BTreeMap;
use time::OffsetDateTime;

/// List collections: what they have used, and what they may
#[derive(Debug, Args)]
#[command(after_help = "\
A collection is listed once documents of it were indexed, a language model answered for it, or a quota was set for it.

Examples:
  nerve collections list
  nerve collections list --output json | jq '.collections[] | select(.used.documents > 1000)'")]
pub(crate) struct List {
    #[command(flatten)]
    folder: DataFolder,
}

/// Show what a collection has used, and what it may
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

/// A collection as it is shown.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Collection {
    collection: String,
    used: Used,
    /// What it may have; what is left out is not bounded.
    quota: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Used {
    documents: u64,
    documents_bytes: u64,
    /// Of this day (UTC).
    tokens: u64,
}

#[derive(Serialize)]
struct Listing {
    collections: Vec<Collection>,
}

impl Collection {
    fn new(collection: String, usage: &CollectionUsage, quota: Quota) -> Self {
        let tokens = usage.tokens_at(OffsetDateTime::now_utc());
        let bounds = QuotaKind::ALL.into_iter().filter_map(|kind| Some((kind.name(), quota.limit(kind)?)));
        let used = Used { documents: usage.documents, documents_bytes: usage.documents_bytes, tokens };
        Self { collection, used, quota: bounds.collect() }
    }

    /// What is used, and of what.
    fn of(&self, used: u64, kind: QuotaKind) -> String {
        match self.quota.get(kind.name()) {
            Some(bound) => format!("{used} of {bound}"),
            None => used.to_string(),
        }
    }

    fn columns(&self) -> [String; 5] {
        let Used { documents, documents_bytes, tokens } = self.used;
        let rate = self.quota.get(QuotaKind::EventsPerMinute.name());
        [
            self.collection.clone(),
            self.of(documents, QuotaKind::Documents),
            self.of(documents_bytes, QuotaKind::DocumentsBytes),
            self.of(tokens, QuotaKind::TokensPerDay),
            rate.map_or_else(|| "-".to_owned(), u64::to_string),
        ]
    }
}

/// Every collection that is known, or the one of this name.
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
    let shown = |(collection, usage): (String, CollectionUsage)| {
        let quota = quotas.of(&collection);
        Collection::new(collection, &usage, quota)
    };
    Ok(usage.into_iter().map(shown).collect())
}

impl List {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let connection = Connection::open(globals, &self.folder).await?;
        let default = connection.config.collections;
        let listing = Listing { collections: collections(&connection, default).await? };
        globals.output.show(&listing, |listing| match listing.collections.as_slice() {
            [] => "there is no collection yet: `nerve ingest PATH` makes one".to_owned(),
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
        let failure = Failure::new(format!("nothing is known of the collection `{name}`"));
        failure.cause("no document of it was indexed, and no quota set").next("nerve collections list")
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

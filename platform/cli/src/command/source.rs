//! `nerve source`

mod add;
mod rotate;
mod test;

use crate::{
    connection::Connection,
    display_fields,
    failure::Failure,
    globals::{DataFolder, Globals},
    output,
};
use clap::Subcommand;
use nerve_broker::bus::{DuplicateCounts, DuplicateScope};
use nerve_core::{
    Name, SourceSpec,
    manifest::{Dedupe, Ids, Network, Rate},
};
use nerve_registry::Registry;
use serde::Serialize;
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// Webhook sources: senders of /hooks/NAME and their verification
#[derive(Debug, Subcommand)]
pub(crate) enum Source {
    Add(add::Add),
    /// List the sources with limits, dropped duplicates, and whether their secrets are set
    #[command(after_help = "\
Examples:
  nerve source list")]
    List(DataFolder),
    Rotate(rotate::Rotate),
    Test(test::Test),
}

#[derive(Serialize)]
struct SourceOverview {
    name: Name,
    provider: &'static str,
    path: String,
    secrets: Vec<SecretStatus>,
    dedupe: Dedupe,
    ids: Ids,
    /// Dropped duplicates, by reason; a lower bound.
    duplicates: DuplicateCounts,
    tolerance_ms: u128,
    rate: Option<Rate>,
    concurrency: Option<usize>,
    allow: Vec<Network>,
    max_body: Option<u64>,
}

impl SourceOverview {
    /// Formats the limits.
    fn limits(&self) -> String {
        let allow: Vec<String> = self.allow.iter().map(ToString::to_string).collect();
        let limits = [
            self.rate.map(|rate| rate.to_string()),
            self.concurrency.map(|slots| format!("{slots} concurrent")),
            self.max_body.map(|size| format!("up to {}", display_fields::bytes(size))),
            (!allow.is_empty()).then(|| format!("from {}", allow.join(" "))),
        ];
        limits.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

#[derive(Serialize)]
struct SecretStatus {
    name: String,
    set: bool,
}

impl Source {
    pub(crate) async fn run(self, globals: &Globals) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => add.run(globals).await,
            Self::List(folder) => list(globals, &folder).await,
            Self::Rotate(rotate) => rotate.run(globals).await,
            Self::Test(test) => test.run(globals).await,
        }
    }
}

async fn list(globals: &Globals, folder: &DataFolder) -> anyhow::Result<()> {
    let connection = Connection::open(globals, folder).await?;
    let registry = connection.registry().await?;
    let mut dropped = connection.bus.dropped(DuplicateScope::Source).await?;
    let set: BTreeSet<String> = registry.secrets().await?.into_iter().map(|secret| secret.name).collect();
    let sources = registry.sources().await?.into_iter().map(|entry| {
        let spec = Arc::unwrap_or_clone(entry.record.spec);
        let secrets = spec.secrets.iter().chain(&spec.verify_token);
        let secrets = secrets.map(|name| SecretStatus { name: name.clone(), set: set.contains(name) }).collect();
        let (provider, dedupe, ids) = (spec.provider.name(), spec.dedupe(), spec.ids());
        let duplicates = dropped.remove(entry.name.as_str()).unwrap_or_default();
        let path = format!("/hooks/{}", entry.name);
        let SourceSpec { tolerance, rate, concurrency, allow, max_body, .. } = spec;
        let tolerance_ms = tolerance.as_millis();
        SourceOverview {
            name: entry.name,
            provider,
            path,
            secrets,
            dedupe,
            ids,
            duplicates,
            tolerance_ms,
            rate,
            concurrency,
            allow,
            max_body,
        }
    });
    globals.output.show(&sources.collect::<Vec<_>>(), |sources| {
        if sources.is_empty() {
            return "no sources; add one with `nerve source add`".to_owned();
        }
        let row = |one: &SourceOverview| {
            let secret = |s: &SecretStatus| if s.set { s.name.clone() } else { format!("{} (not set)", s.name) };
            let secrets = one.secrets.iter().map(secret).collect::<Vec<_>>().join(" ");
            let duplicates: u64 = one.duplicates.values().sum();
            let duplicates = if duplicates > 0 { format!("≥ {duplicates}") } else { String::new() };
            let (name, provider, dedupe) =
                (one.name.to_string(), one.provider.to_owned(), one.dedupe.name().to_owned());
            [name, provider, one.path.clone(), dedupe, duplicates, one.limits(), secrets]
        };
        let columns = ["SOURCE", "PROVIDER", "PATH", "DEDUPE", "DROPPED", "LIMITS", "SECRETS"];
        output::table(columns, sources.iter().map(row))
    })
}

/// Time for a change to reach all servers.
const PROPAGATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns the deployed source with this name.
async fn deployed(registry: &Registry, name: &Name) -> anyhow::Result<SourceSpec> {
    let entry = registry.source(name).await?;
    let missing = || Failure::new(format!("no source `{name}`")).next("see `nerve source list`");
    Ok(Arc::unwrap_or_clone(entry.ok_or_else(missing)?.record.spec))
}
